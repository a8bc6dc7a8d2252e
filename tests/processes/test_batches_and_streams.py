"""Batches of what several workers sent, streams chunk by chunk, explanations and health."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.histories import until
from tests.processes.conftest import Crew

Crews = Callable[..., Crew]

STREAM = """
import json
import os
import time
from pathlib import Path


def note(what, n):
    Path("notes").open("a").write(json.dumps([what, n, time.monotonic()]) + "\\n")


def predict(inputs):
    def chunks():
        note("begin", inputs["n"])
        try:
            for index in range(inputs["chunks"]):
                time.sleep(inputs.get("pause", 0.01))
                if index == inputs.get("dies at"):
                    os._exit(3)
                if index == inputs.get("fails at"):
                    raise RuntimeError("midway")
                yield f"{inputs['n']}:{index};"
        finally:
            note("end", inputs["n"])
    return chunks()
"""

BATCHES = """
import time
from pathlib import Path
import torch


def predict(inputs):
    time.sleep(0.3)
    Path("batches").open("a").write(f"{len(inputs)}\\n")
    if any("bad" in str(each) for each in inputs):
        raise RuntimeError("a bad one")
    return [each["n"] * 2 for each in inputs]
"""

COLLATED = """
from pathlib import Path
import time
import torch


class Doubler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((1,), 2.0))

    def preprocess(self, data):
        return torch.tensor(data, dtype=torch.float32)

    def forward(self, batch):
        time.sleep(0.3)
        Path("batches").open("a").write(f"{tuple(batch.shape)}\\n")
        return batch * self.factor

    def postprocess(self, output):
        return output.tolist()


def load(context):
    return Doubler()
"""


def notes(found: Crew) -> list[list[Any]]:
    path = found.model / "notes"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_chunks_come_one_by_one_and_streams_take_turns(crew: Crews, stages: str) -> None:
    found = crew(STREAM, stages=stages)
    one, other = found.ready(2)
    first = one.later({"n": 1, "chunks": 10, "pause": 0.1})
    until(lambda: len(one.chunks) >= 2)
    assert not first.done()
    second = other.later({"n": 2, "chunks": 3})
    assert first.result(20) == (200, None)
    assert second.result(20) == (200, None)
    assert b"".join(one.chunks) == b"".join(b"1:%d;" % index for index in range(10))
    assert b"".join(other.chunks) == b"2:0;2:1;2:2;"
    assert [note[:2] for note in notes(found)] == [["begin", 1], ["end", 1], ["begin", 2], ["end", 2]]


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_a_worker_that_takes_no_chunks_holds_up_nobody(crew: Crews, stages: str) -> None:
    found = crew(STREAM, stages=stages)
    slow, other = found.ready(2)
    asked = slow.later({"n": 1, "chunks": 200, "pause": 0.005})
    until(lambda: slow.chunks)
    os.kill(slow.pid, signal.SIGSTOP)
    assert other.later({"n": 2, "chunks": 2}).result(20) == (200, None)
    os.kill(slow.pid, signal.SIGCONT)
    assert asked.result(20) == (200, None)
    assert b"".join(slow.chunks) == b"".join(b"1:%d;" % index for index in range(200))


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_a_stream_that_nobody_takes_any_more_is_closed(crew: Crews, stages: str) -> None:
    found = crew(STREAM, stages=stages)
    one, other = found.ready(2)
    one.later({"n": 1, "chunks": 10_000, "pause": 0.02})
    until(lambda: one.chunks)
    one.kill()
    assert other.ask({"n": 2, "chunks": 1})[0] == 200
    assert [note[:2] for note in notes(found)][:2] == [["begin", 1], ["end", 1]]


@pytest.mark.parametrize(
    ("how", "stages"), [("fails at", "worker"), ("fails at", "predictor"), ("dies at", "predictor")]
)
def test_a_stream_that_ends_midway_is_broken_off_and_the_next_one_works(crew: Crews, how: str, stages: str) -> None:
    found = crew(STREAM, stages=stages)
    worker = found.worker()
    worker.ask({"n": 1, "chunks": 5, how: 3, "pause": 0.1})
    assert b"".join(worker.chunks) == b"1:0;1:1;1:2;"
    assert worker.broken_off == 500
    assert worker.ask({"n": 2, "chunks": 1})[0] == 200
    assert b"".join(worker.chunks) == b"2:0;"
    # A client that wants one value gets the chunks together.
    assert worker.ask({"n": 3, "chunks": 3}, accept="application/json") == (200, "3:0;3:1;3:2;")
    assert worker.chunks == []


def test_a_chunk_that_does_not_come_is_limited_and_a_long_stream_is_not(crew: Crews) -> None:
    found = crew(STREAM, predict_timeout_s=1.0)
    worker = found.worker()
    assert worker.ask({"n": 1, "chunks": 8, "pause": 0.3})[0] == 200
    assert len(b"".join(worker.chunks).split(b";")) == 9
    worker.ask({"n": 2, "chunks": 2, "pause": 1000}, accept="application/json")
    status, _ = worker.ask({"n": 3, "chunks": 2}, accept="application/json")
    assert status == 200


def test_what_several_workers_sent_is_one_batch(crew: Crews) -> None:
    found = crew(BATCHES, batch="list", max_batch=4)
    workers = found.ready(6)
    first = workers[0].later({"n": 0})
    time.sleep(0.1)
    others = [worker.later({"n": n}) for n, worker in enumerate(workers[1:], 1)]
    assert [each.result(20) for each in [first, *others]] == [(200, n * 2) for n in range(6)]
    assert (found.model / "batches").read_text().split() == ["1", "4", "1"]
    about = workers[0].describe()["predictor"]
    assert (about["predictions"], about["largest_batch"], about["workers"]) == (3, 4, 6)


def test_a_batch_of_one_worker_is_one_batch_and_one_that_fails_is_tried_item_by_item(crew: Crews) -> None:
    found = crew(BATCHES, batch="list", max_batch=8, linger_ms=300)
    workers = found.ready(3)
    answers = workers[0].batch([{"n": n} for n in range(5)])
    assert [json.loads(body) for _, _, body in answers] == [0, 2, 4, 6, 8]
    assert (found.model / "batches").read_text().split() == ["5"]
    asked = [worker.later(value) for worker, value in zip(workers, ({"n": 1}, {"bad": 1}, {"n": 3}), strict=True)]
    assert [each.result(20)[0] for each in asked] == [200, 500, 200]
    assert [asked[0].result()[1], asked[2].result()[1]] == [2, 6]


def test_samples_of_one_shape_are_collated_and_of_different_shapes_none_fails(crew: Crews) -> None:
    found = crew(COLLATED, max_batch=8, linger_ms=500)
    workers = found.ready(4)
    asked = [worker.later([n, n]) for n, worker in enumerate(workers)]
    assert [each.result(20)[1] for each in asked] == [[0, 0], [2, 2], [4, 4], [6, 6]]
    assert (found.model / "batches").read_text().splitlines() == ["(4, 2)"]
    values: list[Any] = [[1, 2], [3, 4, 5], [6, 7], [[8]]]
    asked = [worker.later(value) for worker, value in zip(workers, values, strict=True)]
    assert [each.result(20) for each in asked] == [(200, [2, 4]), (200, [6, 8, 10]), (200, [12, 14]), (200, [[16]])]


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_explanations_and_health_come_from_the_predictor(crew: Crews, stages: str) -> None:
    found = crew(
        """
        import os
        from pathlib import Path

        def load(context):
            return {"pid": os.getpid()}

        def predict(inputs, model):
            return {"predicted": inputs, "pid": model["pid"]}

        def explain(inputs, model):
            return {"explained": inputs, "pid": os.getpid(), "loaded by": model["pid"]}

        def is_healthy(model):
            return not Path("ill").exists()
        """,
        stages=stages,
    )
    worker = found.worker()
    predictor = found.predictor()
    assert worker.ask({"x": 1}) == (200, {"predicted": {"x": 1}, "pid": predictor})
    status, body = worker.ask({"x": 1}, explain="True", url_path="")
    assert (status, body) == (200, {"explained": {"x": 1}, "pid": predictor, "loaded by": predictor})
    assert worker.describe()["health"]["healthy"] is True


def test_big_values_cross_both_ways(crew: Crews) -> None:
    found = crew(
        """
        import torch

        def preprocess(data):
            return {"x": torch.full((300_000,), float(data)), "y": torch.arange(10)}

        def predict(inputs):
            return {"x": inputs["x"] + 1, "y": inputs["y"].flip(0)}

        def postprocess(outputs):
            return [float(outputs["x"].sum()), outputs["y"].tolist()]
        """
    )
    worker = found.worker()
    for number in range(20):
        assert worker.ask(number) == (200, [300_000.0 * (number + 1), list(range(9, -1, -1))])
