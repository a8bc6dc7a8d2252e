"""The load generator: its arithmetic, that it notices wrong answers, and that it hides no waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any

import pytest

from handlergen.errors import ServerError
from handlergen.performance.bench import load as load_module
from handlergen.performance.bench.load import Exchange, run_load
from handlergen.performance.bench.traffic import Closed, Load, Open, TimedAnswer
from handlergen.performance.recordings import percentile


def test_percentile_is_the_nearest_rank() -> None:
    ranks = {0: 10, 25: 10, 26: 20, 50: 20, 75: 30, 95: 40, 100: 40}
    assert {percent: percentile([40, 10, 30, 20], percent) for percent in ranks} == ranks
    for values, percent in (([], 50), ([1], -1), ([1], 101)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(values, percent)


def test_figures_count_what_ended_within_the_window() -> None:
    second = 1_000_000_000
    run = Load(0, ended_ns=4 * second)
    window = run.steady(skip_first_s=1.0, skip_last_s=1.0)
    assert window == (second, 3 * second)
    run.answers += [
        TimedAnswer(0, second - 1, "right"),
        TimedAnswer(0, second, "right"),
        TimedAnswer(2 * second, 2 * second + 4_000_000, "right"),
        TimedAnswer(2 * second, 2 * second + 1, "status 503"),
        TimedAnswer(2 * second, 3 * second, "right"),
    ]
    figures = run.figures(window)
    assert figures.requests_per_s == 1.0
    assert figures.outcomes == {"right": 2, "status 503": 1}
    assert figures.latency_ms == {50: 4.0, 90: 1000.0, 95: 1000.0, 99: 1000.0, 100: 1000.0}
    assert figures.due_per_s == 1.5


def test_nothing_is_left_of_a_short_run() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Load(0, ended_ns=10).steady(skip_first_s=1.0, skip_last_s=0.0)


def test_answers_are_compared_by_value() -> None:
    exchange = Exchange.of_json("/", 1, {"answer": [1, 2]})
    assert exchange.is_right(b'{"answer": [1, 2]}')
    assert exchange.is_right(b'{\n  "answer": [1,2]\n}')
    assert not exchange.is_right(b'{"answer": [2, 1]}')
    assert not exchange.is_right(b"not JSON")


def test_an_open_loop_counts_what_was_due_in_the_window() -> None:
    second = 1_000_000_000
    run = Load(0, ended_ns=3 * second, open_loop=True)
    run.answers += [
        TimedAnswer(second // 2, second + 1, "right"),  # due before
        TimedAnswer(second + 1, 2 * second, "right"),
        TimedAnswer(2 * second, 9 * second, "right"),  # answered long after, and not left out
    ]
    figures = run.figures((second, 3 * second))
    assert figures.requests_per_s == 1.0
    assert figures.due_per_s == 1.0
    assert figures.latency_ms[100] == 7000.0


@pytest.mark.parametrize("even", [True, False])
def test_arrivals_keep_their_rate(even: bool) -> None:
    times = [at for at, _ in zip(Open(100.0, even=even).due_ns(), range(10_001), strict=False)]
    assert times == sorted(times)
    assert times[-1] / 1e9 == pytest.approx(100.0, rel=1e-9 if even else 0.05)
    gaps = {after - before for before, after in pairwise(times)}
    assert (len(gaps) <= 2) is even


class _Server(BaseHTTPRequestHandler):
    """Doubles a number; other paths misbehave in the way of their names."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        number = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/gone":
            self.close_connection = True
            return
        if self.path == "/silent":
            time.sleep(3.0)
            return
        if self.path == "/first-slow" and number == 0:
            time.sleep(0.4)
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for part in (b"%x\r\n%b\r\n" % (len(text), text) for text in (b"[1", b",2", b"]")):
                self.wfile.write(part)
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            return
        if isinstance(number, str):
            number = len(number)
        body = json.dumps(number * 2 + (self.path == "/wrong")).encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("content-length", str(len(body)))
        if self.path == "/last":
            self.send_header("connection", "close")
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
    [
        ("/", "right"),
        ("/last", "right"),
        ("/wrong", "wrong"),
        ("/busy", "status 503"),
        ("/gone", "connection closed"),
    ],
)
def test_every_answer_is_checked(address: tuple[str, int], path: str, outcome: str) -> None:
    exchanges = [Exchange.of_json(path, number, number * 2) for number in (21, 1234)]
    run = run_load(address, exchanges, pace=Closed(3), seconds=0.2)
    assert len(run.answers) >= 3
    assert {answer.outcome for answer in run.answers} == {outcome}
    assert all(answer.started_ns < answer.ended_ns for answer in run.answers)


def test_a_chunked_answer_is_read_to_its_end(address: tuple[str, int]) -> None:
    run = run_load(address, [Exchange.of_json("/chunked", 1, [1, 2])], pace=Closed(1), seconds=0.1)
    assert len(run.answers) >= 2
    assert {answer.outcome for answer in run.answers} == {"right"}


def test_a_long_request_is_sent_whole(address: tuple[str, int]) -> None:
    exchange = Exchange.of_json("/", "x" * 8_000_000, 16_000_000)
    run = run_load(address, [exchange], pace=Closed(2), seconds=0.1)
    assert {answer.outcome for answer in run.answers} == {"right"}


def test_waiting_for_a_slow_answer_counts_for_those_behind_it(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One connection and one slow answer: a client that counts from when it sends would see one slow request.
    monkeypatch.setattr(load_module, "MOST_CONNECTIONS", 1)
    exchanges = [Exchange.of_json("/first-slow", number, number * 2) for number in range(100)]
    run = run_load(address, exchanges, pace=Open(20.0, even=True), seconds=0.3)
    assert [answer.outcome for answer in run.answers] == ["right"] * 6
    due_ms = [round((answer.started_ns - run.started_ns) / 1e6) for answer in run.answers]
    assert due_ms == [0, 50, 100, 150, 200, 250]
    for due, answer in zip(due_ms, run.answers, strict=True):
        assert (answer.ended_ns - answer.started_ns) / 1e6 >= 399 - due
    assert max(run.late_ns) / 1e6 >= 340  # the second, which was due after 50 ms


def test_an_answer_that_does_not_come_is_given_up(address: tuple[str, int]) -> None:
    run = run_load(address, [Exchange.of_json("/silent", 1, 2)], pace=Closed(2), seconds=0.1, longest_answer_s=0.2)
    assert [answer.outcome for answer in run.answers] == ["no answer in 0.2 s"] * 2


def test_a_server_that_is_not_there(address: tuple[str, int]) -> None:
    with pytest.raises(ServerError, match=r"no server answers at 127\.0\.0\.1:1:"):
        run_load(("127.0.0.1", 1), [Exchange.of_json("/", 1)], pace=Closed(1), seconds=0.1)
