"""Disks that are full, or become so: nothing half written is left, and what was there stays as it was."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlergen.performance.recordings import read_spans
from handlergen.runtime.telemetry.recording import Spans, spans_from_environment
from tests.full_disk import Disk, small_disk

HANDLERGEN = str(Path(sys.executable).parent / "handlergen")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "1m") as found:
        if not found.own:
            pytest.skip("a file system of its own needs the right to mount one")
        yield found


def small_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))


def archive(project: Path, store: Path, before: Callable[[], Any] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HANDLERGEN, "archive", "model.py", "--model-store", str(store), "--force"],
        cwd=project,
        capture_output=True,
        text=True,
        preexec_fn=before,
        env={**os.environ, "TMPDIR": str(project / "temp")},
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A model whose archive takes more than 1 MiB, once it has its weights."""
    directory = tmp_path / "project"
    (directory / "temp").mkdir(parents=True)
    (directory / "model.py").write_text("def predict(inputs):\n    return inputs\n")
    (directory / "handlergen.yaml").write_text("extra_files: [labels.bin]\n")
    (directory / "labels.bin").write_bytes(b"few")
    return directory


@pytest.mark.parametrize("how", ["full", "becomes full"])
def test_an_archive_that_does_not_fit_leaves_the_former_one(
    project: Path, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue("disk").directory if how == "full" else tmp_path / "store"
    done = archive(project, store)
    assert done.returncode == 0, done.stderr
    before = (store / "model.mar").read_bytes()
    (project / "labels.bin").write_bytes(os.urandom(2 << 20))
    done = archive(project, store, None if how == "full" else small_files)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    if how == "full":
        assert "bytes left; the archive takes 2," in done.stderr
    else:
        assert "File too large" in done.stderr
    assert [path.name for path in store.iterdir()] == ["model.mar"]
    assert (store / "model.mar").read_bytes() == before
    assert list((project / "temp").iterdir()) == []


def test_spans_that_cannot_be_written_are_lost_and_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"spans-m-{os.getpid()}.jsonl").symlink_to("/dev/full")
    spans = Spans(tmp_path, model="m", device="cpu")
    for _ in range(3):
        spans.record("predict", "a", 1, 2)
        spans.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "spans are lost until they can be written: [Errno 28] No space left on device"
    ]


def test_half_a_line_of_spans_is_taken_back(tmp_path: Path) -> None:
    spans = Spans(tmp_path, model="m", device="cpu")
    spans.record("predict", "first", 1, 2)
    spans.flush()
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        spans.record("predict", "lost", 3, 4)
        spans.flush()
        assert file.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spans.record("predict", "last", 5, 6)
    spans.flush()
    assert [span.request_id for span in read_spans(tmp_path)] == ["first", "last"]


def test_a_trace_directory_that_cannot_be_made_is_no_reason_not_to_predict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    environ = {"HANDLERGEN_TRACE_DIR": str(tmp_path / "file" / "spans")}
    assert spans_from_environment("m", "cpu", environ=environ) is None
    assert "no spans are recorded" in caplog.text


MAKES = """
import sys
from pathlib import Path
from handlergen.runtime.device.lock import DeviceLock
from handlergen.runtime.predictor_process.run_directory import StatusFile
try:
    DeviceLock("cpu", Path(sys.argv[1])) if sys.argv[2] == "lock" else StatusFile.make(Path(sys.argv[1], "status"))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["lock", "status"])
def test_a_mapped_file_is_not_made_on_a_full_disk(disk: Disk, what: str) -> None:
    with disk.full():
        done = subprocess.run(
            [sys.executable, "-c", MAKES, str(disk.directory), what], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.returncode  # -7 would be SIGBUS: writing to a page of memory that has no place
    assert "No space left on device" in done.stdout
    assert list(disk.directory.iterdir()) == []
