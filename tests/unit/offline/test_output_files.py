"""The files of a run's output: never its input, never read as one, and what is said when they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from handlergen.errors import HandlergenError
from handlergen.local.offline import journal as journals
from tests.unit.offline.conftest import lines, run, write_rows


def _linked(rows: Path) -> Path:
    (rows.parent / "link.jsonl").symlink_to(rows)
    return rows.parent / "link.jsonl"


def _hard_linked(rows: Path) -> Path:
    os.link(rows, rows.parent / "other.jsonl")
    return rows.parent / "other.jsonl"


OUTPUTS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda rows: rows,
    "a link to it": _linked,
    "a hard link to it": _hard_linked,
    "its journal": lambda rows: rows.rename(rows.with_name("out.jsonl.journal")).with_name("out.jsonl"),
    "its lines": lambda rows: rows.rename(rows.with_name("out.npy.rows.jsonl")).with_name("out.npy"),
}


@pytest.mark.parametrize("output_of", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_the_input_is_refused_and_left_alone(
    module: Path, tmp_path: Path, output_of: Callable[[Path], Path], overwrite: bool
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [1, 2])
    content = rows.read_bytes()
    inode = rows.stat().st_ino
    output = output_of(rows)
    (source,) = {path for path in tmp_path.iterdir() if path.stat().st_ino == inode and path != output} or {rows}
    with pytest.raises(HandlergenError, match="is the input, and the run would overwrite it"):
        run(module, source, output, overwrite=overwrite)
    assert source.read_bytes() == content


def test_a_single_file_of_another_kind_is_not_written_over_either(module: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.bin").write_bytes(b"123")
    with pytest.raises(HandlergenError, match="is the input"):
        run(module, tmp_path / "photo.bin", tmp_path / "photo.bin", overwrite=True)
    assert (tmp_path / "photo.bin").read_bytes() == b"123"


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.npy"])
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_an_output_in_the_input_directory_is_no_input(tmp_path: Path, name: str, pattern: str) -> None:
    sizes = tmp_path / "sizes.py"
    sizes.write_text("def preprocess(data):\n    return len(data)\n\ndef predict(inputs):\n    return inputs\n")
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(3):
        (scans / f"{number}.bin").write_bytes(b"x" * number)
    (tmp_path / "same").symlink_to(scans)  # the directory under another name
    assert run(sizes, f"{tmp_path}/same{pattern}", scans / name, batch_size=1).rows == 3
    again = run(sizes, f"{scans}{pattern}", scans / name, batch_size=1, overwrite=True)
    assert (again.rows, again.failed) == (3, 0)
    assert sorted(path.name for path in scans.iterdir()) == ["0.bin", "1.bin", "2.bin", name]


def test_what_the_system_refuses_is_told_with_what_is_kept(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = write_rows(tmp_path / "rows.jsonl", list(range(10))), tmp_path / "out.jsonl"
    written = []
    write_all = journals._write_all

    def full(file: int, content: bytes) -> None:
        written.append(content)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(journals, "_write_all", full)
        with pytest.raises(HandlergenError, match=r"out\.jsonl cannot be written: No space left") as caught:
            run(module, rows, output, batch_size=2)
    assert caught.value.hint is not None
    assert "repeat the command to resume" in caught.value.hint
    assert run(module, rows, output, batch_size=2).resumed_rows == 2
    assert [row["id"] for row in lines(output)] == list(range(10))


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file/out.jsonl", "File exists|Not a directory"), (f"{'x' * 300}.jsonl", "File name too long")],
)
def test_an_output_that_cannot_be_there_is_named(module: Path, tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HandlergenError, match=rf"cannot be written: ({reason})") as caught:
        run(module, write_rows(tmp_path / "rows.jsonl", [1]), tmp_path / place)
    assert caught.value.hint == "name another output with -o"


def test_an_interrupted_conversion_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    (tmp_path / "rows.jsonl").write_text("1\n2\n")

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("handlergen.local.offline.job.CONVERTERS", {".npy": full})
        with pytest.raises(HandlergenError, match=r"out\.npy cannot be written: No space left"):
            run(tmp_path / "echo.py", tmp_path / "rows.jsonl", tmp_path / "out.npy")
    assert run(tmp_path / "echo.py", tmp_path / "rows.jsonl", tmp_path / "out.npy").resumed_rows == 2
    assert numpy.load(tmp_path / "out.npy").tolist() == [1, 2]
