"""The device lock, with real processes: taking turns, deadlines, killed holders, forks, a deleted file."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from handlergen.runtime.codec.errors import LockTimeout
from handlergen.runtime.device import lock as device_lock
from handlergen.runtime.device.lock import DeviceLock, PolledLockFile, RobustMutexFile, lock_directory

KINDS = ["mutex", "flock"]

# How each process below begins: with a lock of the kind and in the directory that it is told.
BEGIN = """
import gc, json, os, signal, sys, time
from pathlib import Path
from handlergen.runtime.device import lock as device_lock
from handlergen.runtime.device.lock import PolledLockFile
if sys.argv[1] == "flock":
    device_lock._open = lambda path: PolledLockFile(path.with_suffix(".flock"))
lock = device_lock.DeviceLock("card", Path(sys.argv[2]))
"""

# A process that takes turns and reports when it held the lock.
WORKER = """
turns = []
for _ in range(int(sys.argv[3])):
    lock.acquire(30)
    start = time.monotonic_ns()
    time.sleep(0.002)
    turns.append((start, time.monotonic_ns()))
    lock.release()
print(json.dumps(turns))
"""

# A process that takes the lock and ends without giving it back: its interpreter, or the kernel, tidies up.
QUITTER = """
lock.acquire(30)
if sys.argv[3] == "forgotten":
    del lock
    gc.collect()
    os.kill(os.getpid(), signal.SIGKILL)
"""

# A process that takes the lock, says so, and keeps it.
HOLDER = """
lock.acquire(30)
if sys.argv[3] == "fork" and os.fork() == 0:
    os.close(1)
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "flock":
        monkeypatch.setattr(device_lock, "_open", lambda path: PolledLockFile(path.with_suffix(".flock")))
    return str(request.param)


def _spawn(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _hold(kind: str, directory: Path, how: str = "plain") -> subprocess.Popen[str]:
    holder = _spawn(HOLDER, kind, directory, how)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def _end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_linux_uses_the_mutex(tmp_path: Path) -> None:
    assert sys.platform != "linux" or isinstance(device_lock._open(tmp_path / "x.lock"), RobustMutexFile)


def test_processes_take_turns(kind: str, tmp_path: Path) -> None:
    workers = [_spawn(WORKER, kind, tmp_path, 25) for _ in range(4)]
    turns = []
    for number, worker in enumerate(workers):
        out, _ = worker.communicate(timeout=60)
        turns += [(start, end, number) for start, end in json.loads(out)]
    assert len(turns) == 100
    turns.sort()
    overlaps = [pair for pair in itertools.pairwise(turns) if pair[0][1] > pair[1][0]]
    assert overlaps == []


def test_no_worker_starves(tmp_path: Path) -> None:
    """When the first of four has had its 60 turns, each of the others has had a good part of its own."""
    workers = [_spawn(WORKER, "mutex", tmp_path, 60) for _ in range(4)]
    turns = []
    for worker in workers:
        out, _ = worker.communicate(timeout=60)
        turns.append([start for start, _ in json.loads(out)])
    began = max(starts[0] for starts in turns)
    ended = min(starts[-1] for starts in turns)
    # Between the moment when all are there and that when the first is done. Fair would be a quarter each; a machine
    # that lets one of them sleep takes turns from it, but only as many as it sleeps through.
    had = [sum(began <= start <= ended for start in starts) for starts in turns]
    assert min(had) >= sum(had) / 16, had


def test_threads_take_turns(kind: str, tmp_path: Path) -> None:
    inside: list[int] = []
    seen = []

    def work() -> None:
        lock = DeviceLock("card", tmp_path)
        for _ in range(20):
            lock.acquire(30)
            inside.append(1)
            seen.append(len(inside))
            time.sleep(0.0005)
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 80


def test_deadline_names_the_holder(kind: str, tmp_path: Path) -> None:
    holder = _hold(kind, tmp_path)
    try:
        lock = DeviceLock("card", tmp_path)
        start = time.monotonic()
        with pytest.raises(LockTimeout, match=f"held by process {holder.pid}"):
            lock.acquire(0.4)
        assert time.monotonic() - start >= 0.4
    finally:
        _end(holder)


def test_killed_holder_frees_the_lock(kind: str, tmp_path: Path) -> None:
    holder = _hold(kind, tmp_path)
    lock = DeviceLock("card", tmp_path)
    threading.Timer(0.3, _end, [holder]).start()
    lock.acquire(20)
    lock.release()
    # And once more, by another process: the lock is whole again.
    again = _hold(kind, tmp_path)
    _end(again)
    lock.acquire(20)
    lock.release()


@pytest.mark.parametrize("how", ["exit", "forgotten"])
def test_a_holder_that_just_ends_frees_the_lock(kind: str, how: str, tmp_path: Path) -> None:
    # The kernel can only free a mutex that is still mapped when its holder dies.
    quitter = _spawn(QUITTER, kind, tmp_path, how)
    quitter.communicate(timeout=60)
    lock = DeviceLock("card", tmp_path)
    lock.acquire(5)
    lock.release()


def test_forked_child_does_not_keep_a_dead_holders_lock(kind: str, tmp_path: Path) -> None:
    holder = _hold(kind, tmp_path, "fork")
    try:
        holder.kill()  # its child lives on
        holder.wait()
        lock = DeviceLock("card", tmp_path)
        lock.acquire(20)
        lock.release()
    finally:
        _end(holder)


def test_other_keys_do_not_wait(tmp_path: Path) -> None:
    first, second = DeviceLock("GPU-1", tmp_path), DeviceLock("GPU-2", tmp_path)
    first.acquire(1)
    second.acquire(0)
    second.release()
    first.release()


def test_a_deleted_lock_file_is_noticed(tmp_path: Path) -> None:
    """Two processes must not hold two files of one name."""
    old = DeviceLock("card", tmp_path)
    old.acquire(1)
    old.release()
    for path in tmp_path.iterdir():
        path.unlink()
    new = DeviceLock("card", tmp_path)
    new.acquire(1)
    with pytest.raises(LockTimeout):
        old.acquire(0.1)
    new.release()
    old.acquire(1)
    old.release()


def test_a_deleted_directory_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "locks"
    directory.mkdir()
    lock = DeviceLock("card", directory)
    shutil.rmtree(directory)
    lock.acquire(math.inf)
    lock.release()
    assert [path.suffix for path in directory.iterdir()] == [".lock"]


def test_garbage_in_the_lock_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    path.write_bytes(b"\0" * os.sysconf("SC_PAGESIZE"))
    with pytest.raises(OSError, match="not a lock file"):
        RobustMutexFile(path)


def test_directory_is_private_and_ours(tmp_path: Path) -> None:
    directory = lock_directory({"HANDLERGEN_STATE_DIR": str(tmp_path / "state")})
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="0700"):
        lock_directory({"HANDLERGEN_STATE_DIR": str(tmp_path / "state")})


def test_a_linked_directory_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "locks").symlink_to(elsewhere)
    with pytest.raises(PermissionError):
        lock_directory({"HANDLERGEN_STATE_DIR": str(tmp_path / "state")})


def test_the_directory_does_not_depend_on_the_temp_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert tmp_path not in lock_directory({"TMPDIR": str(tmp_path)}).parents


def test_a_lock_file_deleted_during_the_wait_is_noticed(tmp_path: Path) -> None:
    """Whoever waited at the deleted file must queue at the new one, where somebody else may be already."""
    holder, waiter = DeviceLock("card", tmp_path), DeviceLock("card", tmp_path)
    holder.acquire(1)
    outcome: list[str] = []

    def wait() -> None:
        try:
            waiter.acquire(3)
            outcome.append("taken")
            waiter.release()
        except LockTimeout:
            outcome.append("timeout")

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    for path in tmp_path.iterdir():
        path.unlink()
    new = DeviceLock("card", tmp_path)
    new.acquire(1)
    holder.release()
    waiting.join()
    new.release()
    assert outcome == ["timeout"]
