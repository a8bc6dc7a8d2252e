"""Which settings a model wants: candidates measured on a real server."""
