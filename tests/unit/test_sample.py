"""check --sample: what each stage received and returned, and what only running finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from handlergen.errors import ModuleFailed
from handlergen.local.sample import run_sample
from handlergen.local.sample_child import describe

HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.json"
    path.write_text('{"x": [1, 2, 3]}')
    return path


def check(source: str, sample: Path, *options: str) -> subprocess.CompletedProcess[str]:
    module = sample.with_name("tried.py")
    module.write_text(source)
    command = [HANDLERGEN, "check", str(module), "--sample", str(sample), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_stage_is_shown_with_types_shapes_and_time(sample: Path) -> None:
    done = check(
        """
import torch

async def preprocess(data):
    return torch.tensor(data["x"], dtype=torch.float32)

def predict(inputs):
    print("a word of the module's")
    return {"sum": inputs.sum(), "pair": (inputs, inputs.numpy())}

def postprocess(outputs):
    return {"sum": outputs["sum"]}
""",
        sample,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["sample"]
    assert [(stage["name"], stage["received"], stage["returned"]) for stage in report["stages"]] == [
        ("preprocess", "dict {x: list (3) of int}", "tensor(3) float32"),
        (
            "predict",
            "tensor(3) float32",
            "dict {sum: tensor() float32, pair: tuple (tensor(3) float32, array(3) float32)}",
        ),
        (
            "postprocess",
            "dict {sum: tensor() float32, pair: tuple (tensor(3) float32, array(3) float32)}",
            "dict {sum: tensor() float32}",
        ),
    ]
    assert all(stage["milliseconds"] > 0 for stage in report["stages"])
    assert (report["status"], report["body"], report["findings"]) == (200, '{"sum":6.0}', [])
    assert "a word of the module's" in done.stderr


def test_it_finds_what_only_running_finds(sample: Path) -> None:
    # The device "meta" stands for a GPU, which a test machine may lack.
    done = check(
        """
import torch

def preprocess(data):
    there = torch.ones(2, device="meta") + 1
    return lambda: there

def predict(inputs):
    return inputs()

def postprocess(outputs):
    answer = {"done": True}
""",
        sample,
    )
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert [" ".join(line.split()[1:4]) for line in warnings] == [
        "preprocess works on",
        "the result of",
        "predict leaves a",
        "postprocess returns nothing",
    ]
    assert "meta" in warnings[0]
    assert "cannot be sent to another process" in warnings[1]


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        ("def predict(inputs):\n    return inputs['y']\n", 4, "KeyError: 'y'"),
        ("def preprocess(data):\n    raise ValueError('no')\ndef predict(inputs):\n    return 1\n", 6, ""),
        ("import nowhere\ndef predict(inputs):\n    return 1\n", 4, "it is neither in the archive nor installed for "),
        ("import os\ndef predict(inputs):\n    os.abort()\n", 4, "terminated by SIGABRT"),
    ],
    ids=["predict", "preprocess", "import", "crash"],
)
def test_a_failure_is_told_with_its_status(sample: Path, source: str, status: int, told: str) -> None:
    done = check(source, sample)
    assert done.returncode == status
    assert told in done.stderr
    assert "sample_child" not in done.stderr


def test_it_runs_in_a_process_of_its_own_with_the_settings_given(sample: Path) -> None:
    module = sample.with_name("tried.py")
    module.write_text("def predict(inputs):\n    return {'pid': __import__('os').getpid()}\n")
    ran = run_sample(module, sample, overrides={"name": "other", "batch": None})
    assert json.loads(ran.body)["pid"] != os.getpid()
    assert [stage.role for stage in ran.stages] == ["predict"]
    module.write_text("1 / 0\ndef predict(inputs):\n    return 1\n")
    with pytest.raises(ModuleFailed, match="ZeroDivisionError"):
        run_sample(module, sample)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "list (0)"),
        ([torch.zeros(2), torch.zeros(2)], "list (2) of tensor(2) float32"),
        ([torch.zeros(2), torch.zeros(3)], "list (2) of different things"),
        (["a", "bcd"], "list (2) of str"),
        (b"abc", "bytes (3)"),
        ({number: number for number in range(8)}, "dict {0: int, 1: int, 2: int, 3: int, 4: int, 5: int, …}"),
        ((item for item in ()), "generator: a streamed answer"),
        ([[[[[[1]]]]]], "list (1) of list (1) of list (1) of list (1) of list"),
    ],
)
def test_a_value_is_described_in_a_line(value: Any, text: str) -> None:
    assert describe(value) == text


SPLIT = """
LABELS = []

def load(context):
    LABELS.append("cat")
    return 1

def preprocess(data):
    return LABELS or "none"

def predict(inputs, model):
    return inputs
"""


def test_an_answer_that_is_another_one_on_a_server_is_found(sample: Path) -> None:
    """The first module only works in one process; the second draws at random; the third is right in both."""
    done = check(SPLIT, sample, "--stages", "worker")
    assert "on a server, where preprocess and postprocess run in workers" in done.stderr
    assert 'the answer is 200 "none" instead: set `stages: predictor`' in done.stderr
    drawn = SPLIT.replace("LABELS or", "__import__('random').random() or")
    for source in (drawn, SPLIT.replace("LABELS or", "")):
        done = check(source, sample, "--stages", "worker")
        assert done.returncode == 0
        assert "on a server, where" not in done.stderr
