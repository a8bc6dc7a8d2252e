"""Examples before READY, on a real TorchServe: each worker asks them, and a wrong answer fails the load."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.archives import make_archive
from tests.commands import handlergen
from tests.histories import until

pytestmark = pytest.mark.e2e

SUMS = """
    import torch

    def load(context):
        print("sums is loaded", flush=True)
        return 2

    def preprocess(data):
        return torch.tensor(data, dtype=torch.float32)

    def predict(inputs, model):
        return inputs.sum() * model

    def postprocess(outputs):
        return {"sum": float(outputs)}
"""

# Right for one request, wrong for several.
FIRST_ONLY = """
    def predict(inputs):
        return [inputs[0]] * len(inputs)
"""

# preprocess reads what predict's process has: in a worker it stays 1. The rule for stages sees it; `stages` overrules.
SHARES = """
    SCALE = 1

    def load(context):
        global SCALE
        SCALE = 10

    def preprocess(data):
        return data * SCALE

    def predict(inputs):
        return inputs
"""


WORDS = """
    def load(context):
        return "part"

    def predict(inputs, model):
        for number in range(inputs):
            yield f"{model} {number} "
"""


def example(name: str, request: Any, answer: Any = None, **other: Any) -> dict[str, Any]:
    return {"name": name, "json": request, **({"runs": True} if answer is None else {"answer": answer}), **other}


RIGHT = [example("one", [1, 2], {"sum": 6.0}), example("two", [3], {"sum": 6.001}), example("runs", [7, 8, 9])]
WRONG = [*RIGHT, example("wrong", [1, 1], {"sum": 4.5})]


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("examples")
    make: Callable[..., Path] = lambda name, source, **how: make_archive(home, name, source, **how)  # noqa: E731
    return shared(
        make("in_process", SUMS, workers_per_device=2, examples=RIGHT, predictor="process"),
        make("in_worker", SUMS, workers_per_device=2, examples=RIGHT, predictor="worker"),
        make("warmed", SUMS, examples=WRONG, examples_at_start="warm", predictor="worker"),
        make("unasked", SUMS, examples=WRONG, examples_at_start="off", predictor="worker"),
        make(
            "words", WORDS, examples=[{"name": "two", "json": 2, "answer_text": "part 0 part 1 "}], predictor="process"
        ),
        make("shares", SHARES, examples=[example("one", 1, 10)], predictor="process", stages="worker"),
    )


@pytest.mark.parametrize(("model", "predictions"), [("in_process", 6), ("in_worker", 3)])
def test_every_worker_asks_before_it_is_ready(server: Any, model: str, predictions: int) -> None:
    described = server.describe(model)
    assert described["examples"] == {"number": 3, "at_start": "check", "right": 3}
    assert described["predictor"]["predictions"] == predictions  # of two workers, or of one that has its own copy
    assert described["worker"]["requests"] == 0
    assert server.client.predict(model, [1, 1]).json() == {"sum": 4.0}


@pytest.mark.parametrize("protocol", [(), ("--grpc",)])
def test_invoke_sends_one_and_compares_the_answer(server: Any, protocol: tuple[str, ...]) -> None:
    def invoke(model: str, example: str) -> tuple[int, str, str]:
        command = ("invoke", model, "--example", example, *protocol)
        done = handlergen(*command, cwd=server.directory, timeout=250)
        return done.returncode, done.stdout.strip(), done.stderr

    assert invoke("in_process", "one")[:2] == (0, '{"sum":6.0}')
    assert invoke("in_worker", "3")[:2] == (0, '{"sum":48.0}')
    status, out, _ = invoke("words", "two")
    assert (status, json.loads(out) if protocol else out) == (0, "part 0 part 1 " if protocol else "part 0 part 1")
    status, out, told = invoke("warmed", "wrong")
    assert (status, out) == (1, '{"sum":4.0}')
    assert "answer.sum: 4.5 ≠ 4.0 (tolerance 0.001)" in told
    assert "has no example four" in invoke("warmed", "four")[2]


def test_status_says_what_was_done_with_them(server: Any) -> None:
    text = handlergen("status", cwd=server.directory, timeout=250).stdout
    assert "examples 3 answered rightly by each worker before READY" in text
    assert "examples 4 asked by each worker before READY" in text
    assert "examples 4 not asked by each worker before READY" in text


def test_a_gauge_counts_the_right_ones(server: Any) -> None:
    def gauge(model: str) -> list[str]:
        text = httpx.get(
            f"{server.settings.metrics_address}/metrics",
            headers={"Authorization": f"Bearer {server.key()}"},
            trust_env=False,
            timeout=60,
        ).text
        lines = [line for line in text.splitlines() if line.startswith("handlergen_examples_right{")]
        return [line.split()[-1] for line in lines if f'model="{model}"' in line]

    until(lambda: gauge("in_process") == ["3.0"] and gauge("warmed") == ["3.0"])
    assert gauge("unasked") == []


def test_warm_only_asks_and_off_does_nothing(server: Any) -> None:
    assert server.describe("warmed")["examples"] == {"number": 4, "at_start": "warm", "right": 3}
    assert "example wrong: answer.sum: 4.5 ≠ 4.0 (tolerance 0.001)" in server.log_text()
    unasked = server.describe("unasked")
    assert unasked["examples"] == {"number": 4, "at_start": "off"}
    assert unasked["predictor"]["predictions"] == 0


def test_where_only_the_split_makes_the_difference_the_worker_relays(server: Any) -> None:
    assert server.client.predict("shares", 7).json() == 70
    until(lambda: "example one is answered wrongly while the worker runs preprocess" in server.log_text())
    assert "Set `stages: predictor`" in server.log_text()
    assert server.describe("shares")["examples"] == {"number": 1, "at_start": "check", "right": 1}


@pytest.mark.parametrize(
    ("name", "source", "settings", "shown"),
    [
        ("wrong_worker", SUMS, {"predictor": "worker", "examples": WRONG}, "answer.sum: 4.5 ≠ 4.0 (tolerance 0.001)"),
        ("wrong_process", SUMS, {"predictor": "process", "examples": WRONG}, "answer.sum: 4.5 ≠ 4.0 (tolerance 0.001)"),
        (
            "wrong_batch",
            FIRST_ONLY,
            {"batch": "list", "batch_size": 2, "predictor": "worker"}
            | {"examples": [example("one", 1, 1), example("two", 2, 2)]},
            "answer: 2 ≠ 1 (in a batch of 2)",
        ),
        ("fails", SUMS, {"examples": [example("text", "x")]}, "answer: an answer ≠ 500 "),
    ],
)
def test_a_wrong_answer_is_a_failed_load(
    server: Any, tmp_path: Path, name: str, source: str, settings: dict[str, Any], shown: str
) -> None:
    archive = make_archive(tmp_path, name, source, **settings)
    target = server.store / archive.name
    target.write_bytes(archive.read_bytes())
    before = server.log_marks()
    try:
        server.client.grpc_management.register(archive.name)
        until(lambda: shown in server.log_text(before))
        text = server.log_text(before)
        line = next(line for line in text.splitlines() if "of the archive are answered wrongly" in line)
        assert "handlergen: the model could not be loaded: 1 of " in line
    finally:
        server.client.unregister(name)
        target.unlink()


def test_update_keeps_the_version_that_answers_rightly(server: Any, tmp_path: Path) -> None:
    """`update` shows the differences, and the archive of the wrong version goes."""
    (tmp_path / "in_process.py").write_text(textwrap.dedent(SUMS))
    (tmp_path / "handlergen.yaml").write_text(
        json.dumps({"name": "in_process", "source": "in_process.py", "examples": WRONG})
    )
    done = handlergen("update", "in_process", str(tmp_path), cwd=server.directory, timeout=250)
    assert done.returncode == 4, done.stderr
    assert "example wrong:\n  answer.sum: 4.5 ≠ 4.0 (tolerance 0.001)" in done.stderr
    assert "1.0 goes on serving" in done.stderr
    assert server.client.predict("in_process", [1, 1]).json() == {"sum": 4.0}
