"""One predictor process per model and device, which the workers share: both of its sides."""
