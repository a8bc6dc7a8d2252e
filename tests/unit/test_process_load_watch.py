"""What the watch over load says, and that it never stands in the way."""

from __future__ import annotations

import dataclasses
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handlergen.project import open_project
from handlergen.runtime.model import LoadedModel
from handlergen.runtime.process import fingerprint, load_watch
from handlergen.runtime.process.load_watch import LoadWatch
from handlergen.staging import make_bundle

Watched = Callable[..., tuple[str, str]]


@pytest.fixture
def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Watched]:
    """`watched(source)` loads a module and returns the verdict and the warning."""
    monkeypatch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def make(source: str, *, stages: str = "worker", auto: bool = True, **files: str) -> tuple[str, str]:
        for name, text in {"watched": source, **files}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        project = open_project(tmp_path / "watched.py", overrides={"predictor": "process"}, environ={})
        bundle = make_bundle(project)
        settings = dataclasses.replace(bundle.settings, stages=stages, stages_auto=auto)
        bundle = dataclasses.replace(bundle, settings=settings)
        logger = logging.getLogger("watched")
        logger.setLevel(logging.DEBUG)
        watch = LoadWatch(bundle, tmp_path, logger)
        model = LoadedModel(bundle, tmp_path, gpu_id=None, before_load=watch.begin)
        try:
            verdict = watch.verdict(model.hooks)
        finally:
            model.close()
        said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        return verdict, "\n".join(said)

    yield make
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


CHANGES = """
import watched_labels

def load(context):
    vars(watched_labels).update(LABELS=["null"])

def preprocess(data):
    return cleaned(data)

def cleaned(data):
    return watched_labels.LABELS

def predict(inputs):
    return inputs
"""


def test_what_is_said(watched: Watched) -> None:
    verdict, warning = watched(CHANGES, watched_labels="LABELS = []\n")
    assert verdict == "preprocess uses watched_labels.LABELS (through cleaned), which load changes"
    assert warning == (
        f"handlergen: model watched: {verdict}. Make watched_labels.LABELS in setup(context), which every worker "
        "runs, or where the module is imported. Until then preprocess and postprocess run in the predictor process, "
        "as with stages: predictor."
    )


def test_who_wrote_it_himself_is_only_warned(watched: Watched) -> None:
    verdict, warning = watched(CHANGES, auto=False, watched_labels="LABELS = []\n")
    assert verdict == ""
    assert warning.endswith("They run in the workers all the same, as stages: worker says.")


def test_with_the_stages_in_the_predictor_process_there_is_nothing_to_see(watched: Watched) -> None:
    assert watched(CHANGES, stages="predictor", watched_labels="LABELS = []\n") == ("", "")


def test_names_that_come_and_go(watched: Watched) -> None:
    verdict, warning = watched(
        """
        OLD = 1

        def load(context):
            globals().update(NEW=1)
            del globals()["OLD"]

        def preprocess(data):
            return OLD

        def predict(inputs):
            return inputs

        def postprocess(outputs):
            return NEW
        """
    )
    assert verdict == "preprocess uses OLD, which load removes"
    assert "postprocess uses NEW, which load makes." in warning


def test_the_words_of_sagemaker(watched: Watched) -> None:
    verdict, warning = watched(
        """
        LABELS = []

        def model_fn(model_dir):
            LABELS.append(1)

        def predict_fn(data, model):
            return data

        def output_fn(prediction, accept):
            return LABELS
        """
    )
    assert verdict == "output_fn uses LABELS, which model_fn changes"
    assert "in pre_model_fn(model_dir)" in warning


@pytest.mark.parametrize("read", ["self.label", "vars(self)", "getattr(self, data)"])
def test_the_instance_of_a_class(watched: Watched, read: str) -> None:
    verdict, warning = watched(
        f"""
        class Model:
            def __init__(self):
                self.label = 1

            def preprocess(self, data):
                return {read}

            def predict(self, inputs):
                return inputs
        """
    )
    assert verdict == "preprocess uses self.label, which is not in a worker's Model as loading leaves it"
    assert "Make label a class attribute, or a constant of the module." in warning


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 2
        self.linear = torch.nn.Linear(1, 1)
        {made}

    def preprocess(self, data):
        return torch.tensor([float(data)]) * {read}

    def forward(self, batch):
        return self.linear(batch)
"""


@pytest.mark.parametrize(
    ("made", "read", "told"),
    [
        ("", "self.scale", ""),
        ("self.scale = self.linear.weight.device.type", "len(self.scale)", "uses self.scale"),
        ("", "self.linear.bias", "uses self.linear"),
        ("", "self(data)", "uses self.linear"),
        ("self.scale = self.linear.weight.item()", "self.scale", "cannot make Net (RuntimeError"),
    ],
)
def test_an_nn_module_without_weights(watched: Watched, made: str, read: str, told: str) -> None:
    verdict, _ = watched(MODULE.format(made=made, read=read))
    assert told in verdict
    assert bool(told) == bool(verdict)


OTHER = """
import torch

class Other(torch.nn.Linear):
    def preprocess(self, data):
        return torch.zeros(1)
"""


def test_load_that_returns_another_class(watched: Watched) -> None:
    load = "\ndef load(context):\n    from watched_other import Other\n    return Other(1, 1)\n"
    verdict, _ = watched(MODULE.format(made="", read="2") + load, watched_other=OTHER)
    assert verdict == "preprocess uses self.preprocess, which is not in a worker's Net as loading leaves it"


def test_a_project_that_exits_while_it_is_looked_at(watched: Watched) -> None:
    source = """
    TABLE = []

    def load(context):
        TABLE.append(1)

    def preprocess(data):
        import watched_program
        return TABLE

    def predict(inputs):
        return inputs
    """
    assert watched(source, watched_program="raise SystemExit(3)\n")[0].startswith("preprocess uses TABLE")


def test_the_time_of_a_slow_setup_is_not_the_watchs(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_SECONDS", 0.5)
    verdict, _ = watched(
        """
        import time
        TABLE = {"a": 1}

        def setup(context):
            time.sleep(1)

        def load(context):
            TABLE["a"] = 2
            time.sleep(1)

        def preprocess(data):
            return TABLE

        def predict(inputs):
            return inputs
        """
    )
    assert verdict == "preprocess uses TABLE, which load changes"


@pytest.mark.parametrize("error", [ValueError, RecursionError, SystemExit])
def test_a_watch_that_fails_sees_nothing(
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(load_watch, "Reach", fail)
    assert watched(CHANGES, watched_labels="LABELS = []\n") == ("", "")
    (told,) = [each for each in caplog.records if "cannot be seen" in each.getMessage()]
    assert told.levelno == logging.DEBUG
