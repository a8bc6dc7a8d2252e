"""The benchmarks' own arithmetic, and that their load generator notices wrong answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _load_module(path: str) -> ModuleType:
    """A benchmark's module; benchmarks/ is no package and not on the path."""
    name = f"benchmarks_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


load = _load_module("rig/load.py")


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10), (25, 10), (26, 20), (50, 20), (75, 30), (95, 40), (100, 40)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert load.percentile([40, 10, 30, 20], percent) == expected


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], -1), ([1], 101)])
def test_percentile_of_nothing(values: list[int], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        load.percentile(values, percent)


def test_figures_count_what_ended_within_the_window() -> None:
    second = 1_000_000_000
    run = load.Load(0, ended_ns=4 * second)
    window = run.steady(skip_first_s=1.0, skip_last_s=1.0)
    assert window == (second, 3 * second)
    run.answers += [
        load.Answer(0, second - 1, "right"),
        load.Answer(0, second, "right"),
        load.Answer(2 * second, 2 * second + 4_000_000, "right"),
        load.Answer(2 * second, 2 * second + 1, "status 503"),
        load.Answer(2 * second, 3 * second, "right"),
    ]
    figures = run.figures(window)
    assert figures.requests_per_s == 1.0
    assert figures.outcomes == {"right": 2, "status 503": 1}
    assert figures.latency_ms == {50: 4.0, 95: 1000.0, 99: 1000.0}


def test_nothing_is_left_of_a_short_run() -> None:
    with pytest.raises(ValueError, match="shorter"):
        load.Load(0, ended_ns=10).steady(skip_first_s=1.0, skip_last_s=0.0)


def test_answers_are_compared_by_value() -> None:
    exchange = load.Exchange("/", 1, {"answer": [1, 2]})
    assert exchange.is_right(b'{"answer": [1, 2]}')
    assert exchange.is_right(b'{\n  "answer": [1,2]\n}')
    assert not exchange.is_right(b'{"answer": [2, 1]}')
    assert not exchange.is_right(b"not JSON")


class _Server(BaseHTTPRequestHandler):
    """Doubles a number; `/wrong` is off by one, `/busy` is full, `/gone` hangs up."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        number = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/gone":
            self.close_connection = True
            return
        body = json.dumps(number * 2 + (self.path == "/wrong")).encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        # In two pieces: an answer need not come in one.
        self.wfile.write(body[:1])
        self.wfile.flush()
        self.wfile.write(body[1:])

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield ("127.0.0.1", server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "outcome"),
    [("/", "right"), ("/wrong", "wrong"), ("/busy", "status 503"), ("/gone", "connection closed")],
)
def test_every_answer_is_checked(address: tuple[str, int], path: str, outcome: str) -> None:
    exchanges = [load.Exchange(path, number, number * 2) for number in (21, 1234)]
    run = load.run_load(address, exchanges, clients=3, seconds=0.2)
    assert len(run.answers) >= 3
    assert {answer.outcome for answer in run.answers} == {outcome}
    assert all(answer.started_ns < answer.ended_ns for answer in run.answers)
