"""A request from decode to encode: hooks, batches, the predictor, backends."""
