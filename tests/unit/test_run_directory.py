"""The directory where workers find their predictor process, and when the next one may start."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlergen.runtime import descriptors
from handlergen.runtime.predictor_process import run_directory
from handlergen.runtime.predictor_process.launcher import Launcher, Unavailable
from handlergen.runtime.predictor_process.run_directory import (
    ForeignProcess,
    Identity,
    RunDirectory,
    Starts,
    check_peer,
    remove_orphans,
)
from handlergen.runtime.server_process import started


def identity(**changes: Any) -> Identity:
    pid = os.getpid()
    return replace(Identity(pid, started(pid), "model", "1.0", "/somewhere", "cpu"), **changes)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(identity(), tmp_path)
    found.make()
    return found


def test_equal_identities_meet_and_others_do_not(tmp_path: Path) -> None:
    others = [
        identity(),
        identity(name="other"),
        identity(version="2.0"),
        identity(model_dir="/elsewhere"),
        identity(device="gpu 0"),
        identity(server_started=1),
    ]
    assert len({RunDirectory(each, tmp_path).path for each in others}) == len(others)
    assert RunDirectory(identity(), tmp_path).path == RunDirectory(identity(), tmp_path).path


def test_the_directory_is_this_users_alone_and_its_name_harmless(tmp_path: Path) -> None:
    found = RunDirectory(identity(name="../../etc/ü x" + "y" * 500), tmp_path)
    found.make()
    assert found.path.parent == tmp_path
    assert found.path.stat().st_mode & 0o777 == 0o700
    found.listen().close()
    assert (found.path / "socket").stat().st_mode & 0o777 == 0o600
    assert RunDirectory.at(found.path).identity == found.identity


def test_a_path_that_no_socket_address_can_hold(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-with-a-long-name"] * 6)
    deep.mkdir(parents=True)
    found = RunDirectory(identity(), deep)
    found.make()
    assert len(str(found.path / "socket")) > 200
    with found.listen():
        connection = found.connect()
        assert connection is not None
        connection.close()


def test_another_users_process_is_refused_at_both_ends(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with directory.listen() as listener:
        monkeypatch.setattr(run_directory.os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(ForeignProcess, match="is user"):
            directory.connect()
        accepted, _ = listener.accept()
        with accepted, pytest.raises(ForeignProcess):
            check_peer(accepted)


def test_an_owner_removes_its_own_directory_only(directory: RunDirectory) -> None:
    owner = directory.own()
    assert owner is not None
    with directory.starting(0):
        directory.remove(owner)
    assert directory.path.exists()  # the next process is being started in it
    (directory.path / "owner.lock").unlink()
    other = directory.own()
    assert other is not None
    directory.remove(owner)
    assert directory.path.exists()  # it is the next process's by now
    directory.remove(other)
    assert not directory.path.exists()
    directory.remove(other)


def test_nothing_is_started_for_an_ended_server(tmp_path: Path, ended: int) -> None:
    ended = RunDirectory(identity(server=ended, server_started=1), tmp_path)
    launcher = Launcher(ended, {}, logging.getLogger("test"))
    with pytest.raises(Unavailable, match="the server has ended"):
        launcher.connect(math.inf)
    assert list(tmp_path.iterdir()) == []


def test_directories_of_dead_servers_are_removed_and_no_others(tmp_path: Path, ended: int) -> None:
    mine = RunDirectory(identity(), tmp_path)
    theirs = RunDirectory(identity(server=ended, server_started=1), tmp_path)
    reused = RunDirectory(identity(server_started=1), tmp_path)  # the number is another process's by now
    unwritten = tmp_path / f"predictor-{ended}-model-0123"  # its maker was killed just then
    written_now = tmp_path / f"predictor-{os.getpid()}-model-0123"
    held = RunDirectory(identity(server=ended, server_started=2), tmp_path)
    for each in (mine, theirs, reused, held):
        each.path.mkdir(mode=0o700)
        (each.path / "identity.json").write_text(json.dumps(each.identity.__dict__))
    unwritten.mkdir()
    written_now.mkdir()
    (tmp_path / "cpu.lock").touch()
    owner = held.own()
    assert owner is not None
    remove_orphans(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine.path, held.path, written_now, tmp_path / "cpu.lock"])
    descriptors.close(owner)
    RunDirectory(identity(), tmp_path).make()  # as the next worker does
    assert not held.path.exists()


def test_a_forked_child_does_not_keep_the_start_to_itself(directory: RunDirectory) -> None:
    """Of a pool that a hook makes while the worker starts the predictor process."""
    with directory.starting(0) as ours:
        assert ours
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with directory.starting(0) as ours:
            assert ours
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_first_death_costs_nothing_and_the_next_ones_more_and_more() -> None:
    def delays(reason: str) -> list[float]:
        return [Starts(100.0, in_a_row, reason).next_after() - 100.0 for in_a_row in range(1, 9)]

    assert delays("") == [0, 1, 2, 4, 4, 4, 4, 4]
    assert delays("cannot be loaded") == [0, 1, 2, 4, 8, 16, 30, 30]


def test_starts_are_counted_and_a_process_that_served_is_no_failure(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert directory.starts() == Starts()
    now = 1000.0
    monkeypatch.setattr(run_directory.time, "monotonic", lambda: now)
    for _ in range(3):
        directory.note_start()
    directory.note_failure("ValueError: no weights", "Traceback")
    assert directory.starts() == Starts(1000.0, 3, "ValueError: no weights", 3, "Traceback")
    now = 1100.0
    directory.note_start()
    assert directory.starts() == Starts(1100.0, 1, "", 4)
    (directory.path / "starts.json").write_text("{broken")
    assert directory.starts() == Starts()
