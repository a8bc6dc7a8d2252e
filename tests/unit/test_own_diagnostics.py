"""What a module does to logging, warnings and the standard streams silences nothing that handlergen has to say."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from handlergen.runtime.diagnostics import logger

DICT_CONFIG = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
    "root": {"level": "DEBUG", "handlers": ["out"]},
})
"""
DISABLE = "import logging; logging.disable()\n"
FORCE = "import logging; logging.basicConfig(force=True, level='CRITICAL', handlers=[logging.NullHandler()])\n"
OFF = """
import logging
for each in (logging.getLogger(), *map(logging.getLogger, ("handlergen", "handlergen.m", "ts.service"))):
    each.handlers.clear()
    each.disabled = True
logging.setLogRecordFactory(lambda *what, **more: 1 / 0)
"""
REPLACED = "import io, sys; sys.stdout = io.StringIO(); sys.stderr = io.StringIO()\n"
CLOSED = "import sys; sys.stdout.close(); sys.stderr.close()\n"
WARNINGS = "import warnings; warnings.simplefilter('error')\n"
EFFECTS = [DICT_CONFIG, DISABLE, FORCE, OFF, REPLACED, CLOSED, WARNINGS]
NAMES = ["dictConfig", "disable", "force", "off", "replaced", "closed", "warnings"]
HOOKS = """
def load(context):
    LOAD
    context.logger.warning("load speaks")
    return 3

def preprocess(data):
    HOOK
    return data["x"]

def predict(inputs, model, context):
    context.logger.warning("predict speaks")
    if inputs < 0:
        raise RuntimeError("no score below zero")
    return inputs * model
"""


def scorer(tmp_path: Path, effect: str, place: str) -> Path:
    call = f"exec({effect!r})"
    text = HOOKS.replace("LOAD", call if place == "load" else "pass").replace(
        "HOOK", call if place == "hook" else "pass"
    )
    (tmp_path / "scorer.py").write_text((effect if place == "import" else "") + text)
    return tmp_path / "scorer.py"


def handlergen(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from handlergen.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["import", "hook"])
@pytest.mark.parametrize("effect", EFFECTS, ids=NAMES)
def test_predict_says_what_it_says_otherwise(tmp_path: Path, effect: str, place: str) -> None:
    source = scorer(tmp_path, effect, place)
    failed = handlergen("predict", source, '{"x": -1}', "--raise")
    assert failed.returncode == 4
    assert "predict speaks" in failed.stderr
    assert failed.stderr.count("RuntimeError: no score below zero") == 1
    assert "Error: 500: The model's predict failed" in failed.stderr


@pytest.mark.parametrize("effect", EFFECTS, ids=NAMES)
def test_a_worker_logs_to_the_output_that_it_had(tmp_path: Path, effect: str) -> None:
    """A worker's log is the standard output that TorchServe gave it."""
    scorer(tmp_path, effect, "load")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, tmp_path / "worker.py"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "load speaks" in done.stdout
    assert "request r1 failed in predict with status 500" in done.stdout
    assert done.stdout.count("RuntimeError: no score below zero") == 1
    if effect != REPLACED:  # what the process prints then is the module's own affair
        assert done.stdout.endswith("printed at the end\n")


WORKER = """
import sys
sys.path.insert(0, ".")
from pathlib import Path
from types import SimpleNamespace
from handlergen import __version__
from handlergen.inspection.project import open_project
from handlergen.local.requests import LocalContext, body_request
from handlergen.project.settings import to_runtime
from handlergen.runtime.contract import CONTRACT_FILE, Bundle
from handlergen.runtime.worker import Worker

project = open_project(Path("scorer.py").resolve(), overrides={"predictor": "worker"}, environ={})
Path(CONTRACT_FILE).write_text(Bundle(__version__, project.contract, to_runtime(project.settings)).to_json())
properties = {"model_dir": ".", "gpu_id": None, "batch_size": 1}
worker = Worker.start(SimpleNamespace(system_properties=properties, model_name="scorer"))
entry, headers = body_request(b'{"x": -1}', "application/json")
worker.handle([entry], LocalContext(["r1"], [headers], None))
worker.close()
print("printed at the end", flush=True)
"""


def test_a_program_hears_handlergen_through_its_own_handlers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logger("handlergen.test").info("heard")
    logger("handlergen.test").info("too quiet")
    assert caplog.messages == ["heard"]


def test_a_logger_keeps_the_level_that_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    own = logger("handlergen.level")
    own.setLevel(logging.ERROR)
    own.warning("not wanted")
    own.error("wanted")
    assert caplog.messages == ["wanted"]


def test_a_logger_can_be_sent_and_copied() -> None:
    own = logger("handlergen.sent")
    assert pickle.loads(pickle.dumps(own)) is copy.deepcopy(own) is own
