"""Load tests of a running model: a load generator, the spans recorded during a load, and the bottleneck."""
