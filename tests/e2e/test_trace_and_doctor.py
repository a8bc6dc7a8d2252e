"""`trace` and `doctor` on a real server: what its workers recorded, how it looks alive and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive

pytestmark = pytest.mark.e2e

HANDLERGEN = str(Path(sys.executable).parent / "handlergen")

SLEEPER = """
import time

def preprocess(data):
    time.sleep(0.01)
    return data

def predict(inputs):
    time.sleep(0.005)
    return inputs

def postprocess(outputs):
    time.sleep(0.002)
    return outputs
"""


@pytest.fixture(scope="module")
def server(
    torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """A model `sleeper` with two workers that answered 40 requests, and its recorded spans."""
    home = tmp_path_factory.mktemp("trace")
    (home / "sleeper.py").write_text(SLEEPER)
    mar = archive(home / "sleeper.py", model_store=home / "store", workers_per_device=2).path
    started = torchserve_module(mar, environ={"HANDLERGEN_TRACE_DIR": str(home / "spans")})
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: started.client.predict("sleeper", number).json(), range(40)))
    assert answers == list(range(40))
    return started, home / "spans"


def doctor(server: Any) -> tuple[int, list[dict[str, str]]]:
    done = subprocess.run(
        [HANDLERGEN, "doctor", "--json", "-c", server.config], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["findings"]


def test_a_served_models_spans_become_a_timeline(server: tuple[Any, Path], tmp_path: Path) -> None:
    running, spans = server
    output = tmp_path / "trace.json"
    done = subprocess.run(
        [HANDLERGEN, "trace", spans, "-o", output, "--json"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["requests"] == report["devices"]["cpu"]["predicts"] == 40
    assert report["devices"]["cpu"]["overlaps"] == 0
    assert set(report["processes"]) == set(running.worker_pids("sleeper"))
    events = json.loads(output.read_text())["traceEvents"]
    names = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "process_name"}
    assert {name for _, name in names} == {"sleeper worker", "device cpu"}
    for phase in "stf":
        assert len({event["id"] for event in events if event["ph"] == phase}) == 40
    # preprocess, then the device's row, then postprocess: the arrow leaves the worker and comes back to it.
    device = {event["pid"] for event in events if event.get("cat") == "device"}
    by_phase = {phase: {event["pid"] for event in events if event["ph"] == phase} for phase in "stf"}
    assert by_phase == {"s": set(report["processes"]), "t": device, "f": set(report["processes"])}


def test_a_running_server_is_well(server: tuple[Any, Path]) -> None:
    running, _ = server
    status, findings = doctor(running)
    assert [found for found in findings if found["severity"] not in ("ok", "note")] == []
    assert status == 0
    (ports,) = [found["what"] for found in findings if found["section"] == "Ports"]
    assert ports.endswith(f": the running server (pid {running.pid})")
    assert str(running.settings.grpc_inference_port) in ports


def test_a_killed_server_is_told_of(server: tuple[Any, Path]) -> None:
    """The last test of the module: it kills the frontend."""
    running, _ = server
    os.kill(running.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while running.running.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    _, findings = doctor(running)
    told = [found for found in findings if f"(pid {running.pid})" in found["what"]]
    assert [found["fix"] for found in told] == [f"handlergen stop -c {running.config}"]
