"""Live objects of every kind, archived and served by a real TorchServe: the answers are the objects' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import handlergen
from handlergen.creation import create as creation
from handlergen.local.requests import body_of
from handlergen.runtime.codec.comparison import value_differences
from tests.live_objects import GROUPS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("group", GROUPS)
def test_the_served_answers_are_the_objects_own(
    group: str, tmp_path: Path, shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creation, "_check", lambda *_: None)  # the server's answers are what is looked at
    objects = dict(GROUPS[group]())
    archives = [
        handlergen.archive(
            live.model,
            name=f"created-{name}",
            example=live.asked,
            model_store=tmp_path,
            workers_per_device=1,
            requirements=[],  # for which TorchServe would make a virtual environment
            **live.options,
        ).path
        for name, live in objects.items()
    ]
    server = shared(*archives)
    for name, live in objects.items():
        body, content_type = body_of(live.asked)
        answer = server.client.predict(f"created-{name}", content=body, content_type=content_type)
        found = answer.text if answer.content_type.startswith("text/") else json.loads(answer.body)
        assert list(value_differences(live.right, found, tolerance=1e-3)) == []
        at_start = server.describe(f"created-{name}")["examples"]
        assert (at_start["number"], at_start["right"]) == (1, 1)
        server.client.unregister(f"created-{name}", drain_s=0)
