"""Recorded spans to a trace that Perfetto (https://ui.perfetto.dev) and chrome://tracing open."""

from handlergen.trace.convert import Trace, open_output, write_trace
from handlergen.trace.summary import DeviceUse, Summary

__all__ = ["DeviceUse", "Summary", "Trace", "open_output", "write_trace"]
