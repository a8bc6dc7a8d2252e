"""What a process is shown as by `ps` and in `/proc`, when it is not the program any more that was started."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_ARGUMENTS = slice(47, 49)
"""Where the arguments begin and end in memory: fields 48 and 49 of `/proc/PID/stat` (proc_pid_stat(5))."""


def show_as(command: list[str]) -> None:
    """Show this process as a command, as much of it as there is room for; on Linux, and nothing elsewhere.

    The kernel shows the memory that the arguments were put into. When its last byte is not zero, it shows it up to the
    first zero, as text (fs/proc/base.c, `get_mm_cmdline`).
    """
    with contextlib.suppress(OSError, ValueError):
        text = Path("/proc/self/stat").read_text("utf-8", "replace")
        # The second field is a name in parentheses, which may hold anything.
        fields = ["", "", *text[text.rindex(")") + 1 :].split()]
        start, end = map(int, fields[_ARGUMENTS])
        room = end - start - 2
        if not start or room <= 0:
            return
        shown = " ".join(command).encode("utf-8", "surrogateescape")[:room]
        ctypes.memmove(start, shown.ljust(end - start - 1, b"\0") + b"!", end - start)
