"""Processes of a server, recognised by process id and start time; the processes that hold a copy of a model."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


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


class ModelCopies:
    """The processes of one server that hold a copy of a model on one device.

    Each process has a file, named after its id and start: the file of a process that was killed does not count.

    Args:
        directory: The user's private one, which must exist.
    """

    def __init__(self, directory: Path, *, server: str, model: str, version: str, device: str) -> None:
        digest = hashlib.sha256("\0".join((server, model, version, device)).encode()).hexdigest()[:16]
        self._directory = directory
        self._prefix = f"{_copies_prefix()}{digest}-"
        self._own = directory / f"{self._prefix}{os.getpid()}-{started(os.getpid())}"

    def add(self) -> None:
        """Count this process from now on.

        Raises:
            OSError: The file cannot be made.
        """
        remove_left_behind(self._directory)
        self._own.touch(mode=0o600)

    def count(self) -> int:
        """Return the number of running processes with a copy."""
        return sum(map(_is_running, self._directory.glob(f"{self._prefix}*-*")))

    def close(self) -> None:
        """Do not count this process any more."""
        self._own.unlink(missing_ok=True)


def remove_left_behind(directory: Path) -> None:
    """Remove the files of killed processes: a server ends by killing its workers."""
    for path in directory.glob(f"{_copies_prefix()}*-*-*"):
        if not _is_running(path):
            path.unlink(missing_ok=True)


def _copies_prefix() -> str:
    """Return the start of the files' names; containers that share the directory have process ids of their own."""
    try:
        return f"copies-{Path('/proc/self/ns/pid').stat().st_ino}-"
    except OSError:  # no /proc
        return "copies-0-"


def _is_running(path: Path) -> bool:
    """Return whether the process that made a file runs."""
    _, pid, start = path.name.rsplit("-", 2)
    return started(int(pid)) == int(start)
