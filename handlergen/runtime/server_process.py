"""Which process is the server's, told from every other that ever has its number."""

from __future__ import annotations

import os
from pathlib import Path


def server_of_this_process() -> tuple[int, int]:
    """The process id and start of TorchServe's frontend: the nearest Java above this process, else its parent.

    A launcher (torchrun, numactl) may stand between the two.
    """
    parent = pid = os.getppid()
    for _ in range(8):
        name, above = _name_and_parent(pid)
        if name == "java":
            return pid, started(pid)
        if above <= 1:
            break
        pid = above
    return parent, started(parent)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name (proc_pid_stat(5)): state, parent, ..., start time at 19."""
    text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    return text[text.rindex(")") + 2 :].split()


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where that cannot be known, -1 where there is none."""
    try:
        fields = _stat(pid)
        return -1 if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return -1
    except (OSError, ValueError, IndexError):
        return 0
    try:  # no /proc: only whether it is there
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        return 0
    return 0


def _name_and_parent(pid: int) -> tuple[str, int]:
    try:
        name = Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
        return name, int(_stat(pid)[1])
    except (OSError, ValueError, IndexError):
        return "", 0
