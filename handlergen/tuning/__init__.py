"""Which settings a model wants: its stages measured here, servers with other settings computed from that."""
