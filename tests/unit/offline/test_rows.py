"""What becomes of each row: in order, once, prepared here or elsewhere, predicted in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

import handlergen
from handlergen.cli import cli
from handlergen.errors import HandlergenError
from handlergen.local.offline.journal import journal_path
from handlergen.runtime.device.lock import DeviceLock, lock_directory
from tests.unit.offline.conftest import lines, run, write_rows

Write = Callable[[str], Path]


@pytest.mark.parametrize(
    "how", [{"workers": 0}, {"workers": None}, {"workers": 2}, {"workers": 2, "threads": True}], ids=str
)
def test_every_row_is_answered_in_order_and_a_bad_one_fails_alone(
    module: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [*range(40), -1, *range(41, 50)])
    summary = run(module, source, tmp_path / "out.jsonl", batch_size=7, **how)
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(50))
    assert found[3] == {"id": 3, "status": 200, "answer": {"y": 6.0}}
    error = {"type": "ValueError", "message": "x must not be negative"}
    assert found[40] == {"id": 40, "status": 400, "error": error}
    assert (summary.rows, summary.failed, summary.resumed_rows) == (50, 1, 0)
    assert not journal_path(tmp_path / "out.jsonl").exists()


def test_unordered_rows_are_all_there_once(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(60)))
    run(module, source, tmp_path / "out.jsonl", batch_size=4, workers=2, ordered=False)
    assert sorted(row["id"] for row in lines(tmp_path / "out.jsonl")) == list(range(60))


def test_a_postprocess_that_waits_waits_in_several_threads(write: Write) -> None:
    module = write(
        """
        import threading
        import time
        here, most = 0, 0
        counting = threading.Lock()

        def predict(inputs):
            return inputs

        def postprocess(outputs):
            global here, most
            with counting:
                here += 1
                most = max(most, here)
            time.sleep(0.005)
            with counting:
                here -= 1
            return [outputs, most]
        """
    )
    with handlergen.load(module) as model:
        values = [result.value for result in model.map(range(64), batch_size=8)]
    assert [value for value, _ in values] == list(range(64))
    assert values[7][1] == 1  # nothing is known of the first batch
    assert values[-1][1] > 1


def test_an_endless_input_is_read_no_further_than_needed(module: Path) -> None:
    taken = 0
    before = psutil.Process().children()

    def endless() -> Iterator[dict[str, int]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"x": taken}

    for how in ({"workers": 0}, {"workers": 2}, {"workers": 2, "threads": True}):
        taken = 0
        with handlergen.load(module) as model:
            answers = model.map(endless(), batch_size=4, **how)
            assert [next(answers).value["y"] for _ in range(30)] == [2.0 * n for n in range(1, 31)]
            answers.close()
        assert taken <= 30 + 4 * (2 * 4 + 4)
    assert not [child for child in psutil.Process().children() if child not in before and "python" in child.name()]


def test_what_cannot_cross_processes_is_prepared_here_and_said_so(tmp_path: Path, write: Write) -> None:
    module = write("def preprocess(data):\n    return lambda: data + 1\n\ndef predict(inputs):\n    return inputs()\n")
    (tmp_path / "rows.jsonl").write_text("1\n2\n3\n")
    told: list[str] = []
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    run(module, rows, output, workers=2, batch_size=1, warn=told.append)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [2, 3, 4]
    assert len(told) == 1
    assert "cannot be sent to another process" in told[0]


def test_metadata_files_and_input_data_cross_with_the_row(tmp_path: Path, write: Write) -> None:
    module = write(
        """
        import os

        def preprocess(data, request):
            request.metadata["pid"] = os.getpid()
            return data

        async def predict(inputs):
            return inputs

        async def postprocess(outputs, input_data, files, request):
            return [outputs, input_data, len(files), request.metadata["pid"] != os.getpid(), request.id]
        """
    )
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    run(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", workers=1)
    assert lines(tmp_path / "out.jsonl")[0]["answer"] == [{"a": 1}, {"a": 1}, 0, True, "0"]


def test_async_preprocess_runs_side_by_side(tmp_path: Path, write: Write) -> None:
    module = write(
        """
        import asyncio
        here = []

        async def preprocess(data):
            here.append(data)
            while len(here) < 4:
                await asyncio.sleep(0.001)
            return data

        def predict(inputs):
            return inputs
        """
    )
    (tmp_path / "rows.jsonl").write_text("0\n1\n2\n3\n")
    run(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", workers=1, batch_size=4)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [0, 1, 2, 3]


def test_batches_are_collated_and_only_the_culprit_fails(tmp_path: Path, write: Write) -> None:
    module = write(
        """
        import torch
        sizes = []

        def preprocess(data):
            return torch.tensor([float(data)])

        def predict(inputs):
            if (inputs == 5).any():
                raise RuntimeError("five")
            sizes.append(len(inputs))
            return inputs + len(inputs)
        """
    )
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(8)))
    with handlergen.load(module, batch="collate") as model:
        found = [(result.status, result.value) for result in model.map(range(8), batch_size=4)]
    assert [status for status, _ in found] == [200, 200, 200, 200, 200, 500, 200, 200]
    assert [value for status, value in found[:4]] == [[4.0], [5.0], [6.0], [7.0]]
    assert found[4][1] == [5.0]  # predicted again, alone


def test_map_takes_turns_on_the_device(module: Path) -> None:
    lock = DeviceLock("cpu", lock_directory())
    got: list[Any] = []
    with handlergen.load(module, lock_timeout_s=0.05) as model:
        lock.acquire(5)
        thread = threading.Thread(target=lambda: got.extend(model.map([{"x": 1}], workers=0)))
        thread.start()
        time.sleep(0.3)
        assert not got  # longer than lock_timeout_s: nobody waits for an answer, so the row does
        lock.release()
        thread.join()
    assert [result.status for result in got] == [200]


KEEPING = """
import torch

kept = []

def preprocess(data):
    return torch.full((40_000,), float(data))

def predict(inputs):
    kept.append(inputs)  # as a module may: a cache, say
    return torch.stack([each[:1] for each in kept]).sum()

def postprocess(outputs):
    return float(outputs)
"""


def test_inputs_that_a_module_keeps_are_not_overwritten(write: Write) -> None:
    module = write(KEEPING)
    with handlergen.load(module) as model:
        found = [result.value for result in model.map(range(1, 161), batch_size=8, workers=2)]
    assert found == [sum(range(1, number + 1)) for number in range(1, 161)]


def test_what_fails_in_a_fork_only_is_prepared_here_and_said_so(tmp_path: Path, write: Write) -> None:
    module = write(
        """
        import os
        loaded_in = os.getpid()

        def preprocess(data):
            if os.getpid() != loaded_in:
                raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. Use 'spawn'")
            return data

        def predict(inputs):
            return inputs
        """
    )
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(20)))
    told: list[str] = []
    rows = tmp_path / "rows.jsonl"
    run(module, rows, tmp_path / "out.jsonl", workers=2, batch_size=4, warn=told.append)
    assert [row.get("answer") for row in lines(tmp_path / "out.jsonl")] == list(range(20))
    assert len(told) == 1
    assert "preprocess uses the GPU" in told[0]


def test_preparing_processes_draw_different_random_numbers(write: Write) -> None:
    module = write(
        """
        import random
        import numpy
        import torch

        def preprocess(data):
            return [random.random(), float(numpy.random.rand()), float(torch.rand(1))]

        def predict(inputs):
            return inputs
        """
    )
    with handlergen.load(module) as model:
        drawn = [result.value for result in model.map(range(32), batch_size=8, workers=2)]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 32


def test_the_command_refuses_what_makes_no_sense(module: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    rows = str(write_rows(tmp_path / "rows.jsonl", [1]))
    result = runner.invoke(cli, ["map", str(module), rows, "-o", "-", "--json"])
    assert result.exit_code == 2
    result = runner.invoke(cli, ["map", str(module), str(tmp_path / "no.jsonl"), "-o", "x.jsonl"])
    assert isinstance(result.exception, HandlergenError)
    assert "there is no input" in str(result.exception)


def test_a_file_that_is_not_there_is_named(module: Path, tmp_path: Path) -> None:
    with handlergen.load(module) as model:
        (result,) = model.map([tmp_path / "absent.json"], workers=0)
    assert result.status == 400
    assert "absent.json" in str(result.value)
