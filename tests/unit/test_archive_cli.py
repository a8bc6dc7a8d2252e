"""The verbs archive, generate and inspect: what goes to stdout, what to stderr, what to the disk."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MODULE = """
def setup(context):
    pass

async def preprocess(data):
    return data

def predict(inputs):
    return inputs
"""


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def test_archive_reports_what_it_wrote(run: Run, tmp_path: Path) -> None:
    status, out, err = run("archive", "digits.py", "--devices", "cpu", "--workers-per-device", "2", "--verify")
    assert (status, err) == (0, "")
    content = (tmp_path / "model-store" / "digits.mar").read_bytes()
    assert out.splitlines()[0].split() == ["archive", "model-store/digits.mar"]
    assert f"{len(content):,} bytes" in out
    assert hashlib.sha256(content).hexdigest() in out
    assert "setup(context), preprocess(data), predict(inputs)" in out
    assert "2 on the CPU" in out
    assert "verified" in out


def test_archive_as_json(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".env").write_text("SECRET=1")
    (tmp_path / "data" / "a.txt").write_text("a")
    status, out, err = run("archive", "digits.py", "--json", "--extra-file", "data", "--devices", "1")
    report = json.loads(out)
    assert status == 0
    assert err.startswith("Warning: left out data/.env")
    assert report["warnings"] == [err.removeprefix("Warning: ").strip()]
    assert (report["workers"], report["device_type"], report["device_ids"]) == (4, "gpu", [1])
    assert report["sha256"] == hashlib.sha256((tmp_path / report["path"]).read_bytes()).hexdigest()
    assert {"path": "data/a.txt", "size": 1} in report["files"]


def test_a_dry_run_lists_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("archive", "digits.py", "--dry-run")
    assert status == 0
    assert "digits.py  <- digits.py" in out
    assert "handlergen.json  <- written by handlergen" in out
    status, out, _ = run("archive", "digits.py", "--dry-run", "--json")
    listed = json.loads(out)
    assert {"path": "digits.py", "size": len(MODULE), "origin": str(tmp_path / "digits.py")} in listed["files"]
    assert [path.name for path in tmp_path.iterdir()] == ["digits.py"]


def test_the_users_files_come_first_and_the_runtime_is_one_line(run: Run) -> None:
    planned = run("archive", "digits.py", "--dry-run")[1].splitlines()
    assert planned[1].split()[1:] == ["digits.py", "<-", "digits.py"]
    assert "handlergen_runtime/ (" in planned[-2]
    assert len(planned) < 9
    assert len(run("archive", "digits.py", "--dry-run", "--all")[1].splitlines()) > 30
    assert run("archive", "digits.py")[0] == 0
    shown = run("inspect", "model-store/digits.mar")[1].partition("\nfiles (")[2].splitlines()
    assert shown[1].endswith("  digits.py")
    assert "handlergen_runtime/ (" in shown[-1]
    assert "handlergen_runtime/worker.py" in run("inspect", "model-store/digits.mar", "--all")[1]


def test_a_dry_run_lists_what_archive_packs(run: Run) -> None:
    listed = json.loads(run("archive", "digits.py", "--dry-run", "--json")[1])
    packed = json.loads(run("archive", "digits.py", "--json")[1])
    assert [file["path"] for file in listed["files"]] == [file["path"] for file in packed["files"]]
    assert listed["path"] == packed["path"]
    assert listed["placement"] == packed["placement"]


def test_where_the_stages_run_is_told_before_and_after(run: Run) -> None:
    for predictor, said in (
        ("worker", "every worker predicts for itself"),
        ("process", "one process a device"),
    ):
        asked = ("archive", "digits.py", "--predictor", predictor, "--force")
        assert f"model    {said}" in run(*asked, "--dry-run")[1]
        assert f"model    {said}" in run(*asked)[1]
        assert said in run("inspect", "model-store/digits.mar")[1].partition("\nsettings\n")[0]


def test_a_dry_run_fails_as_the_run_would(run: Run) -> None:
    assert run("archive", "digits.py")[0] == 0
    assert run("archive", "digits.py", "--dry-run")[0] == run("archive", "digits.py")[0] == 1
    assert run("archive", "digits.py", "--dry-run", "--force")[0] == 0


def test_generate_prints_what_archive_packs(run: Run, tmp_path: Path) -> None:
    status, out, err = run("generate", "digits.py")
    assert (status, err) == (0, "")
    assert any(isinstance(node, ast.ClassDef) and node.name == "DigitsHandler" for node in ast.parse(out).body)
    assert run("generate", "digits.py", "-o", "handler.py")[:2] == (0, "")
    assert (tmp_path / "handler.py").read_text() == out
    run("archive", "digits.py")
    files = json.loads(run("inspect", "model-store/digits.mar", "--json")[1])["files"]
    (handler,) = [file for file in files if file["name"] == "handlergen_handler.py"]
    assert handler["sha256"] == hashlib.sha256(out.encode()).hexdigest()


def test_generate_into_a_directory_that_is_not_there(run: Run) -> None:
    status, out, err = run("generate", "digits.py", "-o", "missing/handler.py")
    assert (status, out) == (1, "")
    assert "missing/handler.py could not be written" in err


def test_inspect(run: Run) -> None:
    run("archive", "digits.py", "--config", "limit=3")
    status, out, _ = run("inspect", "model-store/digits.mar")
    assert status == 0
    sha256 = hashlib.sha256(MODULE.encode()).hexdigest()
    for text in ("digits 1.0", "preprocess(data)", '{"limit": 3}', "minWorkers", sha256):
        assert text in out
    report = json.loads(run("inspect", "model-store/digits.mar", "--json")[1])
    assert report["handlergen"]["contract"]["module"] == "digits"
    assert report["model_config"]["batchSize"] == 1
    assert {file["name"]: file["size"] for file in report["files"]}["digits.py"] == len(MODULE)


def test_the_progress_bar_is_for_terminals(tmp_path: Path) -> None:
    with (tmp_path / "weights.bin").open("wb") as weights:
        weights.truncate(80 << 20)
    command = [sys.executable, "-c", "from handlergen.cli import main; main()", "archive", "digits.py", "--force"]
    command += ["--extra-file", "weights.bin"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert plain.stderr == ""
    master, slave = pty.openpty()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # how Linux says that nobody has the terminal open any more
                break
            if not piece:
                break
            shown += piece
        out = process.stdout.read() if process.stdout else b""
    os.close(master)
    assert process.returncode == 0
    assert b"packing" in shown
    assert b"100%" in shown
    assert out.decode() == plain.stdout
