"""Answers sent while they are made: order, the lock, timeouts, consumers that go away; without TorchServe."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import RequestFailed
from handlergen.local.model import LocalModel
from handlergen.performance.recordings import of_stage, overlapping, read_spans
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.request import Request
from handlergen.runtime.torchserve.streaming import (
    Chunks,
    StreamTimeout,
    drain,
    drain_async,
    gathered,
    wants_chunks,
)
from tests.serving import ServerContext

REST = {"body": {"content-type": "application/json"}, "content-type": "application/json", "Host": "h"}


class Recorder:
    """An outlet that keeps what it is given, and which thread gave it."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes, str]] = []
        self.threads: set[str] = set()
        self.failure: Any = None

    def send(self, item: Item, body: bytes, content_type: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.sent.append((item.index, body, content_type))

    def break_off(self, failure: Any) -> None:
        self.failure = failure


def item(properties: dict[str, Any] | None = None, entry: dict[str, Any] | None = None) -> Item:
    given = REST if properties is None else properties
    made = Item(0, entry or {}, given, Request(given, "r"))
    made.outlet = Recorder()
    return made


COUNT = """
    import time
    def predict(inputs):
        for number in range(inputs["n"]):
            time.sleep(inputs.get("pause", 0))
            if number == inputs.get("fail at"):
                raise RuntimeError("midway")
            yield number
"""


@pytest.mark.parametrize(
    ("properties", "entry", "wanted"),
    [
        (REST, {}, True),
        ({**REST, "accept": "*/*"}, {}, True),
        ({**REST, "Accept": "application/json"}, {}, False),
        ({**REST, "Accept": "text/html, application/json;q=0.9"}, {}, False),
        ({**REST, "accept": "application/json, text/event-stream"}, {}, True),
        ({}, {"data": bytearray(b"1")}, False),
        ({}, {"ts_stream_next": bytearray(b"true")}, True),
        ({}, {"ts_stream_next": bytearray(b" False ")}, False),
        ({}, {"ts_stream_next": bytearray(b"")}, False),
    ],
)
def test_who_gets_chunks(properties: dict[str, Any], entry: dict[str, Any], wanted: bool) -> None:
    made = item(properties, entry)
    assert wants_chunks(made) is wanted
    made.outlet = None
    assert wants_chunks(made) is False


@pytest.mark.parametrize(
    ("chunks", "value"),
    [
        ([], []),
        (["a", "b"], "ab"),
        ([b"a", bytearray(b"\xc3"), b"\xa4"], "aä"),
        ([b"\xff", b"\x00"], b"\xff\x00"),
        ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}]),
        (["a", 1], ["a", 1]),
    ],
)
def test_gathered(chunks: list[Any], value: Any) -> None:
    assert gathered(chunks) == value


def test_what_each_kind_of_chunk_is_sent_as() -> None:
    for chunks, bodies, kind in (
        (["ä", "", "b"], ["ä".encode(), b"b"], "text/plain; charset=utf-8"),
        ([b"\xff", memoryview(b"ab")], [b"\xff", b"ab"], "application/octet-stream"),
        ([{"a": float("nan")}, [1]], [b'{"a":null}\n', b"[1]\n"], "application/x-ndjson"),
        ([b"abcdefgh"], [b"abcde", b"fgh"], "application/octet-stream"),
    ):
        made = item()
        sink = Chunks(made, nan="null", limit=5 if len(bodies[0]) == 5 else 100)
        for chunk in chunks:
            sink.put(chunk)
        assert made.outlet.sent == [(0, body, kind) for body in bodies]
        assert (sink.answer().body, sink.answer().media_type) == (b"", kind)


def test_a_late_chunk_ends_a_stream_and_closes_it() -> None:
    closed = []

    def slow() -> Any:
        try:
            yield 1
            time.sleep(0.05)
            yield 2
        finally:
            closed.append("sync")

    async def stuck() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.sleep(60)
            yield 2
        finally:
            closed.append("async")

    taken: list[int] = []
    with pytest.raises(StreamTimeout, match=r"0\.02 s"):
        drain(slow(), taken.append, 0.02)
    with pytest.raises(StreamTimeout, match=r"0\.02 s"):
        asyncio.run(drain_async(stuck(), taken.append, 0.02))
    assert (taken, closed) == ([1, 1], ["sync", "async"])


def test_an_async_stream_stays_in_one_task() -> None:
    """As generators need that hold a timeout, a task group or an HTTP response open around their yields."""
    tasks = set()

    async def stream() -> AsyncGenerator[int, None]:
        for number in range(3):
            tasks.add(asyncio.current_task())
            await asyncio.sleep(0)
            yield number
        tasks.add(asyncio.current_task())

    asyncio.run(drain_async(stream(), lambda _: None, 1.0))
    assert len(tasks) == 1


def test_predict_gathers_and_stream_does_not(model: Callable[..., LocalModel]) -> None:
    loaded = model(COUNT)
    assert loaded.predict({"n": 3}) == [0, 1, 2]
    assert list(loaded.stream({"n": 3})) == [b"0\n", b"1\n", b"2\n"]
    assert list(loaded.stream({"n": 0})) == []
    seen: list[tuple[bytes, str]] = []
    answer = loaded.request({"n": 2}, on_chunk=lambda body, kind: seen.append((body, kind)))
    assert (answer.status, answer.body, answer.content_type) == (200, b"", "application/x-ndjson")
    assert seen == [(b"0\n", "application/x-ndjson"), (b"1\n", "application/x-ndjson")]


def test_the_first_chunk_is_there_before_the_last_is_made(model: Callable[..., LocalModel]) -> None:
    loaded = model("""
        import threading
        gate = threading.Event()
        def predict(inputs):
            yield "first"
            assert gate.wait(30)
            yield "last"
    """)
    stream = loaded.stream(0)
    assert next(stream) == b"first"
    sys.modules["mymodel"].gate.set()
    assert list(stream) == [b"last"]


def test_a_stream_that_fails_midway_and_the_next_request(
    model: Callable[..., LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = model(COUNT)
    seen: list[bytes] = []
    stream = loaded.stream({"n": 5, "fail at": 2})
    with pytest.raises(RequestFailed, match="predict failed") as failed:
        seen.extend(stream)
    assert failed.value.status == 500
    assert "RuntimeError: midway" in caplog.text
    with pytest.raises(RequestFailed):
        loaded.predict({"n": 5, "fail at": 0})
    assert loaded.predict({"n": 1}) == [0]


def test_a_forgotten_stream_gives_the_device_back(
    model: Callable[..., LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = model(COUNT, lock_timeout_s=20)
    stream = loaded.stream({"n": 10_000, "pause": 0.01})
    assert next(stream) == b"0\n"
    del stream
    assert loaded.predict({"n": 1}) == [0]
    assert caplog.text == ""  # nobody's failure


def test_predict_timeout_is_the_longest_from_chunk_to_chunk(model: Callable[..., LocalModel]) -> None:
    loaded = model(COUNT, predict_timeout_s=1)
    assert loaded.predict({"n": 30, "pause": 0.05}) == list(range(30))  # one and a half seconds in all
    with pytest.raises(RequestFailed, match=r"longer than 1 s") as failed:
        loaded.predict({"n": 2, "pause": 1.5})
    assert failed.value.status == 504


def test_a_generator_where_a_postprocess_waits_is_told(
    model: Callable[..., LocalModel], caplog: pytest.LogCaptureFixture
) -> None:
    """A function that returns a generator made elsewhere cannot be found by reading the source."""
    loaded = model("""
        def parts():
            yield 1
        def predict(inputs):
            return parts()
        def postprocess(outputs):
            return outputs
    """)
    with pytest.raises(RequestFailed) as failed:
        loaded.predict(0)
    assert failed.value.status == 500
    assert "predict returned a generator" in caplog.text


def test_a_preprocess_that_is_an_async_generator_is_handed_on(model: Callable[..., LocalModel]) -> None:
    loaded = model("""
        import asyncio
        class Model:
            async def preprocess(self, inputs):
                for number in range(inputs):
                    await asyncio.sleep(0)
                    yield number
            async def predict(self, numbers):
                async for number in numbers:
                    yield number * number
    """)
    assert loaded.predict(4) == [0, 1, 4, 9]


@pytest.fixture
def stream_batch(serve_project: Callable[..., Any]) -> Callable[..., tuple[ServerContext, list[bytes]]]:
    """`stream_batch(source, *requests)`: one TorchServe batch of (data, properties) pairs; chunks go to a Recorder."""

    def answer(source: str, *requests: tuple[Any, dict[str, Any]]) -> tuple[ServerContext, list[bytes]]:
        worker = serve_project(source, batch_size=len(requests)).worker
        context = ServerContext([properties for _, properties in requests])
        context.outlet = Recorder()
        names = ["body" if properties else "data" for _, properties in requests]
        entries = [
            {name: bytearray(json.dumps(data).encode())} for name, (data, _) in zip(names, requests, strict=True)
        ]
        return context, worker.handle(entries, context)

    return answer


StreamBatch = Callable[..., tuple[ServerContext, list[bytes]]]


def test_a_batch_streams_one_after_the_other_in_the_predicting_thread(
    stream_batch: StreamBatch, tmp_path: Path
) -> None:
    context, bodies = stream_batch(
        COUNT,
        ({"n": 3}, REST),
        ({"n": 2}, {**REST, "Accept": "application/json"}),
        ({"n": 3, "fail at": 1}, REST),
        ({"n": 2}, {}),
        ({"n": 0}, REST),
        ({"n": 3, "fail at": 0}, REST),
    )
    assert bodies[:5] == [b"", b"[0,1]", b"", b"[0,1]", b""]
    assert context.statuses == [200, 200, 200, 200, 200, 500]
    assert json.loads(bodies[5])["type"] == "InternalError"
    sent = [(index, body) for index, body, _ in context.outlet.sent]
    assert sorted(sent) == [(0, b"0\n"), (0, b"1\n"), (0, b"2\n"), (2, b"0\n")]
    streams = [index for index, _ in sent]
    assert streams in ([0, 0, 0, 2], [2, 0, 0, 0])  # none in the middle of another
    assert context.outlet.threads == {threading.current_thread().name}
    assert context.outlet.failure is None
    assert context.headers[3]["ts_stream_next"] == "false"  # gRPC: without it, StreamPredictions kills the worker
    assert "ts_stream_next" not in context.headers[0]
    predictions = of_stage(read_spans(tmp_path / "spans"), "predict")
    assert len(predictions) == 6
    assert overlapping(predictions) == []


def test_a_failed_stream_alone_is_broken_off(stream_batch: StreamBatch) -> None:
    context, bodies = stream_batch(COUNT, ({"n": 3, "fail at": 1}, REST))
    assert bodies == [b""]
    assert context.outlet.failure.status == 500


@pytest.mark.parametrize(
    ("define", "wait"),
    [
        ("def", "assert begun[1 - x].wait(30)"),
        ("async def", "while not begun[1 - x].is_set(): await asyncio.sleep(0.001)"),
    ],
)
def test_postprocesses_that_stream_do_so_beside_each_other_outside_the_lock(
    stream_batch: StreamBatch, tmp_path: Path, define: str, wait: str
) -> None:
    """Each waits, between its chunks, for the other to have begun: one after the other they would wait for ever."""
    source = f"""
        import asyncio, threading
        begun = [threading.Event(), threading.Event()]
        class Model:
            def predict(self, x):
                return x
            {define} postprocess(self, x):
                yield 'a'
                begun[x].set()
                {wait}
                yield 'b'
        """
    context, bodies = stream_batch(source, (0, REST), (1, REST))
    assert bodies == [b"", b""]
    sent = sorted((index, text) for index, text, _ in context.outlet.sent)
    assert sent == [(0, b"a"), (0, b"b"), (1, b"a"), (1, b"b")]
    predictions = of_stage(read_spans(tmp_path / "spans"), "predict")
    assert len(predictions) == 2
    assert max(span.end_ns for span in predictions) < time.monotonic_ns()
