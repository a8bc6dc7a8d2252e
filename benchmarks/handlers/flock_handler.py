"""What one would write by hand: the three stages of `staged.py`, with a plain flock around predict.

It records its predictions as handlergen does (`runtime/telemetry/recording.py`), so that both are judged alike.
"""

import fcntl
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import staged


class FlockHandler:
    def initialize(self, context):
        self.stages = SimpleNamespace(config=context.model_yaml_config["handler"])
        self.lock = (Path(tempfile.gettempdir()) / "flock_handler.lock").open("w")
        self.spans = None
        if directory := os.environ.get("HANDLERGEN_TRACE_DIR"):
            path = Path(directory) / f"spans-{context.model_name}-{os.getpid()}.jsonl"
            self.spans = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self.span = {
                "pid": os.getpid(),
                "thread": threading.get_ident(),
                "worker": str(os.getpid()),
                "device": "flock",
                "model": context.model_name,
            }
        self.initialized = True

    def handle(self, data, context):
        inputs = [staged.preprocess(row["body"], self.stages) for row in data]
        outputs, times = [], []
        for number in inputs:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            start_ns = time.monotonic_ns()
            outputs.append(staged.predict(number, self.stages))
            times.append((start_ns, time.monotonic_ns()))
            fcntl.flock(self.lock, fcntl.LOCK_UN)
        answers = [staged.postprocess(output, self.stages) for output in outputs]
        if self.spans is not None:
            for index, (start_ns, end_ns) in enumerate(times):
                self.record(start_ns, end_ns, context.request_ids[index])
        return answers

    def record(self, start_ns, end_ns, request_id):
        """Last of all, as handlergen does: what is written between two predictions keeps the device waiting."""
        line = {
            "stage": "predict",
            "start_ns": start_ns,
            "end_ns": end_ns,
            "request_id": request_id,
            **self.span,
        }
        os.write(self.spans, (json.dumps(line) + "\n").encode())
