"""Recorded spans to a trace that Perfetto (https://ui.perfetto.dev) opens, in the Trace Event Format."""

from handlergen.trace.convert import Trace, open_output, write_trace
from handlergen.trace.summary import DeviceUse, Summary

__all__ = ["DeviceUse", "Summary", "Trace", "open_output", "write_trace"]
