"""What is recorded of requests: stages, spans, metrics, health."""
