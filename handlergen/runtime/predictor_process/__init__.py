"""One predictor process per model and device, which the workers share: client, server and transport."""
