"""Recorded spans to a trace that Perfetto (https://ui.perfetto.dev) opens, in the Trace Event Format."""

from handlergen.performance.trace.convert import DeviceTotals, Trace, TraceSummary, open_output, write_trace

__all__ = ["DeviceTotals", "Trace", "TraceSummary", "open_output", "write_trace"]
