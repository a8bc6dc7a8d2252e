"""Load tests of a running model: a load generator, what was recorded meanwhile, and where the time goes."""
