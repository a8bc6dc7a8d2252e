"""Requests that share a predictor process and nothing else: neither memory nor what a hook does to itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.processes.conftest import Crew

Crews = Callable[..., Crew]

BUFFER = """
import time
import numpy
buffer = numpy.zeros(4)

def predict(inputs):
    buffer[:] = inputs
    time.sleep(0.002)  # long enough that the answer before is sent beside this
    return buffer

def postprocess(outputs):
    return outputs.tolist()
"""


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_a_model_may_fill_the_same_memory_again_and_again(crew: Crews, stages: str) -> None:
    found = crew(BUFFER, stages=stages)
    workers = found.ready(4)

    def ask(number: int) -> list[Any]:
        return [workers[number].ask(number * 100 + turn) for turn in range(50)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == [[(200, [number * 100 + turn] * 4) for turn in range(50)] for number in range(4)]


CANCELLED = """
import asyncio

async def predict(inputs):
    if inputs == "bad":
        task = asyncio.ensure_future(asyncio.sleep(10))
        task.cancel()
        await task
    return inputs
"""


def test_a_cancelled_task_ends_its_request_only(crew: Crews) -> None:
    found = crew(CANCELLED)
    worker = found.worker()
    before = found.predictor()
    assert [worker.ask(value)[0] for value in (1, "bad", 2)] == [200, 500, 200]
    assert found.predictors() == [before]


FLOW = """
def first(x):
    if x == "bad":
        raise RuntimeError("the first stage fails")
    return [x]

def second(x):
    return x

FLOW = [("python", first), ("python", second)]
"""


def test_an_instance_that_fails_in_the_first_stage_is_told_at_once(crew: Crews) -> None:
    """Its thread waited for it to come back from there, and was lost for the process's life."""
    worker = crew(FLOW, stages="predictor", lock_timeout_s=60).worker()
    assert worker.failure is None
    began = time.monotonic()
    for instances in (["a", "bad"], ["bad", "a"]) * 5:
        assert worker.ask({"instances": instances}, explain="False")[0] == 500
    assert worker.ask({"instances": ["a", "b"]}, explain="False") == (200, {"predictions": [["a"], ["b"]]})
    assert time.monotonic() - began < 30  # none of them waited for the device until its deadline


NO_MEMORY = """
class Large:
    def __reduce__(self):
        raise MemoryError("there is none")

def preprocess(data):
    return Large() if data == "in" else data

def predict(inputs):
    return Large() if inputs == "out" else inputs
"""


def test_a_lack_of_memory_on_the_way_is_told_as_one(crew: Crews) -> None:
    worker = crew(NO_MEMORY, stages="worker").worker()
    for way in ("in", "out"):
        status, answer = worker.ask(way)
        assert (status, answer["type"]) == (507, "OutOfMemory")
        assert worker.ask("fine") == (200, "fine")


HEALTHY = """
import threading

def is_healthy():
    return threading.Lock()

def predict(inputs):
    return inputs
"""


def test_health_that_cannot_be_pickled_is_told_as_whether_it_is_true(crew: Crews) -> None:
    began = time.monotonic()
    assert crew(HEALTHY).worker().describe()["health"]["healthy"] is True
    assert time.monotonic() - began < 60


STATE = """
class Request:
    pass

class Model:
    def preprocess(self, data, request: Request):
        request.state.seen = ["preprocess"]
        return data
    def predict(self, data, request: Request):
        request.state.seen.append("predict")
        request.state.more = data
        return data
    def postprocess(self, data, request: Request):
        return [request.state.seen, request.state.more]
"""


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_the_state_of_a_request_comes_back_from_predict(crew: Crews, stages: str) -> None:
    assert crew(STATE, stages=stages).worker().ask(7) == (200, [["preprocess", "predict"], 7])
