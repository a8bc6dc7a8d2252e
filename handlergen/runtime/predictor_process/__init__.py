"""One predictor process per model and device, shared by the workers: its client, its server and what is between them."""
