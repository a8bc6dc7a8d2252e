"""LitServe: each worker decodes, predicts and encodes one request after the other; several have a copy each."""

from __future__ import annotations

from functools import partial

from peers.subject import APPS, Launch, Place, Subject
from peers.venvs import Environment

ENVIRONMENT = Environment("litserve", ("litserve",))


def _launch(place: Place, workers: int) -> Launch:
    return Launch([place.python, APPS / "litserve_app.py", str(place.ports[0]), str(workers)])


SUBJECTS = (
    Subject(
        "litserve",
        "LitServe, one copy",
        partial(_launch, workers=1),
        environment=ENVIRONMENT,
        serializes="one process does everything",
        distributions=("litserve",),
    ),
    Subject(
        "litserve-4",
        "LitServe, four copies",
        partial(_launch, workers=4),
        environment=ENVIRONMENT,
        distributions=("litserve",),
    ),
)
