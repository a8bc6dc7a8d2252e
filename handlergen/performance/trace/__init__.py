"""Convert recorded spans to a trace that Perfetto (https://ui.perfetto.dev) opens, in the Trace Event Format."""
