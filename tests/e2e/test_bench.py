"""`handlergen serve --trace`, `bench`, `trace` and `doctor`, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handlergen.server.configuration import write_configuration
from handlergen.server.lifecycle import RunningServer, running_server, stop
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from tests.archives import make_archive
from tests.commands import handlergen
from tests.histories import until

pytestmark = pytest.mark.e2e

MODULE = """
import time

def preprocess(data):
    time.sleep(0.004)
    if data["number"] < 0:
        raise ValueError("a negative number")
    return data["number"]

def predict(number):
    time.sleep(0.004)
    return number * 2

def postprocess(number):
    return {"answer": number}
"""

ONE_PROCESS = """
import time

def preprocess(data):
    time.sleep(0.01)
    return data

def predict(inputs):
    time.sleep(0.01)
    return inputs

def postprocess(outputs):
    time.sleep(0.01)
    return outputs
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "HANDLERGEN_TRACE_DIR"}
    return handlergen(*arguments, cwd=directory, timeout=240, env=environ)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a server that records spans, of the models `double`, `traced` and `relayed`."""
    directory = tmp_path_factory.mktemp("bench")
    make_archive(directory, "double", MODULE, workers_per_device=2, devices="cpu")
    make_archive(directory, "traced", MODULE, workers_per_device=2, devices="cpu")
    make_archive(directory, "relayed", ONE_PROCESS, predictor="process", stages="worker", devices="cpu")
    (directory / "store").rename(directory / "model-store")
    write_configuration(directory / "config.properties", server_settings(**free_port_settings()))
    try:
        served = run(directory, "serve", "--trace", "spans", "--json")
        assert served.returncode == 0, served.stderr
        yield directory
    finally:
        stop(directory / "config.properties")


@pytest.mark.parametrize("over", [(), ("--grpc",)])
def test_a_closed_loop(home: Path, over: tuple[str, ...]) -> None:
    result = run(
        home,
        *("bench", "double", "--data", '{"number": 1}', "--data", '{"number": 2}', "--clients", "4", *over),
        *("--duration", "1.5", "--warmup", "0.3", "--report", "report.html", "--json"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["answered"] > 10
    assert report["errors"] == {}
    assert report["rows"] == 2
    assert report["predict_overlaps"] == 0
    assert report["spans_missing"] is None
    assert report["latency_ms"]["p50"] >= report["in_workers_ms"] / 2 > 4
    (device,) = report["devices"]
    assert device["predict_ms"] >= 4
    assert 0 < device["busy"] <= 1
    assert report["limit_per_s"] <= 250
    assert report["share_of_limit"] == pytest.approx(report["requests_per_s"] / report["limit_per_s"], abs=1e-3)
    assert set(report["stages"]) == {"decode", "preprocess", "lock_wait", "predict", "postprocess", "encode"}
    assert len(report["workers_occupied"]) == 2
    assert report["cpu"]["workers"] > 0
    assert report["cpu"]["frontend"] > 0
    assert "<h2>Timeline</h2>" in (home / "report.html").read_text("utf-8")


def test_a_model_with_a_predictor_process(home: Path) -> None:
    """One worker, which is never without a request, and a device that is idle two thirds of the time."""
    result = run(
        home,
        *("bench", "relayed", "--data", "1", "--clients", "8", "--duration", "1.5", "--warmup", "0.5"),
        *("--report", "relayed.html", "--json"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["errors"], report["predict_overlaps"], report["workers"]) == ({}, 0, 1)
    assert len(report["workers_occupied"]) == 1  # the process that predicts is no worker
    (device,) = report["devices"]
    assert device["device"] == "cpu"
    assert device["predict_ms"] >= 10
    assert set(report["stages"]) == {"decode", "preprocess", "lock_wait", "predict", "postprocess", "encode"}
    assert report["bottleneck"] == "workers", report["why"]
    assert "predictor " in (home / "relayed.html").read_text("utf-8")


def test_an_open_loop_with_failing_rows(home: Path) -> None:
    (home / "rows.jsonl").write_text('{"number": 1}\n{"number": -1}\n')
    result = run(
        home,
        *("bench", "double", "--inputs", "rows.jsonl", "--rate", "40", "--arrivals", "even"),
        *("--duration", "1", "--warmup", "0.2"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "double 1.0: 40 requests/s due evenly over REST; 1 s after 0.2 s of warm-up, 2 rows"
    # Each second row is refused: of forty evenly spaced requests twenty, whatever the machine does.
    assert "(20 answered, 20 errors: 20 of 400)" in result.stdout
    assert "overlaps 0" in result.stdout
    assert lines[-1].startswith("Bottleneck: ")


def test_a_request_that_the_model_refuses_is_told_at_once(home: Path) -> None:
    result = run(home, "bench", "double", "--data", '{"number": -1}')
    assert result.returncode == 6
    assert "double answers the first request with an error: 400: a negative number" in result.stderr
    assert run(home, "bench", "nobody", "--data", "1").returncode == 6


@pytest.fixture(scope="module")
def running(home: Path) -> RunningServer:
    found = running_server(home / "config.properties")
    assert found is not None
    return found


def doctor(home: Path) -> tuple[int, list[dict[str, str]]]:
    done = run(home, "doctor", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["findings"]


def test_a_served_models_spans_become_a_timeline(home: Path, running: RunningServer) -> None:
    with running.client() as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda number: client.predict("traced", {"number": number}).json(), range(40))
        assert list(answers) == [{"answer": 2 * number} for number in range(40)]
        workers = {worker.pid for worker in client.describe("traced").workers}
    done = run(home, "trace", "--model", "traced", "-o", "trace.json", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["requests"] == report["devices"]["cpu"]["predicts"] == 40
    assert report["devices"]["cpu"]["overlaps"] == 0
    assert set(report["processes"]) == workers
    events = json.loads((home / "trace.json").read_text())["traceEvents"]
    names = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "process_name"}
    assert {name for _, name in names} == {"traced worker", "device cpu"}
    for phase in "stf":
        assert len({event["id"] for event in events if event["ph"] == phase}) == 40
    # preprocess, then the device's row, then postprocess: the arrow leaves the worker and comes back to it.
    device = {event["pid"] for event in events if event.get("cat") == "device"}
    by_phase = {phase: {event["pid"] for event in events if event["ph"] == phase} for phase in "stf"}
    assert by_phase == {"s": set(report["processes"]), "t": device, "f": set(report["processes"])}


def test_a_running_server_is_well(home: Path, running: RunningServer) -> None:
    status, findings = doctor(home)
    assert [found for found in findings if found["severity"] not in ("ok", "note")] == []
    assert status == 0
    (ports,) = [found["what"] for found in findings if found["section"] == "Ports"]
    assert ports.endswith(f": the running server (pid {running.pid})")
    assert str(running.settings.grpc_inference_port) in ports


def test_a_killed_server_is_told_of(home: Path, running: RunningServer) -> None:
    """The last test of the module: it kills the frontend."""
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: not running.running())
    _, findings = doctor(home)
    told = [found for found in findings if f"(pid {running.pid})" in found["what"]]
    assert [found["fix"] for found in told] == ["handlergen stop"]
