"""What figures are measured on, and who else used it meanwhile."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from handlergen.server.java import find_java


def machine() -> dict[str, str]:
    """Name -> value of what the figures depend on."""
    return {
        "cores": str(os.cpu_count()),
        "CPU": _cpu_model(),
        "system": " ".join(os.uname()[index] for index in (0, 2, 4)),
        "Python": sys.version.split()[0],
        "torch": version("torch"),
        "TorchServe": version("torchserve"),
        "Java": str(find_java().version),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


class Strangers:
    """How much of the machine's CPU time others take than this process and the servers it measures.

    Args:
        pids: The servers; their children count as theirs.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._ours = [psutil.Process()]
        for pid in pids:
            server = psutil.Process(pid)
            self._ours += [server, *server.children(recursive=True)]
        self._before = self._now()

    def start(self) -> None:
        """Count from now."""
        self._before = self._now()

    def share(self) -> float:
        """The part of all cores' time, 0..1, that others took since `start`."""
        everybody, ours, at = (after - before for after, before in zip(self._now(), self._before, strict=True))
        return max(0.0, everybody - ours) / (at * (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float, float]:
        every = psutil.cpu_times()
        ours = 0.0
        for process in self._ours:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                ours += times.user + times.system
        return every.user + every.system + every.nice, ours, time.monotonic()
