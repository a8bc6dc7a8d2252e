"""A handler for TorchServe as one writes it by hand; with `$PEERS_LOCK`, a plain flock around predict."""

import fcntl
import os
from contextlib import contextmanager

import chosen


class Handler:
    def initialize(self, context):
        self.model = chosen.load()
        path = os.environ.get("PEERS_LOCK")
        self.lock = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if path else None
        self.initialized = True

    def handle(self, data, context):
        rows = [chosen.preprocess(row["body"]) for row in data]
        with self.turn():
            outputs = chosen.predict_rows(rows, self.model)
        return [chosen.postprocess(output) for output in outputs]

    @contextmanager
    def turn(self):
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self.lock is not None:
                fcntl.flock(self.lock, fcntl.LOCK_UN)
