"""map: every row answered once, in order, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
import torch
from click.testing import CliRunner
from pyarrow import parquet

import handlergen
from handlergen.cli import cli
from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.offline.api import LocalEngine
from handlergen.offline.convert import to_parquet
from handlergen.offline.job import Summary, map_to_file
from handlergen.offline.journal import journal_path, open_journal
from handlergen.offline.predicted import Predicted
from handlergen.offline.rows import Chunk, Row
from handlergen.offline.sources import open_source
from handlergen.offline.transport import pack
from handlergen.runtime.failures import Failure
from handlergen.runtime.hooks import Item
from handlergen.runtime.pipeline import open_items

HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))

SOURCE = """
import os
import time
import torch

def preprocess(data):
    if isinstance(data, bytes):
        data = {"x": len(data)}
    if data["x"] < 0:
        raise ValueError("x must not be negative")
    return torch.tensor([float(data["x"])])

def predict(inputs):
    if os.environ.get("SLOW"):
        with open(os.environ["SLOW"], "a") as seen:
            seen.write(f"{int(inputs)}\\n")
        time.sleep(0.004)
    return inputs * 2

def postprocess(outputs):
    return {"y": float(outputs)}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "doubler.py"
    path.write_text(SOURCE)
    return path


def write_rows(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"x": value}) + "\n" for value in values))
    return path


def run(module: Path, source: str | Path, output: Path, **options: Any) -> Summary:
    how = {"workers": options.pop("workers", 0), "threads": options.pop("threads", False)}
    tell = options.pop("tell", pytest.fail)
    with handlergen.load(module) as model:
        return map_to_file(LocalEngine(model, tell=tell, **how), open_source(str(source)), output, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "how",
    [
        {"workers": 0},
        {"workers": None},
        {"workers": 2},
        {"workers": 2, "threads": True},
    ],
    ids=str,
)
def test_every_row_is_answered_in_order_and_a_bad_one_fails_alone(
    module: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [*range(40), -1, *range(41, 50)])
    summary = run(module, source, tmp_path / "out.jsonl", batch_size=7, **how)
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == list(range(50))
    assert found[3] == {"id": 3, "status": 200, "answer": {"y": 6.0}}
    assert found[40] == {
        "id": 40,
        "status": 400,
        "error": {"type": "ValueError", "message": "x must not be negative"},
    }
    assert (summary.rows, summary.failed, summary.resumed_rows) == (50, 1, 0)
    assert not journal_path(tmp_path / "out.jsonl").exists()


def test_unordered_rows_are_all_there_once(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(60)))
    run(module, source, tmp_path / "out.jsonl", batch_size=4, workers=2, ordered=False)
    assert sorted(row["id"] for row in lines(tmp_path / "out.jsonl")) == list(range(60))


def map_command(module: Path, source: Path, output: Path, *more: str) -> list[str]:
    command = [HANDLERGEN, "map", str(module), str(source), "-o", str(output)]
    return [*command, "--batch-size", "8", *more]


def started(command: list[str], seen: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "SLOW": str(seen)}
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


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
        psutil.wait_procs(children, timeout=10)
        assert not [child for child in children if child.is_running() and child.status() != "zombie"]
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
        return Predicted(path).restore(chunk, fresh), fresh

    first = items()
    first[0].outputs, first[0].request.metadata["a"] = torch.arange(3), 1
    first[1].failure = Failure(507, "OutOfMemory", "no room")
    predicted = Predicted(path)
    assert not predicted.restore(chunk, items())
    assert predicted.keep(chunk, first)
    predicted.close(complete=False)
    found, fresh = restored()
    assert found
    assert torch.equal(fresh[0].outputs, torch.arange(3))
    assert fresh[0].request.metadata == {"a": 1}
    assert fresh[1].failure is not None
    assert fresh[1].failure.status == 507
    assert not Predicted(path).restore(chunk._replace(number=4), items())
    assert not Predicted(path).restore(chunk._replace(rows=chunk.rows[:1]), items()[:1])

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
    Predicted(path).close(complete=True)
    assert not path.exists()


def test_a_postprocess_that_waits_waits_in_several_threads(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        textwrap.dedent(
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
    )
    with handlergen.load(tmp_path / "asks.py") as model:
        values = [result.value for result in model.map(range(64), batch_size=8)]
    assert [value for value, _ in values] == list(range(64))
    assert values[7][1] == 1  # nothing is known of the first batch
    assert values[-1][1] > 1


def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(module: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", list(range(600)))
    output = tmp_path / "out.jsonl"
    process = started(map_command(module, source, output, "--workers", "2"), tmp_path / "seen")
    wait_for_rows(output, 24, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on" in errors
    assert b"Traceback" not in errors
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]
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
def test_a_run_does_not_go_on_with_something_else(
    module: Path, tmp_path: Path, change: str, told: str
) -> None:
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
    with pytest.raises(HandlergenError, match="is there already"):
        run(module, source, output)
    assert output.read_text() == "precious\n"


def test_the_journal_believes_only_what_stands_in_the_output(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    journal = open_journal(output, {"a": 1}, restart=False)
    for number in range(3):
        journal.write(number, b"line %d\n" % number, rows=1, failed=number % 2, input_crc=number)
    journal.close(complete=False)
    # As after a crash of the machine: the last chunk reached the journal but not the output.
    output.write_bytes(output.read_bytes()[:-7] + bytes(7))
    with journal_path(output).open("ab") as torn:
        torn.write(b"[3,1,0,")
    again = open_journal(output, {"a": 1}, restart=False)
    assert (again.rows, again.failed, again.done) == (2, 1, {0: 0, 1: 1})
    again.write(2, b"LINE 2\n", rows=1, failed=0, input_crc=2)
    with pytest.raises(HandlergenError, match="another run"):
        subprocess_opens(output)
    again.close(complete=True)
    assert output.read_bytes() == b"line 0\nline 1\nLINE 2\n"
    assert not journal_path(output).exists()


def subprocess_opens(output: Path) -> None:
    """In another process: a record lock does not exclude its own."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom handlergen.offline.journal import open_journal\n"
        "from handlergen.errors import HandlergenError\n"
        "try:\n    open_journal(Path(sys.argv[1]), {'a': 1}, restart=False)\n"
        "except HandlergenError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(output)], capture_output=True, text=True, check=True
    )
    raise HandlergenError(done.stdout)


def test_an_endless_input_is_read_no_further_than_needed(module: Path) -> None:
    taken = 0

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
    assert not [child for child in psutil.Process().children() if "python" in child.name()]


def test_inputs_of_every_kind(module: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('x,note\n1,"a, b"\n2,c\n')
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    run(tmp_path / "echo.py", tmp_path / "rows.csv", tmp_path / "csv.jsonl")
    assert [row["answer"] for row in lines(tmp_path / "csv.jsonl")] == [
        {"x": "1", "note": "a, b"},
        {"x": "2", "note": "c"},
    ]

    numpy.save(tmp_path / "rows.npy", numpy.arange(6, dtype="float32").reshape(3, 2))
    (tmp_path / "rows.py").write_text("def predict(inputs):\n    return [str(inputs.dtype), inputs.sum()]\n")
    run(tmp_path / "rows.py", tmp_path / "rows.npy", tmp_path / "npy.jsonl")
    assert [row["answer"] for row in lines(tmp_path / "npy.jsonl")] == [
        ["float32", 1.0],
        ["float32", 5.0],
        ["float32", 9.0],
    ]

    (tmp_path / "scans" / "deep").mkdir(parents=True)
    for name in ("b.bin", "a.bin", "deep/c.bin", ".hidden"):
        (tmp_path / "scans" / name).write_bytes(b"x" * len(name))
    run(module, tmp_path / "scans", tmp_path / "files.jsonl", workers=2)
    assert [(row["id"], row["answer"]["y"]) for row in lines(tmp_path / "files.jsonl")] == [
        ("a.bin", 10.0),
        ("b.bin", 10.0),
        ("deep/c.bin", 20.0),
    ]
    run(module, f"{tmp_path}/scans/*.bin", tmp_path / "glob.jsonl")
    assert [row["answer"]["y"] for row in lines(tmp_path / "glob.jsonl")] == [10.0, 10.0]
    with pytest.raises(HandlergenError, match="no file matches"):
        run(module, f"{tmp_path}/scans/*.png", tmp_path / "none.jsonl")


def test_content_types_go_with_files(tmp_path: Path) -> None:
    (tmp_path / "kind.py").write_text(
        "def preprocess(data, request):\n    return [request.content_type, type(data).__name__]\n"
        "def predict(inputs):\n    return inputs\n"
    )
    for name in ("a.png", "b.json", "c.txt"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    run(tmp_path / "kind.py", tmp_path / "in", tmp_path / "out.jsonl", workers=1)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [
        ["image/png", "bytes"],
        ["application/json", "dict"],
        ["text/plain", "str"],
    ]


def test_a_row_keeps_its_own_id(module: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"x": 1, "key": "a"}\n\n{"x": 2, "key": 7}\nno json\n')
    with handlergen.load(module) as model:
        map_to_file(
            LocalEngine(model, workers=0, threads=False, tell=pytest.fail),
            open_source(str(tmp_path / "rows.jsonl"), id_field="key"),
            tmp_path / "out.jsonl",
        )
    assert [(row["id"], row["status"]) for row in lines(tmp_path / "out.jsonl")] == [
        ("a", 200),
        (7, 200),
        (2, 400),
    ]


def test_standard_input_to_standard_output_with_hooks_that_print(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "def predict(inputs):\n    print('noise')\n    return b'\\xff' if inputs else 'text'\n"
    )
    done = subprocess.run(
        [HANDLERGEN, "map", str(tmp_path / "noisy.py"), "-", "-o", "-"],
        input=b"0\n1\n",
        capture_output=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        b'{"id":0,"status":200,"answer":"text"}',
        b'{"id":1,"status":200,"answer":"/w==","content_type":"application/octet-stream","encoding":"base64"}',
    ]
    assert done.stderr == b"noise\nnoise\n"


def test_an_array_output(module: Path, tmp_path: Path) -> None:
    (tmp_path / "row.py").write_text(
        "def predict(inputs):\n    if inputs < 0:\n        raise ArithmeticError\n    return [inputs, inputs + 1]\n"
    )
    (tmp_path / "rows.jsonl").write_text("1\n-1\n3\n")
    run(tmp_path / "row.py", tmp_path / "rows.jsonl", tmp_path / "out.npy")
    numpy.testing.assert_array_equal(
        numpy.load(tmp_path / "out.npy"), [[1.0, 2.0], [numpy.nan, numpy.nan], [3.0, 4.0]]
    )
    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if name.startswith("out.npy.")}
    with pytest.raises(HandlergenError, match="row 0 is no array"):
        run(module, write_rows(tmp_path / "rows.jsonl", [1, 2]), tmp_path / "dicts.npy")
    assert len(lines(tmp_path / "dicts.npy.rows.jsonl")) == 2


JSON_VALUES = [
    ("numbers", [1, 2.5, None], [1.0, 2.5, None]),
    ("objects", [{"a": 1}, {"a": 2, "b": [1, 2]}], [{"a": 1, "b": None}, {"a": 2, "b": [1, 2]}]),
    ("text", ["a", "é"], ["a", "é"]),
    ("vectors", [[0.5, 1.0], [2.0]], [[0.5, 1.0], [2.0]]),
    ("nothing in common", [1, "a", None, [2]], ["1", '"a"', "null", "[2]"]),
    ("empty objects", [{}, {"a": {}}], ["{}", '{"a": {}}']),
    ("too large", [2**70, 1], [str(2**70), "1"]),
    ("objects with nothing in common", [{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
]


@pytest.mark.parametrize(
    ("answers", "columns"), [case[1:] for case in JSON_VALUES], ids=[c[0] for c in JSON_VALUES]
)
@pytest.mark.parametrize("gap", [0, 5000], ids=["together", "far apart"])
def test_answers_become_a_parquet_column(
    tmp_path: Path, answers: list[Any], columns: list[Any], gap: int
) -> None:
    """Far apart: what stands in common is found across the batches in which rows are read."""
    rows = [answers[0]] * gap + answers
    lines_file = tmp_path / "lines"
    with lines_file.open("w") as file:
        for number, answer in enumerate(rows):
            file.write(json.dumps({"id": number, "status": 200, "answer": answer}) + "\n")
    to_parquet(lines_file, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "status", "answer", "error"]
    assert table["answer"].to_pylist() == [columns[0]] * gap + columns
    assert table["id"].to_pylist() == list(range(len(rows)))
    assert str(table.schema.field("error").type) == "struct<type: string, message: string>"


def test_numbers_that_no_column_holds_together_become_text(tmp_path: Path) -> None:
    answers = [2**60 + 1, *[1] * 5000, 0.5]
    text = "".join(f'{{"id": 0, "status": 200, "answer": {answer}}}\n' for answer in answers)
    (tmp_path / "lines").write_text(text)
    to_parquet(tmp_path / "lines", tmp_path / "out.parquet")
    found = parquet.read_table(tmp_path / "out.parquet")["answer"].to_pylist()
    assert [json.loads(answer) for answer in found] == answers


def test_a_parquet_output_of_files_errors_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text("def predict(inputs):\n    return inputs if inputs else 1 / 0\n")
    (tmp_path / "scans").mkdir()
    for name, content in (("a.bin", b"\xff\x00"), ("b.bin", b""), ("c.bin", b"c")):
        (tmp_path / "scans" / name).write_bytes(content)
    run(tmp_path / "kinds.py", tmp_path / "scans", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ["a.bin", "b.bin", "c.bin"]
    assert table["status"].to_pylist() == [200, 500, 200]
    assert table["answer"].to_pylist() == [b"\xff\x00", None, b"c"]
    assert [error and sorted(error) for error in table["error"].to_pylist()] == [
        None,
        ["message", "type"],
        None,
    ]
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet"}


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


def test_without_pyarrow_a_parquet_output_is_refused_before_any_row(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    source = write_rows(tmp_path / "rows.jsonl", [1])
    with pytest.raises(HandlergenError, match="needs pyarrow") as raised:
        run(module, source, tmp_path / "out.parquet")
    assert "handlergen[parquet]" in (raised.value.hint or "")
    assert not list(tmp_path.glob("out*"))


def test_what_cannot_cross_processes_is_prepared_here_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "closure.py").write_text(
        "def preprocess(data):\n    return lambda: data + 1\n\ndef predict(inputs):\n    return inputs()\n"
    )
    (tmp_path / "rows.jsonl").write_text("1\n2\n3\n")
    told: list[str] = []
    run(
        tmp_path / "closure.py",
        tmp_path / "rows.jsonl",
        tmp_path / "out.jsonl",
        workers=2,
        batch_size=1,
        tell=told.append,
    )
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [2, 3, 4]
    assert len(told) == 1
    assert "cannot cross to another process" in told[0]


def test_a_dead_preparing_process_ends_the_run_resumably(tmp_path: Path) -> None:
    module = tmp_path / "fatal.py"
    module.write_text(
        textwrap.dedent(
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
    )
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(40)))
    command = map_command(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--workers", "1")
    done = subprocess.run(
        command, env={**os.environ, "FATAL": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "a process that prepares rows died" in done.stderr
    assert "Traceback" not in done.stderr
    run(module, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", batch_size=8)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == list(range(40))


def test_metadata_files_and_input_data_cross_with_the_row(tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(
        textwrap.dedent(
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
    )
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    run(tmp_path / "whole.py", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", workers=1)
    assert lines(tmp_path / "out.jsonl")[0]["answer"] == [{"a": 1}, {"a": 1}, 0, True, "0"]


def test_async_preprocess_runs_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "meet.py").write_text(
        textwrap.dedent(
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
    )
    (tmp_path / "rows.jsonl").write_text("0\n1\n2\n3\n")
    run(tmp_path / "meet.py", tmp_path / "rows.jsonl", tmp_path / "out.jsonl", workers=1, batch_size=4)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [0, 1, 2, 3]


def test_batches_are_collated_and_only_the_culprit_fails(tmp_path: Path) -> None:
    (tmp_path / "together.py").write_text(
        textwrap.dedent(
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
    )
    (tmp_path / "rows.jsonl").write_text("".join(f"{number}\n" for number in range(8)))
    with handlergen.load(tmp_path / "together.py", batch="collate") as model:
        found = [(result.status, result.value) for result in model.map(range(8), batch_size=4)]
    assert [status for status, _ in found] == [200, 200, 200, 200, 200, 500, 200, 200]
    assert [value for status, value in found[:4]] == [[4.0], [5.0], [6.0], [7.0]]
    assert found[4][1] == [5.0]  # predicted again, alone


def test_map_takes_turns_on_the_device(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from handlergen.runtime.device_lock import DeviceLock, lock_directory

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


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12, dtype=torch.float32).reshape(3, 4),
        torch.arange(12).reshape(3, 4).t(),
        torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.tensor(3.5, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.ones(1).expand(5),
        torch.arange(10)[::2],
        torch.rand(8, 6)[1::3, ::2],
        torch.rand(4, 1, 3).expand(4, 5, 3)[:, 1:],
        torch.arange(10).unfold(0, 4, 1),
        torch.rand(200, 200),
    ],
    ids=lambda value: f"{tuple(value.shape)}-{value.stride()}-{value.dtype}",
)
def test_tensors_cross_as_they_are(value: torch.Tensor) -> None:
    arrived, same, array = pack((value, {"same": value}, numpy.arange(3))).unpack()
    assert torch.equal(arrived, value)
    assert (arrived.dtype, arrived.stride()) == (value.dtype, value.stride())
    assert same["same"] is arrived
    arrived.clone().zero_()
    assert array.tolist() == [0, 1, 2]
    array[0] = 5  # a hook may change its input in place


def test_the_command_refuses_what_makes_no_sense(module: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    rows = str(write_rows(tmp_path / "rows.jsonl", [1]))
    result = runner.invoke(cli, ["map", str(module), rows, "-o", "-", "--json"])
    assert result.exit_code == 2
    result = runner.invoke(cli, ["map", str(module), str(tmp_path / "no.jsonl"), "-o", "x.jsonl"])
    assert isinstance(result.exception, HandlergenError)
    assert "there is no input" in str(result.exception)


def test_a_csv_of_uneven_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    source = open_source("-", format="csv", stdin=io.BytesIO(b"a,b\n1,2\n3\n"))
    with pytest.raises(HandlergenError, match="line 3: the row has fewer fields"):
        list(source.rows())


def test_map_says_what_an_output_will_be(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    (tmp_path / "rows.jsonl").write_text("1\n")

    def told(output: str) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("handlergen")), "map", "echo.py", "rows.jsonl"]
        words = [*command, "--workers", "0", "-o", output]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, said = told("answers.csv")
    assert status == 0
    assert "answers.csv will hold JSON lines; other formats: .npy, .parquet" in said
    assert "1 row in" in said
    assert "will hold" not in told("answers.jsonl")[1]
    status, said = told(".")
    assert status == 1
    assert "is a directory" in said
