"""What processes take while they run, and whether it grows: a line fitted over time, and how certain its slope is."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import psutil


@dataclass(frozen=True)
class Slope:
    """A line through measurements.

    Attributes:
        first, last: The line at both ends.
        per_minute: How fast it climbs.
        error: The standard error of that.
    """

    first: float
    last: float
    per_minute: float
    error: float

    def __str__(self) -> str:
        return f"{self.per_minute:+.2f} ± {self.error:.2f} a minute ({self.first:.1f} to {self.last:.1f})"


def slope(points: list[tuple[float, float]]) -> Slope:
    """The least squares line through (seconds, value); at least three points."""
    count = len(points)
    middle = sum(time for time, _ in points) / count
    mean = sum(value for _, value in points) / count
    spread = sum((time - middle) ** 2 for time, _ in points)
    rate = sum((time - middle) * (value - mean) for time, value in points) / spread
    rest = sum((value - mean - rate * (time - middle)) ** 2 for time, value in points)
    error = math.sqrt(rest / (count - 2) / spread)
    ends = [mean + rate * (points[at][0] - middle) for at in (0, -1)]
    return Slope(ends[0], ends[1], rate * 60, error * 60)


class Growth:
    """Measures processes in a thread; a context manager.

    Args:
        processes: Called for what there is to measure: process ids by name.
        every_s: How often.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]], every_s: float = 1.0) -> None:
        self._processes = processes
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._files: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def memory(self) -> dict[str, Slope]:
        """Memory that is a process's alone (USS), in MB, without the first third: caches and pools fill up."""
        return _settled(self._memory)

    def files(self) -> dict[str, Slope]:
        """Open file descriptors, without the first third."""
        return _settled(self._files)

    def _run(self) -> None:
        watched: dict[str, psutil.Process] = {}
        while not self._stop.is_set():
            began = time.monotonic()
            for name, pid in self._processes().items():
                try:
                    process = watched.get(name)
                    if process is None or process.pid != pid:
                        process = watched[name] = psutil.Process(pid)
                    self._memory[name].append((began, process.memory_full_info().uss / 1e6))
                    self._files[name].append((began, process.num_fds()))
                except psutil.Error:
                    continue
            self._stop.wait(max(0.1, began + self._every_s - time.monotonic()))


def _settled(measured: Mapping[str, list[tuple[float, float]]]) -> dict[str, Slope]:
    return {name: slope(points[len(points) // 3 :]) for name, points in measured.items() if len(points) >= 6}
