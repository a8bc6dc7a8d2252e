"""`handlergen tune` on a real TorchServe, with very short loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from handlergen.cli import cli
from handlergen.errors import HandlergenError, RequestFailed
from handlergen.performance.tune import measuring
from handlergen.performance.tune.search import Candidate
from handlergen.server.launching import marked
from handlergen.server.lifecycle import RunningServer

pytestmark = pytest.mark.e2e

MODULE = """
import time

def preprocess(data):
    if data["number"] < 0:
        raise ValueError("a negative number")
    return data["number"]

def predict(numbers):
    time.sleep(0.005)
    return [number * 2 for number in numbers]
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[RunningServer]:
    """The servers that tune starts, with a field of three candidates."""
    servers: list[RunningServer] = []
    real = measuring.serve

    def serve(*arguments: Any, **options: Any) -> RunningServer:
        servers.append(real(*arguments, **options))
        return servers[-1]

    field = [Candidate(1, 1), Candidate(1, 2), Candidate(4, 1)]
    monkeypatch.setattr(measuring, "serve", serve)
    monkeypatch.setattr(measuring, "candidates", lambda _batch: field)
    monkeypatch.setattr(measuring, "WARM_UP_S", 0.3)
    return servers


def arguments_for(directory: Path, number: int) -> list[str]:
    module, sample = directory / "double.py", directory / "sample.json"
    module.write_text(MODULE)
    sample.write_text(json.dumps({"number": number}))
    return ["tune", str(module), "--sample", str(sample), "--batch", "list", "--seconds", "0.5"]


def nothing_is_left_of(servers: list[RunningServer]) -> bool:
    return all(not marked(one.state.marker) and not one.directory.exists() for one in servers)


def test_candidates_are_measured_and_the_settings_are_written(tmp_path: Path, started: list[RunningServer]) -> None:
    arguments = [*arguments_for(tmp_path, 2), "--target-p99-ms", "5000", "--json", "--apply"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["model"], found["device"], found["batch"]) == ("double", "cpu", "list")
    measured = {(one["workers_per_device"], one["batch_size"]): one for one in found["candidates"]}
    assert {(1, 1), (1, 4)} <= set(measured) <= {(1, 1), (2, 1), (1, 4)}
    chosen = found["measured"]
    assert chosen["errors"] == 0
    assert 0 < chosen["p50_ms"] <= chosen["p99_ms"] <= 5000
    assert 0 < chosen["device_busy"] <= 1
    assert chosen["rate"] > 0
    assert found["stages"]["predict"] >= 5 / 4
    assert found["memory_bytes_of_a_worker"] > 1 << 20
    assert any("Goal: 99 of 100 requests within 5000 ms" in reason for reason in found["why"])
    assert found["settings"]["batch_size"] == chosen["batch_size"]
    assert found["applied"] == str(tmp_path / "handlergen.yaml")
    assert f"batch_size: {chosen['batch_size']}\n" in (tmp_path / "handlergen.yaml").read_text()
    assert len(started) >= 2  # one for each batch size
    assert nothing_is_left_of(started)


def test_a_sample_that_is_refused(tmp_path: Path, started: list[RunningServer]) -> None:
    with pytest.raises(HandlergenError, match=r"sample is answered with 400: .*a negative number") as caught:
        CliRunner().invoke(cli, arguments_for(tmp_path, -2), catch_exceptions=False)
    assert not isinstance(caught.value, RequestFailed)
    assert len(started) == 1
    assert nothing_is_left_of(started)
