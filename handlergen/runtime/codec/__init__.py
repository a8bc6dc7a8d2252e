"""Bytes to values and back: content types, JSON, KServe, and the errors that clients get."""
