"""Where the device locks are: a file system that cannot be written, has no locks, or whose files cannot be mapped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlergen.client import Client
from tests import full_disk, refusals
from tests.archives import make_archive
from tests.commands import HANDLERGEN
from tests.histories import SOURCE, Load, overlapping, predicted, statuses, wrong

pytestmark = pytest.mark.e2e

needs_filters = pytest.mark.skipif(not refusals.possible(), reason="no filters of system calls known here")


@pytest.fixture
def served(project: Callable[..., Path], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`served(placement, refused="locks")` -> `handlergen serve`, where the kernel refuses such system calls.

    Its model, `model`, has two workers.
    """

    def serve(placement: str = "worker", *, refused: str = "") -> subprocess.CompletedProcess[str]:
        settings: dict[str, Any] = {"predictor": placement, "config": {"history": str(tmp_path / "history")}}
        config = project(make_archive(tmp_path, "model", SOURCE, workers_per_device=2, **settings))
        filtered = [sys.executable, refusals.__file__, refused] if refused else []
        return subprocess.run(
            [*filtered, HANDLERGEN, "serve", "--timeout", "60"],
            cwd=config.parent,
            env={**os.environ, "HANDLERGEN_STATE_DIR": "state"},  # each worker has a working directory of its own
            capture_output=True,
            text=True,
            check=False,
        )

    return serve


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nothing can be written there: not even by root, who mounts a file system of that kind."""
    if os.geteuid():
        directory.mkdir(mode=0o500, parents=True)
        yield
        directory.chmod(0o700)
        return
    if not full_disk.mount(directory, "ro,mode=0700"):
        pytest.skip("root may write everywhere, and may mount nothing here")
    try:
        yield
    finally:
        full_disk.unmount(directory)


def test_a_directory_that_cannot_be_written_is_told_before_anything_starts(
    served: Callable[..., Any], tmp_path: Path
) -> None:
    with read_only(tmp_path / "project" / "state"):
        done = served()
    assert done.returncode == 5, done.stderr
    assert "no directory for the device locks" in done.stderr
    assert "HANDLERGEN_STATE_DIR" in done.stderr
    assert not (tmp_path / "project" / "logs").exists()


@needs_filters
@pytest.mark.parametrize(("placement", "refused"), [("worker", "locks,maps"), ("process", "locks")])
def test_a_file_system_without_locks_is_told_by_every_worker(
    served: Callable[..., Any], tmp_path: Path, placement: str, refused: str
) -> None:
    done = served(placement, refused=refused)
    assert done.returncode == 4, done.stderr
    assert "No locks available" in done.stderr
    assert str(tmp_path / "project" / "state") in done.stderr
    assert "HANDLERGEN_STATE_DIR" in done.stderr


@needs_filters
def test_where_files_cannot_be_mapped_file_locks_serialize(served: Callable[..., Any], tmp_path: Path) -> None:
    done = served(refused="maps")
    assert done.returncode == 0, done.stderr
    with (
        Client.from_config(tmp_path / "project" / "config.properties", timeout=30) as client,
        Load(client, "model", 8) as load,
    ):
        while len(load.asked) < 200:
            load.ask()
    assert set(statuses(load.asked)) == {200}
    assert not wrong(load.asked)
    history = predicted(tmp_path / "history")
    assert len({each.pid for each in history}) == 2
    assert not overlapping(history)
    (lock,) = (tmp_path / "project" / "state" / "locks").glob("cpu-*")
    assert lock.suffix == ".flock"
