"""How fast a model is: recordings, load tests, traces, tuning."""
