"""The context of a request (`contextvars`, decimal, numpy's error state) where a predictor process has the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contexts import MODULE, answer, requests
from tests.processes.conftest import Crew

Crews = Callable[..., Crew]


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_each_request_has_its_own_context_in_all_of_its_hooks(crew: Crews, stages: str) -> None:
    # What load sets is there in the process that loads; setup and import would be everywhere.
    source = MODULE if stages == "predictor" else MODULE.replace("def load(context)", "def setup(context)")
    workers = crew(source, stages=stages).ready(2)

    def ask(number: int) -> None:
        for turn in range(6):
            wanted = requests(10 * number + turn, 1 + turn % 4)
            answers = [json.loads(body) for _, _, body in workers[number].batch(wanted)]
            assert answers == [answer(request) for request in wanted]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, range(2)))
    seen = [worker.describe()["predictor"]["stages"] for worker in workers]
    assert seen == [stages] * 2  # no worker had to relay whole requests


HIDDEN = """
import contextvars

def setup(context):
    global VARIABLES
    VARIABLES = {"user": contextvars.ContextVar("user", default="nobody")}

def preprocess(data):
    VARIABLES["user"].set(data)
    return data

def predict(inputs):
    return [inputs, VARIABLES["user"].get()]
"""


def test_a_variable_that_another_process_cannot_find_moves_all_hooks_there(crew: Crews) -> None:
    worker = crew(HIDDEN).worker()
    assert worker.ask("ann") == (200, ["ann", "ann"])
    about = worker.describe()["predictor"]
    assert about["stages"] == "predictor"
    assert "the context variable 'user' is no attribute of a module" in about["stages_because"]
    assert worker.ask("bob") == (200, ["bob", "bob"])
