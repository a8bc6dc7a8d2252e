"""What rows are read from, and what answers are written to."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from pyarrow import parquet

import handlergen
from handlergen.errors import HandlergenError
from handlergen.local.offline.engine import LocalEngine
from handlergen.local.offline.job import map_to_file
from handlergen.local.offline.output import to_parquet
from handlergen.local.offline.sources import open_source
from tests.unit.offline.conftest import HANDLERGEN, lines, run, write_rows


def answers(path: Path) -> list[Any]:
    return [row["answer"] for row in lines(path)]


def test_inputs_of_every_kind(module: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('x,note\n1,"a, b"\n2,c\n')
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    run(tmp_path / "echo.py", tmp_path / "rows.csv", tmp_path / "csv.jsonl")
    assert answers(tmp_path / "csv.jsonl") == [{"x": "1", "note": "a, b"}, {"x": "2", "note": "c"}]

    numpy.save(tmp_path / "rows.npy", numpy.arange(6, dtype="float32").reshape(3, 2))
    (tmp_path / "rows.py").write_text("def predict(inputs):\n    return [str(inputs.dtype), inputs.sum()]\n")
    run(tmp_path / "rows.py", tmp_path / "rows.npy", tmp_path / "npy.jsonl")
    assert answers(tmp_path / "npy.jsonl") == [["float32", total] for total in (1.0, 5.0, 9.0)]

    (tmp_path / "scans" / "deep").mkdir(parents=True)
    for name in ("b.bin", "a.bin", "deep/c.bin", ".hidden"):
        (tmp_path / "scans" / name).write_bytes(b"x" * len(name))
    run(module, tmp_path / "scans", tmp_path / "files.jsonl", workers=2)
    found = [(row["id"], row["answer"]["y"]) for row in lines(tmp_path / "files.jsonl")]
    assert found == [("a.bin", 10.0), ("b.bin", 10.0), ("deep/c.bin", 20.0)]
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
    kinds = [["image/png", "bytes"], ["application/json", "dict"], ["text/plain", "str"]]
    assert answers(tmp_path / "out.jsonl") == kinds


def test_a_row_keeps_its_own_id(module: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"x": 1, "key": "a"}\n\n{"x": 2, "key": 7}\nno json\n')
    with handlergen.load(module) as model:
        map_to_file(
            LocalEngine(model, workers=0, threads=False, warn=pytest.fail),
            open_source(str(tmp_path / "rows.jsonl"), id_field="key"),
            tmp_path / "out.jsonl",
        )
    found = [(row["id"], row["status"]) for row in lines(tmp_path / "out.jsonl")]
    assert found == [("a", 200), (7, 200), (2, 400)]


def test_standard_input_to_standard_output_with_hooks_that_print(tmp_path: Path) -> None:
    source = "def predict(inputs):\n    print('noise')\n    return b'\\xff' if inputs else 'text'\n"
    (tmp_path / "noisy.py").write_text(source)
    command = [HANDLERGEN, "map", str(tmp_path / "noisy.py"), "-", "-o", "-"]
    done = subprocess.run(command, input=b"0\n1\n", capture_output=True, check=True)
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
    numpy.testing.assert_array_equal(numpy.load(tmp_path / "out.npy"), [[1.0, 2.0], [numpy.nan, numpy.nan], [3.0, 4.0]])
    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if name.startswith("out.npy.")}
    with pytest.raises(HandlergenError, match="row 0 is not an array"):
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


@pytest.mark.parametrize(("answers", "columns"), [case[1:] for case in JSON_VALUES], ids=[c[0] for c in JSON_VALUES])
@pytest.mark.parametrize("gap", [0, 5000], ids=["together", "far apart"])
def test_answers_become_a_parquet_column(tmp_path: Path, answers: list[Any], columns: list[Any], gap: int) -> None:
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
    assert [error and sorted(error) for error in table["error"].to_pylist()] == [None, ["message", "type"], None]
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet"}


def test_a_csv_output_has_a_column_for_each_key_and_else_one_for_the_answer(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs or 1 / 0\n")

    def table(name: str, *sent: Any) -> list[list[str]]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(value) + "\n" for value in sent))
        run(tmp_path / "echo.py", tmp_path / "rows.jsonl", tmp_path / name)
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    assert table(
        "objects.csv", {"a": 1, "id": "x"}, 0, {"b": "d\re", "a": 'say "a, b"\rc'}, {"a": None, "c": True}
    ) == [
        ["id", "status", "a", "answer.id", "b", "c", "error"],
        ["0", "200", "1", "x", "", "", ""],
        ["1", "500", "", "", "", "", "InternalError: The model's predict failed"],
        ["2", "200", 'say "a, b"\rc', "", "d\re", "", ""],
        ["3", "200", "", "", "", "true", ""],
    ]
    assert table("kinds.csv", {"a": 1}, ["é", None], "\ud83d") == [
        ["id", "status", "answer", "error"],
        ["0", "200", '{"a":1}', ""],
        ["1", "200", '["é",null]', ""],
        ["2", "200", "\\ud83d", ""],
    ]
    assert table("failed.csv", 0)[0] == ["id", "status", "answer", "error"]
    many = [{f"{number}-{key}": key for key in range(600)} for number in range(2)]
    assert table("many.csv", *many)[0] == ["id", "status", "answer", "error"]
    assert {path.name for path in tmp_path.glob("*.csv*")} == {
        f"{n}.csv" for n in ("objects", "kinds", "failed", "many")
    }
    with pytest.raises(HandlergenError, match=r"many\.csv already exists"):
        table("many.csv", 1)


def test_without_pyarrow_a_parquet_output_is_refused_before_any_row(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    source = write_rows(tmp_path / "rows.jsonl", [1])
    with pytest.raises(HandlergenError, match="needs pyarrow") as raised:
        run(module, source, tmp_path / "out.parquet")
    assert "handlergen[parquet]" in (raised.value.hint or "")
    assert not list(tmp_path.glob("out*"))


def test_a_csv_of_uneven_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    source = open_source("-", format="csv", stdin=io.BytesIO(b"a,b\n1,2\n3\n"))
    with pytest.raises(HandlergenError, match="line 3: the row has fewer fields"):
        list(source.rows())


def test_map_says_what_an_output_will_be(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    (tmp_path / "rows.jsonl").write_text("1\n")

    def told(output: str) -> tuple[int, str]:
        command = [HANDLERGEN, "map", "echo.py", "rows.jsonl", "--workers", "0", "-o", output]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, said = told("answers.tsv")
    assert status == 0
    assert "answers.tsv will contain JSON lines; other formats: .csv, .npy, .parquet" in said
    assert "1 row in" in said
    assert "will hold" not in told("answers.jsonl")[1]
    status, said = told(".")
    assert status == 1
    assert "is a directory" in said
