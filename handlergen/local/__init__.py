"""The pipeline without a server: `predict`, `check --sample`, `map`."""
