"""Runs that are killed, interrupted or given up, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from pyarrow import parquet

from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.local.offline.journal import PendingOutputs, journal_path, open_journal
from handlergen.local.offline.rows import Chunk, Lines, Row
from handlergen.runtime.codec.errors import Failure
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.pipeline.pipeline import open_items
from tests.unit.offline.conftest import SOURCE, lines, map_command, run, started, wait_for_rows, write_rows


def assert_gone(processes: list[psutil.Process]) -> None:
    psutil.wait_procs(processes, timeout=10)
    assert not [one for one in processes if one.is_running() and one.status() != "zombie"]


def test_a_killed_run_goes_on_without_losing_or_repeating_a_row(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(600)))
    whole, output, seen = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "seen"
    run(module, source, whole, batch_size=8)
    for rows in (40, 200, 400):
        process = started(map_command(module, source, output, "--workers", "2"), seen)
        wait_for_rows(output, rows, process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "rows are prepared in processes of their own"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        # The preparing processes die with it, in no time.
        assert_gone(children)
        assert journal_path(output).exists()
        with output.open("ab") as torn:
            torn.write(b'{"id":1000,"sta')
    done = subprocess.run(
        [*map_command(module, source, output, "--workers", "2"), "--json"],
        env={**os.environ, "SLOW": str(seen)},
        capture_output=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["rows"] == 600
    assert report["resumed_rows"] >= 400
    assert output.read_bytes() == whole.read_bytes()
    predicted = seen.read_text().split()
    assert set(predicted) == {str(number) for number in range(600)}
    # Each of the three kills cost at most the batch whose prediction was under way.
    assert len(predicted) - 600 <= 3 * 8


SLOW_ANSWERS = """
import os
import time
import torch

class Mine:
    def __init__(self, value):
        self.value = value
        if os.environ.get("HIDDEN"):
            self.hidden = lambda: value  # which cannot be pickled

def preprocess(data):
    return data

def predict(inputs, request):
    time.sleep(0.001)
    with open(os.environ["SLOW"], "a") as seen:
        seen.write(f"{inputs}\\n")
    request.metadata["twice"] = 2 * inputs
    if inputs % 10 == 7:
        raise ArithmeticError(inputs)
    return torch.tensor([inputs]), Mine(inputs)

def postprocess(outputs, input_data, request):
    time.sleep(0.02)
    tensor, mine = outputs
    return [tensor, mine.value, input_data, request.metadata["twice"]]
"""


@pytest.mark.parametrize("hidden", ["", "1"], ids=["outputs that can be kept", "outputs that cannot"])
def test_a_kill_repeats_at_most_one_batch_however_slow_postprocess_is(tmp_path: Path, hidden: str) -> None:
    module, output, seen = tmp_path / "slow.py", tmp_path / "out.jsonl", tmp_path / "seen"
    module.write_text(SLOW_ANSWERS)
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(160)))
    command = map_command(module, tmp_path / "rows.jsonl", output)
    environ = {**os.environ, "SLOW": str(seen), "HIDDEN": hidden}
    for rows in (24, 64, 104):
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for_rows(output, rows, process)
        # A chunk has been written, so that the next one's prediction has begun or ended, and its answers have not.
        time.sleep(0.01)
        process.kill()
        process.communicate()
        assert journal_path(output).exists()
    subprocess.run(command, env=environ, check=True, capture_output=True)
    predicted = [int(number) for number in seen.read_text().split()]
    assert set(predicted) == set(range(160))
    assert len(predicted) - 160 <= 3 * 8
    found = lines(output)
    assert [row["id"] for row in found] == list(range(160))
    assert [row["status"] for row in found] == [500 if number % 10 == 7 else 200 for number in range(160)]
    assert found[33]["answer"] == [[33], 33, 33, 66]
    assert {path.name for path in tmp_path.glob("out.*")} == {"out.jsonl"}


def test_outputs_that_wait_for_their_answers_are_believed_only_when_whole(tmp_path: Path) -> None:
    path, chunk = tmp_path / "out.predicted", Chunk(3, [Row(6, b"6", "application/json"), Row(7, b"7", "")])

    def items() -> list[Item]:
        return open_items([{}, {}], [{}, {}], ["6", "7"])

    def restored() -> tuple[bool, list[Item]]:
        fresh = items()
        return PendingOutputs(path).restore(chunk, fresh), fresh

    first = items()
    first[0].outputs, first[0].request.metadata["a"] = torch.arange(3), 1
    first[1].failure = Failure(507, "OutOfMemory", "no room")
    pending = PendingOutputs(path)
    assert not pending.restore(chunk, items())
    assert pending.keep(chunk, first)
    pending.close(complete=False)
    found, fresh = restored()
    assert found
    assert torch.equal(fresh[0].outputs, torch.arange(3))
    assert fresh[0].request.metadata == {"a": 1}
    assert fresh[1].failure is not None
    assert fresh[1].failure.status == 507
    assert not PendingOutputs(path).restore(chunk._replace(number=4), items())
    assert not PendingOutputs(path).restore(chunk._replace(rows=chunk.rows[:1]), items()[:1])

    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not restored()[0]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not restored()[0]
    path.write_bytes(whole)
    path.chmod(0o666)  # it is unpickled: not what others could have written
    assert not restored()[0]
    path.chmod(0o600)
    assert restored()[0]
    PendingOutputs(path).close(complete=True)
    assert not path.exists()


def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(600)))
    output = tmp_path / "out.jsonl"
    process = started(map_command(module, source, output, "--workers", "2"), tmp_path / "seen")
    wait_for_rows(output, 24, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"repeat the command to resume" in errors
    assert b"Traceback" not in errors
    assert_gone(children)
    summary = run(module, source, output, batch_size=8)
    assert summary.resumed_rows >= 24
    assert [row["id"] for row in lines(output)] == list(range(600))


def test_too_many_errors_stop_the_run_and_more_allowed_go_on(module: Path, tmp_path: Path) -> None:
    values = [-1 if number % 10 == 0 else number for number in range(100)]
    source, output = write_rows(tmp_path / "rows.jsonl", values), tmp_path / "out.jsonl"
    with pytest.raises(TooManyErrors) as raised:
        run(module, source, output, batch_size=5, max_errors=3)
    assert raised.value.exit_status == 7
    kept = lines(output)
    assert sum("error" in row for row in kept) == 4
    with pytest.raises(TooManyErrors):
        run(module, source, output, batch_size=5, max_errors=3)
    assert lines(output) == kept
    summary = run(module, source, output, batch_size=5, max_errors=10)
    assert (summary.rows, summary.failed) == (100, 10)
    assert [row["id"] for row in lines(output)] == list(range(100))


def interrupted(module: Path, source: Path, output: Path) -> None:
    with pytest.raises(TooManyErrors):
        run(module, source, output, batch_size=5, max_errors=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("input", "the input is not the one"),
        ("shorter", "the input is not the one"),
        ("model", "model was"),
        ("batch size", "batch_size was 5, is 6"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(module: Path, tmp_path: Path, change: str, told: str) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl", [*range(20), -1, *range(20)]), tmp_path / "out.jsonl"
    interrupted(module, source, output)
    before = output.read_bytes()
    if change == "input":
        write_rows(source, [5, *range(1, 20), -1, *range(20)])
    elif change == "shorter":
        write_rows(source, [*range(5)])
    elif change == "model":
        module.write_text(SOURCE.replace("* 2", "* 3"))
    with pytest.raises(HandlergenError, match=told):
        run(module, source, output, batch_size=6 if change == "batch size" else 5)
    assert output.read_bytes() == before
    run(module, source, output, batch_size=6, overwrite=True)
    assert lines(output)[-1]["id"] == len(source.read_text().split("\n")) - 2


def test_a_complete_output_is_not_overwritten_unasked(module: Path, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl", [1]), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(HandlergenError, match="already exists"):
        run(module, source, output)
    assert output.read_text() == "precious\n"


def test_the_journal_believes_only_what_stands_in_the_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    journal = open_journal(output, {"a": 1}, restart=False)
    chunks = [Chunk(number, [Row(number, b"%d" % number, "application/json")]) for number in range(3)]
    for chunk in chunks:
        journal.write(Lines(chunk, b"line %d\n" % chunk.number, failed=chunk.number % 2))
    journal.close(complete=False)
    # As after a crash of the machine: the last chunk reached the journal but not the output.
    output.write_bytes(output.read_bytes()[:-7] + bytes(7))
    with journal_path(output).open("ab") as torn:
        torn.write(b"[3,1,0,")
    again = open_journal(output, {"a": 1}, restart=False)
    assert (again.rows, again.failed) == (2, 1)
    assert again.done == {0: chunks[0].checksum(), 1: chunks[1].checksum()}
    again.write(Lines(chunks[2], b"LINE 2\n", failed=0))
    with pytest.raises(HandlergenError, match="another run"):
        subprocess_opens(output)
    again.close(complete=True)
    assert output.read_bytes() == b"line 0\nline 1\nLINE 2\n"
    assert not journal_path(output).exists()


def subprocess_opens(output: Path) -> None:
    """In another process: a record lock does not exclude its own."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom handlergen.local.offline.journal import open_journal\n"
        "from handlergen.errors import HandlergenError\n"
        "try:\n    open_journal(Path(sys.argv[1]), {'a': 1}, restart=False)\n"
        "except HandlergenError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(output)], capture_output=True, text=True, check=True)
    raise HandlergenError(done.stdout)


def test_a_killed_run_to_parquet_goes_on(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(200)))
    output, seen = tmp_path / "out.parquet", tmp_path / "seen"
    process = started(map_command(module, source, output), seen)
    wait_for_rows(tmp_path / "out.parquet.rows.jsonl", 40, process)
    process.kill()
    process.communicate()
    assert not output.exists()
    summary = run(module, source, output, batch_size=8)
    assert summary.resumed_rows >= 40
    table = parquet.read_table(output)
    assert table["answer"].to_pylist() == [{"y": 2.0 * number} for number in range(200)]
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet"}


def test_a_dead_preparing_process_ends_the_run_resumably(tmp_path: Path, write: Callable[[str], Path]) -> None:
    module = write(
        """
        import os, signal

        def preprocess(data):
            if data == 13 and os.environ.get("FATAL"):
                os.kill(os.getpid(), signal.SIGKILL)
            return data

        def predict(inputs):
            return inputs
        """
    )
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(40)))
    command = map_command(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--workers", "1")
    done = subprocess.run(command, env={**os.environ, "FATAL": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a process that prepares rows died (killed by SIGKILL)" in done.stderr
    assert "Traceback" not in done.stderr
    run(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", batch_size=8)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == list(range(40))


def test_a_file_that_was_corrected_is_another_input(module: Path, tmp_path: Path) -> None:
    scans, output = tmp_path / "scans", tmp_path / "out.jsonl"
    scans.mkdir()
    for name in ("a.json", "b.json"):
        (scans / name).write_text('{"x": -1}')
    with pytest.raises(TooManyErrors):
        run(module, scans, output, batch_size=1, max_errors=0)
    (scans / "a.json").write_text('{"x": 21}')
    with pytest.raises(HandlergenError, match=r"rows from a\.json on differ"):
        run(module, scans, output, batch_size=1)
    run(module, scans, output, batch_size=1, overwrite=True)
    assert [row.get("answer") for row in lines(output)] == [{"y": 42.0}, None]
