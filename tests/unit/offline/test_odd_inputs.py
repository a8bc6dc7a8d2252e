"""Inputs that nobody plans for: names and bytes that are no text, wide fields, pipes, links."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from handlergen.errors import HandlergenError
from handlergen.local.offline.sources import open_source
from tests.unit.offline.conftest import HANDLERGEN, lines, run

ECHO = "def predict(inputs):\n    return inputs\n"


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    path = tmp_path / "echo.py"
    path.write_text(ECHO)
    return path


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_a_file_whose_name_is_no_text(module: Path, tmp_path: Path, output: str) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / os.fsdecode(b"caf\xe9.bin")).write_bytes(b"12")
    run(module, scans, tmp_path / output, workers=1)
    if output == "out.jsonl":
        (row,) = lines(tmp_path / output)
        assert (os.fsencode(row["id"]), row["answer"]) == (b"caf\xe9.bin", {"y": 4.0})
    else:
        assert parquet.read_table(tmp_path / output)["id"].to_pylist() == ["caf\\udce9.bin"]


def test_half_a_surrogate_pair_in_parquet(echo: Path, tmp_path: Path) -> None:
    rows = ['{"key": "\\ud83d", "text": "a"}', '{"key": "b", "text": "\\ud83d"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    run(echo, tmp_path / "rows.jsonl", tmp_path / "out.parquet")
    answers = parquet.read_table(tmp_path / "out.parquet")["answer"].to_pylist()
    assert [json.loads(answer) for answer in answers] == [json.loads(row) for row in rows]


def test_half_a_surrogate_pair_in_an_id(echo: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"key": "\\ud83d"}\n{"key": 7}\n')
    command = [HANDLERGEN, "map", str(echo), "rows.jsonl", "-o", "out.parquet", "--id-field", "key"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["\\ud83d", "7"]


def test_a_wide_field_of_a_csv(echo: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"x\n{'y' * 200_000}\n")
    run(echo, tmp_path / "rows.csv", tmp_path / "out.jsonl")
    assert [len(row["answer"]["x"]) for row in lines(tmp_path / "out.jsonl")] == [200_000]


def test_a_byte_that_is_no_text_fails_its_row_of_a_csv_alone(echo: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"x,y\n1,2\n3,4\n5,caf\xe9\n6,7\n")
    run(echo, tmp_path / "rows.csv", tmp_path / "out.jsonl")
    rows = lines(tmp_path / "out.jsonl")
    assert [row["status"] for row in rows] == [200, 200, 400, 200]
    assert "not UTF-8" in rows[2]["error"]["message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x,y,x\n1,2,3\n", "line 1: the header has 'x' twice"),
        (b"x,caf\xe9\n1,2\n", "line 1: the header is not UTF-8"),
        (b'x\n1\n"2" 3\n4\n', r"line 3: .*expected after"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_with_the_line(text: bytes, message: str) -> None:
    with pytest.raises(HandlergenError, match=message):
        list(open_source("-", format="csv", stdin=io.BytesIO(text)).rows())


def test_links_to_directories_are_left_out_and_told(module: Path, tmp_path: Path) -> None:
    for name in ("scans", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_bytes(b"1")
    (tmp_path / "scans" / "more").symlink_to(tmp_path / "elsewhere")
    told: list[str] = []
    source = open_source(str(tmp_path / "scans"), warn=told.append)
    assert [row.id for row in source.rows()] == ["a.bin"]
    (message,) = told
    assert "1 symbolic link to directories in" in message
    assert "(more)" in message


def test_rows_out_of_a_pipe(echo: Path, tmp_path: Path) -> None:
    command = f"'{HANDLERGEN}' map echo.py <(printf '1\\n2\\n') -o -"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == [1, 2]
    refused = subprocess.run(
        ["bash", "-c", f"{command} --format files"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "is a pipe or a device, not a file" in refused.stderr


@pytest.mark.parametrize("name", ["OUT.PARQUET", "out.NPY"])
def test_a_suffix_in_capitals_promises_the_same(echo: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_text("1\n")
    command = [sys.executable, HANDLERGEN, "map", str(echo), "rows.jsonl", "-o", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr
