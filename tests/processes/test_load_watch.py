"""What load changes out of sight of the source's analysis is seen when it runs, and answered rightly."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.processes.conftest import Crew, CrewWorker, eventually

Crews = Callable[..., Crew]

IN_PLACE = """
import os
import sys

TABLE = ["setup"]


def setup(context):
    TABLE[:] = ["setup"]


def load(context):
    setattr(sys.modules[__name__], "TABLE", [])
    vars(sys.modules[__name__])["TABLE"].append("load")
    return "model"


def preprocess(data):
    return {**data, "seen": TABLE[0], "preprocessed": os.getpid()}


def predict(inputs, model):
    if inputs.get("die"):
        os._exit(3)
    return {**inputs, "predicted": os.getpid()}


def postprocess(outputs):
    return {**outputs, "also seen": TABLE[0]}
"""

CONFIGURATION = """
import configparser

READER = configparser.ConfigParser()


def load(context):
    READER.read_string("[labels]\\nzero=null")


def preprocess(data):
    return data


def predict(inputs):
    return inputs


def postprocess(outputs):
    return READER.get("labels", "zero", fallback="not loaded")
"""

SINGLETON = """
class Registry:
    _only = None

    def __new__(cls):
        if cls._only is None:
            cls._only = super().__new__(cls)
            cls._only.labels = ["not loaded"]
        return cls._only


def load(context):
    registry = Registry()
    registry.labels[0] = "null"


def preprocess(data):
    return data


def predict(inputs):
    return inputs


def postprocess(outputs):
    return Registry().labels[0]
"""

CONTEXT = """
def load(context):
    context.config["label"] = "null"


def preprocess(data):
    return data


def predict(inputs):
    return inputs


def postprocess(outputs, context):
    return context.config.get("label", "not loaded")
"""

MODEL_CLASS = """
class Model:
    label = "not loaded"

    def load(self):
        self.__dict__.update(label="null")

    def predict(self, inputs):
        return inputs

    def postprocess(self, outputs):
        return self._named()

    def _named(self):
        return self.label
"""

MODULE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.label = "not loaded"
        self.linear = torch.nn.Linear(2, 2)

    def preprocess(self, data):
        return torch.ones(2)

    def get_extra_state(self):
        return "null"

    def set_extra_state(self, state):
        self.label = state

    def forward(self, batch):
        return self.linear(batch)

    def postprocess(self, output):
        return self.label
"""

ORDINARY = """
import functools
import logging
import os
import re
import threading

import torch

LOGGER = logging.getLogger(__name__)
LOCK = threading.Lock()
WORDS = re.compile("[a-z]+")
TABLE = torch.arange(10)
MODEL = None


def setup(context):
    global TOKENS
    TOKENS = {"null": 0}


@functools.lru_cache
def token(word):
    return TOKENS.get(word, len(TOKENS))


def load(context):
    global MODEL
    MODEL = torch.nn.Linear(1, 1)
    predict(preprocess({"text": "null one"}))  # warm
    LOGGER.warning("loaded")
    return MODEL


def preprocess(data):
    with LOCK:
        found = [token(word) for word in WORDS.findall(data["text"])]
    return {"tokens": found, "preprocessed": os.getpid()}


def predict(inputs):
    return {**inputs, "predicted": os.getpid()}


def postprocess(outputs):
    return {**outputs, "first": int(TABLE[0]), "postprocessed": os.getpid()}
"""


def decided(crew: Crews, source: str, stages: str = "auto", **settings: Any) -> Crew:
    """A crew with `stages: auto` whose source was taken to allow `stages: worker`, whether it does or not."""
    found = crew(source, stages=stages, **settings)
    path = found.model / "handlergen.json"
    bundle = json.loads(path.read_text())
    assert bundle["settings"]["stages_auto"] is (stages == "auto")
    bundle["settings"]["stages"] = "worker"
    path.write_text(json.dumps(bundle))
    return found


def started(found: Crew) -> CrewWorker:
    worker = found.worker()
    assert worker.failure is None
    return worker


def test_a_global_that_load_replaces_is_answered_from_the_predictor_process(crew: Crews) -> None:
    found = decided(crew, IN_PLACE)
    workers = [started(found), started(found)]
    for worker in workers:
        status, body = worker.ask({"n": 1})
        assert (status, body["seen"], body["also seen"]) == (200, "load", "load")
        assert body["preprocessed"] == body["predicted"] == found.predictor()
        said = worker.describe()
        assert said["predictor"]["stages"] == "predictor"
        assert said["predictor"]["stages_because"] == "preprocess uses TABLE, which load changes"
        assert set(said) >= {"input", "output"}
    eventually(lambda: "Make TABLE in setup(context)" in found.log())
    assert found.log().count("which load changes") == 2  # once for each hook, in one warning
    assert found.log().count("handlergen: model") == 1
    batch = workers[0].batch([{"n": n} for n in range(5)])
    assert [json.loads(body)["n"] for _, _, body in batch] == list(range(5))


@pytest.mark.parametrize(
    ("source", "settings"),
    [(CONFIGURATION, {}), (SINGLETON, {}), (CONTEXT, {"config": {"other": 1}}), (MODEL_CLASS, {})],
    ids=["a reader that reads", "a singleton", "the context's config", "an attribute of the instance"],
)
def test_what_load_changes_out_of_sight_is_answered_rightly(
    crew: Crews, source: str, settings: dict[str, Any]
) -> None:
    found = decided(crew, source, **settings)
    worker = started(found)
    assert worker.ask({}) == (200, "null")
    assert worker.describe()["predictor"]["stages"] == "predictor"


def test_extra_state_of_a_module_is_answered_rightly(crew: Crews) -> None:
    import torch

    found = crew(MODULE, stages="predictor")
    state = {
        "linear.weight": torch.ones(2, 2),
        "linear.bias": torch.zeros(2),
        "_extra_state": "null",
    }
    torch.save(state, found.model / "net.pt")
    path = found.model / "handlergen.json"
    bundle = json.loads(path.read_text())
    bundle["settings"].update(
        stages="worker", stages_auto=True, weights="net.pt", weights_format="state_dict"
    )
    path.write_text(json.dumps(bundle))
    worker = started(found)
    assert worker.ask({}) == (200, "null")
    because = worker.describe()["predictor"]["stages_because"]
    assert because == "postprocess uses self.label, which is not in a worker's Net as loading leaves it"


def test_who_wrote_stages_worker_is_warned_and_obeyed(crew: Crews) -> None:
    found = decided(crew, IN_PLACE, stages="worker")
    worker = started(found)
    status, body = worker.ask({"n": 1})
    assert (status, body["seen"], body["preprocessed"]) == (200, "setup", worker.pid)
    assert worker.describe()["predictor"]["stages"] == "worker"
    eventually(lambda: "They run in the workers all the same, as stages: worker says." in found.log())


def test_an_ordinary_module_keeps_its_stages_in_the_workers(crew: Crews) -> None:
    found = decided(crew, ORDINARY)
    worker = started(found)
    status, body = worker.ask({"text": "null null one"})
    assert (status, body["tokens"], body["first"]) == (200, [0, 0, 1], 0)
    assert body["preprocessed"] == body["postprocessed"] == worker.pid
    assert body["predicted"] == found.predictor()
    said = worker.describe()["predictor"]
    assert (said["stages"], "stages_because" in said) == ("worker", False)
    assert "which load" not in found.log()


def test_the_next_process_answers_rightly_too(crew: Crews) -> None:
    found = decided(crew, IN_PLACE)
    workers = [started(found), started(found)]
    before = found.predictor()
    os.kill(before, signal.SIGKILL)
    for worker in workers:
        status, body = worker.ask({"n": 1})
        assert (status, body["seen"], body["also seen"]) == (200, "load", "load")
        assert body["preprocessed"] == found.predictor() != before
    assert workers[0].ask({"die": True})[0] == 500
    eventually(lambda: workers[1].ask({"n": 2})[0] == 200)
    assert workers[0].ask({"n": 3})[1]["seen"] == "load"


CHANGEABLE = IN_PLACE.replace(
    "def load(context):\n",
    """def load(context):
    import pathlib
    if not pathlib.Path("now").exists():
        return "model"
""",
)


@pytest.mark.parametrize("busy", [False, True])
def test_a_process_that_says_otherwise_than_the_one_before_is_followed(crew: Crews, busy: bool) -> None:
    found = decided(crew, CHANGEABLE)
    worker, other = started(found), started(found)
    status, body = worker.ask({"n": 1})
    assert (status, body["seen"], body["preprocessed"]) == (200, "setup", worker.pid)
    (found.model / "now").touch()
    if busy:  # a request is prepared by a worker, and its process dies before it is predicted
        os.kill(found.predictor(), signal.SIGSTOP)
        waiting = worker.later({"n": 2})
        time.sleep(0.5)  # until it has been
        os.kill(found.predictor(), signal.SIGKILL)
        status, body = waiting.result(30)
    else:
        os.kill(found.predictor(), signal.SIGKILL)
        eventually(lambda: len(found.predictors()) == 1)
        status, body = worker.ask({"n": 2})
    assert (status, body["n"], body["seen"], body["also seen"]) == (200, 2, "load", "load")
    assert other.ask({"n": 3})[1]["seen"] == "load"
    # And back: who relays keeps relaying, and is answered.
    (found.model / "now").unlink()
    os.kill(found.predictor(), signal.SIGKILL)
    status, body = worker.ask({"n": 4})
    assert (status, body["seen"], body["preprocessed"]) == (200, "setup", found.predictor())
