"""MLServer with a custom runtime: its `async def predict` runs user code in the event loop of its one worker."""

from __future__ import annotations

import json
from typing import Any

from peers.subject import APPS, Launch, Place, Subject
from peers.venvs import Environment
from peers.workloads import Workload

# Its worker processes end at once with a newer uvloop: "There is no current event loop in thread 'MainThread'".
ENVIRONMENT = Environment("mlserver", ("mlserver", "uvloop<0.22"))


def _launch(place: Place) -> Launch:
    http, grpc, metrics = place.ports[:3]
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "debug": False,
    }
    model = {"name": "served", "implementation": "mlserver_app.Runtime"}
    if place.workload.batch_size > 1:
        model |= {"max_batch_size": place.workload.batch_size, "max_batch_time": 0.001}
    (place.directory / "settings.json").write_text(json.dumps(settings))
    (place.directory / "model-settings.json").write_text(json.dumps(model))
    program = place.python.parent / "mlserver"
    path = f"{APPS}:{APPS.parent / 'models'}"
    return Launch([place.python, program, "start", place.directory], {"PYTHONPATH": path})


def _wrap(request: Any, _workload: Workload) -> Any:
    kinds = {int: "INT64", str: "BYTES"}
    return {
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": kinds[type(value)], "data": [value]}
            for name, value in request.items()
        ]
    }


def _unwrap(response: Any) -> Any:
    """Values of one number are answers of one number, others lists."""
    return {
        tensor["name"]: tensor["data"][0] if tensor["shape"] == [1, 1] else tensor["data"]
        for tensor in response["outputs"]
    }


SUBJECTS = (
    Subject(
        "mlserver",
        "MLServer",
        _launch,
        environment=ENVIRONMENT,
        path="/v2/models/served/infer",
        wrap=_wrap,
        unwrap=_unwrap,
        serializes="one event loop does everything",
        distributions=("mlserver",),
    ),
)
