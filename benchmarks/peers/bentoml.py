"""BentoML: one worker with threads, and a lock of the user's own around predict."""

from __future__ import annotations

from typing import Any

from peers.subject import APPS, Launch, Place, Subject
from peers.venvs import Environment
from peers.workloads import Workload

ENVIRONMENT = Environment("bentoml", ("bentoml",))


def _launch(place: Place) -> Launch:
    command = [place.python, place.python.parent / "bentoml", "serve", "bentoml_app:Served"]
    options = ["--working-dir", APPS, "--host", "127.0.0.1", "--port", str(place.ports[0])]
    return Launch([*command, *options], {"BENTOML_HOME": str(place.directory / "home"), "BENTOML_DO_NOT_TRACK": "True"})


def _wrap(request: Any, workload: Workload) -> Any:
    return {"request": [request] if workload.batch_size > 1 else request}


def _unwrap(response: Any) -> Any:
    return response[0] if isinstance(response, list) else response


SUBJECTS = (
    Subject(
        "bentoml",
        "BentoML, threads and a lock",
        _launch,
        environment=ENVIRONMENT,
        wrap=_wrap,
        unwrap=_unwrap,
        serializes="the user's lock",
        distributions=("bentoml",),
    ),
)
