"""What the operating system refuses reaches a user as a sentence, whichever verb met it; never as a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen.cli.invoke import _write

Run = Callable[..., tuple[int, str, str]]
HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    (tmp_path / "rows.jsonl").write_text("1\n2\n")
    return tmp_path / "echo.py"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run it where `$H` is handlergen."""
    environ = {**os.environ, "H": HANDLERGEN}
    return subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("$H predict echo.py 1 > /dev/full", "cannot write the output: No space left on device"),
        ("$H check echo.py > /dev/full", "cannot write the output: No space left on device"),
        ("$H predict echo.py 1 -o /dev/full", "cannot write /dev/full: No space left on device"),
        ("$H predict echo.py 1 2 -o /dev/full", "cannot write /dev/full: No space left on device"),
        ("$H map echo.py rows.jsonl -o - > /dev/full", "cannot write the output: No space left on device"),
        ("$H map echo.py rows.jsonl -o $(printf 'x%.0s' {1..300}).npy", "File name too long"),
        ("mkdir gone && cd gone && rmdir ../gone && $H check ../echo.py", "the working directory no longer exists"),
        ("mkdir gone && cd gone && rmdir ../gone && $H doctor", "the working directory no longer exists"),
    ],
)
def test_one_sentence_and_what_to_do_next(source: Path, command: str, message: str) -> None:
    done = shell(command)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == 1
    assert message in done.stderr
    assert "Hint: " in done.stderr


def test_a_limit_on_the_size_of_files_is_told_and_the_run_goes_on(source: Path) -> None:
    command = "$H map echo.py <(seq 3000) -o answers.jsonl"
    limited = shell(f"ulimit -f 8; {command}")
    assert limited.returncode == 1
    assert "answers.jsonl cannot be written: File too large" in limited.stderr
    assert "repeat the command to resume" in limited.stderr
    went_on = shell(command)
    assert went_on.returncode == 0, went_on.stderr
    assert (source.parent / "answers.jsonl").read_bytes().count(b"\n") == 3000


def test_an_output_that_is_a_directory_is_refused_before_the_work(source: Path, run: Run) -> None:
    source.write_text("raise RuntimeError('imported')\n\ndef predict(inputs):\n    return inputs\n")
    status, _, said = run("predict", "echo.py", "1", "-o", ".")
    assert status == 1
    assert "it is a directory" in said
    assert "Hint: give a file in it" in said


def test_an_answer_that_finds_no_room_names_its_file() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        _write([b"answer"], Path("/dev/full"))


@pytest.mark.parametrize(
    "command", ["seq 100000 | $H map echo.py - -o -", "$H --help", "$H check --help", "$H check echo.py"]
)
def test_a_reader_that_goes_away_ends_the_verb_quietly(source: Path, command: str) -> None:
    done = shell(f"{{ {command}; echo ended with $? >&2; }} | true")
    assert done.stderr.splitlines() == ["ended with 141"]


def test_a_path_that_is_no_text_is_printed_as_it_is(source: Path) -> None:
    directory = source.parent / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    source.rename(directory / "echo.py")
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [HANDLERGEN, "check", str(directory / "echo.py")]
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\xe9/echo.py: form functions" in done.stdout


def test_another_pipe_that_breaks_is_told(source: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def broken(*_args: object, **_named: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("handlergen.cli.check.open_project", broken)
    assert run("check", "echo.py") == (1, "", "Error: Broken pipe\n")
