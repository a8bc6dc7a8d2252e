"""Processes of a server, recognised by process id and start time; the processes that hold a copy of a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path


def torchserve_version() -> tuple[int, ...]:
    """Return the version of the TorchServe whose worker this process is, as (0, 11, 1); else an empty tuple.

    A worker has imported the package `ts` before it imports a handler (ts/model_service_worker.py).
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", getattr(sys.modules.get("ts"), "__version__", ""))
    return tuple(map(int, found.groups())) if found else ()


def server_of_this_process() -> tuple[int, int]:
    """Return process id and start of TorchServe's frontend: the nearest Java ancestor, else the parent process.

    A launcher (torchrun, numactl) may run between the two.
    """
    parent = pid = os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(8):
            name, fields = _stat(pid)
            if name == "java":
                return pid, started(pid)
            pid = int(fields[1])
    return parent, started(parent)


def _stat(pid: int) -> tuple[str, list[str]]:
    """Return a process's name and the fields of /proc/PID/stat after it (proc_pid_stat(5)).

    The fields are state, parent, ..., start time at 19.
    """
    text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    end = text.rindex(")")
    return text[text.index("(") + 1 : end], text[end + 2 :].split()


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 where that is unknown, -1 if it does not run."""
    try:
        _name, fields = _stat(pid)
        return -1 if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return -1
    except (OSError, ValueError, IndexError):
        return 0
    try:  # without /proc only its existence can be seen
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        pass
    return 0


class ProcessFiles:
    """A file for each process of a kind, named after its id and start: the file of a killed process does not count.

    Args:
        directory: The user's private one, which must exist.
        kind: What the processes have in common: a word of letters.
        key: What else they have in common, such as their server.
        process: Id and start of the process that `add` is for; this one by default.

    Attributes:
        own: The path of that process's file, which may be a directory.
    """

    def __init__(self, directory: Path, kind: str, *key: str, process: tuple[int, int] | None = None) -> None:
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        self._directory = directory
        self._prefix = f"{kind}-{_pid_namespace()}-{digest}-"
        pid, start = process or (os.getpid(), started(os.getpid()))
        self.own = directory / f"{self._prefix}{pid}-{start}"

    def add(self, seconds: float = 0.0) -> None:
        """Count the process from now on; `lasts` is true for so many seconds.

        Raises:
            OSError: The file cannot be made.
        """
        remove_left_behind(self._directory)
        self.own.touch(mode=0o600)
        end = time.time() + seconds
        os.utime(self.own, (end, end))

    def added(self) -> bool:
        """Return whether the process counts."""
        return self.own.exists()

    def lasts(self, since: float) -> bool:
        """Return whether `add` was called after `since` (`time.time()`), and its time has not passed."""
        try:
            found = self.own.stat()
        except OSError:
            return False
        return found.st_ctime >= since and time.time() < found.st_mtime

    def pids(self) -> list[int]:
        """Return the ids of the running processes of this kind."""
        found = filter(_is_running, self._directory.glob(f"{self._prefix}*-*"))
        return [int(path.name.rsplit("-", 2)[1]) for path in found]

    def count(self) -> int:
        """Return the number of running processes of this kind."""
        return len(self.pids())

    def remove(self, pid: int) -> None:
        """Do not count another process any more."""
        for path in self._directory.glob(f"{self._prefix}{pid}-*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Do not count the process any more."""
        self.own.unlink(missing_ok=True)


KINDS = ("copies", "held", "refusing", "recording")
"""Of `ProcessFiles`: processes with a copy of a model, workers that hold a request, servers that refuse a model's
requests, and servers that record them (a directory)."""


def remove_left_behind(directory: Path) -> None:
    """Remove the files of killed processes: a server ends by killing its workers."""
    for kind in KINDS:
        for path in directory.glob(f"{kind}-{_pid_namespace()}-*-*-*"):
            if not _is_running(path):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _pid_namespace() -> int:
    """Return the number of this process's namespace: containers that share a directory have their own process ids."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # no /proc
        return 0


def _is_running(path: Path) -> bool:
    """Return whether the process of a file runs."""
    _, pid, start = path.name.rsplit("-", 2)
    return started(int(pid)) == int(start)
