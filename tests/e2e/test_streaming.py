"""Answers that are sent while they are made, through a real TorchServe: REST and gRPC, batches of one and of eight."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import RequestFailed, ServerError
from handlergen.performance.recordings import of_stage, overlapping
from tests.archives import make_archive

pytestmark = pytest.mark.e2e

# As Truss's documentation writes a streaming model: load, and a predict that is a generator.
TOKENS = """
import time
from pathlib import Path

class Model:
    def __init__(self, **kwargs):
        self._words = None

    def load(self):
        self._words = ["one", "two", "three", "four", "five", "six"]

    def preprocess(self, request):
        if not isinstance(request, dict):
            return {"words": 2}
        return request

    def predict(self, model_input):
        def inner():
            for number in range(model_input.get("words", 6)):
                time.sleep(model_input.get("pause", 0.1))
                if number == model_input.get("fail at"):
                    raise RuntimeError("the GPU is on fire")
                yield self._words[number] + " "
                if "seen" in model_input:
                    self._until_seen(Path(model_input["seen"]), number + 1)
        return inner()

    def _until_seen(self, seen, count):
        deadline = time.monotonic() + 20
        while seen.stat().st_size < count:
            if time.monotonic() > deadline:
                raise RuntimeError("the client does not get what was sent")
            time.sleep(0.005)
"""

# An async generator, and a preprocess that is one and hands itself on.
ASYNC = """
import asyncio

class Model:
    async def preprocess(self, inputs):
        for number in range(inputs["n"]):
            await asyncio.sleep(0.02)
            yield number

    async def predict(self, numbers):
        async for number in numbers:
            await asyncio.sleep(0.02)
            yield {"square": number * number}
"""

# No stream: sync and async hooks mixed, the answer in one piece.
WHOLE = """
import time

class Model:
    async def preprocess(self, inputs):
        return inputs["x"]

    def predict(self, x):
        time.sleep(0.02)
        return x * 2

    def postprocess(self, doubled):
        time.sleep(0.3)
        return {"doubled": doubled}
"""


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("streaming")
    return shared(
        make_archive(home, "words", TOKENS, workers_per_device=2),
        make_archive(home, "words8", TOKENS, batch_size=8, max_batch_delay_ms=500),
        make_archive(home, "squares", ASYNC),
        make_archive(home, "whole", WHOLE, workers_per_device=2),
        make_archive(home, "whole8", WHOLE, batch_size=8, max_batch_delay_ms=500),
    )


def calls(client: Any, over: str) -> Callable[..., Iterable[bytes]]:
    found: Callable[..., Iterable[bytes]] = {"rest": client.stream, "grpc": client.stream_grpc}[over]
    return found


@pytest.mark.parametrize("over", ["rest", "grpc"])
@pytest.mark.parametrize("model", ["words", "words8"])
def test_chunks_arrive_while_the_rest_is_made(server: Any, tmp_path: Path, model: str, over: str) -> None:
    seen = tmp_path / "seen"
    seen.touch()
    chunks = []
    for chunk in calls(server.client, over)(model, {"pause": 0, "seen": str(seen)}):
        chunks.append(chunk)
        with seen.open("ab") as file:  # the model makes no further word before it has read this
            file.write(b".")
    assert chunks == [b"one ", b"two ", b"three ", b"four ", b"five ", b"six "]


@pytest.mark.parametrize("over", ["rest", "grpc"])
def test_an_async_generator_from_an_async_generator(server: Any, over: str) -> None:
    chunks = calls(server.client, over)("squares", {"n": 5})
    assert [json.loads(chunk) for chunk in chunks] == [{"square": n * n} for n in range(5)]


def test_the_content_type_is_that_of_the_first_chunk(server: Any) -> None:
    client = server.client
    assert client.predict("words", {"words": 1}).content_type.startswith("text/plain")
    assert client.predict("squares", {"n": 1}).content_type == "application/x-ndjson"
    events = client.predict("words", {"words": 1}, headers={"Accept": "text/event-stream"})
    assert events.content_type == "text/event-stream"
    assert client.predict("words", {"words": 0}).body == b""
    whole = client.predict("words", {"words": 2}, headers={"Accept": "application/json"})
    assert (whole.content_type, whole.json()) == ("application/json", "one two ")


def test_a_failure_midway_breaks_the_stream_off_and_the_next_works(server: Any) -> None:
    client, pids = server.client, set(server.worker_pids("words"))
    question = {"fail at": 2, "pause": 0.01}
    for _ in range(3):
        arrived: list[bytes] = []
        with pytest.raises(ServerError, match="broke"):
            arrived.extend(client.stream("words", question))
        parts: list[bytes] = []
        with pytest.raises(RequestFailed, match="request id") as failed:
            parts.extend(client.stream_grpc("words", question))
        assert b"one two ".startswith(b"".join(arrived))  # a reset connection may drop what was not read yet
        assert parts == [b"one ", b"two "]
        assert "fire" not in str(failed.value)
        assert client.predict("words", {"words": 1, "pause": 0}).body == b"one "
    assert set(server.worker_pids("words")) == pids
    assert server.log_text().count("the GPU is on fire") >= 6


@pytest.mark.parametrize("model", ["whole", "whole8", "words", "words8"])
def test_every_grpc_call_to_every_model_leaves_the_worker_alive(server: Any, model: str) -> None:
    """In TorchServe, StreamPredictions to a model that does not stream, and Predictions to one that does, kill it."""
    client, pids = server.client, server.worker_pids(model)
    question: dict[str, Any] = {"x": 21, "words": 3, "pause": 0.01}
    answer = b'{"doubled":42}' if model.startswith("whole") else b'"one two three "'
    plain = client.grpc.message("PredictionsRequest", model_name=model, input={"data": json.dumps(question).encode()})
    # By a client that knows nothing of handlergen:
    parts = [bytes(part.prediction) for part in client.grpc.stream("StreamPredictions", plain, timeout=30)]
    assert b"".join(parts) == answer
    assert bytes(client.grpc.call("Predictions", plain, timeout=30).prediction) == answer
    assert b"".join(client.stream_grpc(model, question)) in (answer, b"one two three ")
    assert server.worker_pids(model) == pids


@pytest.mark.parametrize("model", ["words", "words8"])
def test_streams_at_once_each_get_their_own_chunks(server: Any, model: str) -> None:
    client = server.client
    kinds: list[tuple[str, dict[str, Any]]] = [
        (over, {"words": words, "pause": 0.02}) for over in ("rest", "grpc") for words in (1, 3, 5)
    ]
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(list, calls(client, over)(model, question)) for over, question in kinds]
        wholes = [
            pool.submit(client.predict, model, {"words": 2, "pause": 0.02}, headers={"Accept": "application/json"})
            for _ in range(2)
        ]
        words = ["one", "two", "three", "four", "five", "six"]
        for (_, question), stream in zip(kinds, streams, strict=True):
            expected = "".join(f"{word} " for word in words[: question["words"]])
            assert b"".join(stream.result(60)).decode() == expected
        assert {whole.result(60).json() for whole in wholes} == {"one two "}


def test_in_a_batch_a_failed_stream_ends_and_the_others_do_not(server: Any) -> None:
    client = server.client
    with ThreadPoolExecutor(4) as pool:
        failing = pool.submit(lambda: list(client.stream("words8", {"fail at": 1, "pause": 0.02})))
        fine = pool.submit(lambda: list(client.stream("words8", {"words": 4, "pause": 0.02})))
        whole = pool.submit(client.predict_grpc, "words8", {"words": 2, "pause": 0.02})
        assert b"".join(fine.result(60)) == b"one two three four "
        assert whole.result(60).json() == "one two "
        with contextlib.suppress(ServerError):  # it came in a batch of its own
            assert b"".join(failing.result(60)) == b"one "


def test_the_device_is_held_for_the_life_of_the_generator(server: Any) -> None:
    """One predict span a stream, as long as the stream, and no prediction of another worker or model within."""
    client = server.client
    began = time.monotonic_ns()
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(lambda: list(client.stream("words", {"pause": 0.1}))) for _ in range(2)]
        time.sleep(0.15)
        others = [pool.submit(client.predict, "whole", {"x": x}) for x in range(2)]
        assert [len(stream.result(60)) for stream in streams] == [6, 6]
        assert [other.result(60).json()["doubled"] for other in others] == [0, 2]
    predictions = [span for span in of_stage(server.spans(), "predict") if span.start_ns > began]
    assert len(predictions) == 4
    assert overlapping(predictions) == []
    of_streams = [span for span in predictions if span.model == "words"]
    assert len(of_streams) == 2
    for span in of_streams:
        assert (span.end_ns - span.start_ns) / 1e9 >= 0.6  # six chunks, a tenth of a second before each


def test_slow_postprocesses_overlap_with_each_other_and_with_a_predict(server: Any) -> None:
    client = server.client
    for model in ("whole", "whole8"):
        began = time.monotonic_ns()
        gate = threading.Barrier(2)

        def ask(x: int, model: str = model, gate: threading.Barrier = gate) -> Any:
            gate.wait()
            return client.predict(model, {"x": x}).json()["doubled"]

        with ThreadPoolExecutor(3) as pool:
            stream = pool.submit(lambda: list(client.stream("words", {"pause": 0.1})))
            time.sleep(0.05)
            assert list(pool.map(ask, [1, 2])) == [2, 4]
            again = client.predict(model, {"x": 3}).json()
            assert again == {"doubled": 6}
            stream.result(60)
        spans = [span for span in server.spans() if span.start_ns > began and span.model == model]
        answers = of_stage(spans, "postprocess")[:2]
        assert answers[0].start_ns < answers[1].end_ns
        assert answers[1].start_ns < answers[0].end_ns
        predictions = of_stage(spans, "predict")
        assert overlapping(predictions) == []
