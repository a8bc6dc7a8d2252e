"""The first value that cannot be sent to or from the predictor process: whole requests are sent from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.processes.conftest import Crew

Crews = Callable[..., Crew]

MODULE = """
import os
import threading


class OnlyInAWorker:
    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return (__import__, ("nowhere_to_be_found",))


def wrapped(value, how):
    return {"unpicklable": lambda: value, "unreadable": OnlyInAWorker(value)}.get(how, value)


def unwrapped(value):
    return value() if callable(value) else getattr(value, "value", value)


def preprocess(data):
    return {**data, "n": wrapped(data["n"], data.get("inputs")), "preprocessed": os.getpid()}


def predict(inputs):
    n = unwrapped(inputs["n"])
    if inputs.get("chunks"):
        return chunks(n)
    return {**inputs, "n": wrapped(n * 2, inputs.get("outputs")), "predicted": os.getpid()}


def chunks(n):
    yield f"{n}"
    yield f"{n};"


def postprocess(outputs):
    return {**outputs, "n": unwrapped(outputs["n"])}
"""


@pytest.mark.parametrize("how", ["unpicklable", "unreadable"])
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_the_request_is_answered_rightly_and_so_are_those_after_it(crew: Crews, where: str, how: str) -> None:
    found = crew(MODULE)
    worker, other = found.worker(), found.worker()
    status, body = worker.ask({"n": 1})
    assert (status, body["n"], body["preprocessed"]) == (200, 2, worker.pid)
    predictor = body["predicted"]
    for request in ({"n": 2, where: how}, {"n": 3}, {"n": 4, where: how}):
        status, body = worker.ask(request)
        assert (status, body["n"]) == (200, request["n"] * 2)
        assert body["preprocessed"] == body["predicted"] == predictor
    about = worker.describe()["predictor"]
    assert about["stages"] == "predictor"
    hook = "preprocess" if where == "inputs" else "predict"
    assert about["stages_because"].startswith(f"what {hook} returned cannot be ")
    log = worker.log.read_text()
    assert log.count("whole requests") == 1
    assert "`stages: predictor`" in log
    assert "Traceback" not in found.log()
    assert other.ask({"n": 5})[1]["preprocessed"] == other.pid  # each worker for itself
    assert other.describe()["predictor"]["stages"] == "worker"


def test_the_others_of_its_batch_are_answered_once_and_instances_of_one_request_too(crew: Crews) -> None:
    found = crew(MODULE)
    worker, other = found.worker(), found.worker()
    values: list[Any] = [{"n": n} for n in range(6)]
    values[2]["inputs"] = "unpicklable"
    answers = [json.loads(body) for _, _, body in worker.batch(values)]
    assert [answer["n"] for answer in answers] == [0, 2, 4, 6, 8, 10]
    assert [answer["preprocessed"] == worker.pid for answer in answers] == [n != 2 for n in range(6)]

    instances = [{"n": 1}, {"n": 2, "inputs": "unpicklable"}, {"n": 3}]
    status, body = other.ask({"instances": instances}, explain="False")
    assert status == 200
    assert [answer["n"] for answer in body["predictions"]] == [2, 4, 6]


def test_chunks_come_from_the_process_too(crew: Crews) -> None:
    worker = crew(MODULE.replace("def postprocess", "def unused")).worker()
    assert worker.ask({"n": 7, "chunks": True, "inputs": "unpicklable"}) == (200, None)
    assert b"".join(worker.chunks) == b"77;"
    assert worker.ask({"n": 8, "chunks": True}) == (200, None)
    assert b"".join(worker.chunks) == b"88;"
