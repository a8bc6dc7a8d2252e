"""Whose CPU time it was: the model's workers, TorchServe's frontend, this process, others."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

_NEARLY = 0.9


@dataclass(frozen=True)
class CpuUse:
    """CPU time within a window, as a number of cores: 1.0 is one core all the time.

    Attributes:
        cores: That this machine has (for this process).
        workers, frontend: The server's; None when it does not run on this machine.
        client: This process: the load generator.
        others: The rest of the machine; None where that cannot be told from outside it.
    """

    cores: int
    client: float
    workers: float | None = None
    frontend: float | None = None
    others: float | None = None

    @property
    def full(self) -> float:
        """The part of all cores that was in use, 0..1."""
        return sum(filter(None, (self.client, self.workers, self.frontend, self.others))) / self.cores


class CpuMeter:
    """Takes readings of groups of processes.

    Args:
        groups: Name (`workers`, `frontend`) -> pids; a worker's children count as the worker.
    """

    def __init__(self, groups: Mapping[str, Iterable[int]]) -> None:
        self._groups: dict[str, list[psutil.Process]] = {}
        for name, pids in groups.items():
            found = self._groups[name] = []
            for pid in pids:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    found.append(process)
                    if name == "workers":
                        found += process.children(recursive=True)
        self._own = psutil.Process()
        self.cores = cores()

    def read(self) -> dict[str, float]:
        """Name -> CPU seconds so far; `machine` for all, `at` for the time on the clock."""
        every = psutil.cpu_times()
        reading = {
            "at": time.monotonic(),
            "machine": sum(
                getattr(every, kind, 0.0) for kind in ("user", "system", "nice", "irq", "softirq")
            ),
            "client": _cpu_s(self._own),
        }
        for name, processes in self._groups.items():
            reading[name] = sum(map(_cpu_s, processes))
        return reading

    def use(self, before: Mapping[str, float], after: Mapping[str, float]) -> CpuUse:
        """What was used between two readings."""
        spent = {name: after[name] - before[name] for name in before}
        seconds = max(spent.pop("at"), 1e-9)
        known = {name: max(0.0, spent[name]) / seconds for name in spent if name != "machine"}
        # In a container the machine's times are those of the host, which may have more cores than we may use.
        whole = self.cores == (os.cpu_count() or 1)
        others = max(0.0, spent["machine"] / seconds - sum(known.values())) if whole else None
        return CpuUse(
            self.cores,
            known["client"],
            known["workers"] if self._groups.get("workers") else None,
            known["frontend"] if self._groups.get("frontend") else None,
            others,
        )


class Readings:
    """Readings at two moments, taken by a thread beside a load.

    The second is due when the load ends, and is taken when that is a little earlier.
    """

    def __init__(self, meter: CpuMeter, first_s: float, second_s: float) -> None:
        self._meter = meter
        self._taken: list[dict[str, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(first_s, second_s), daemon=True)

    def __enter__(self) -> Readings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def use(self) -> CpuUse | None:
        """What was used between them; None when the load ended early."""
        return self._meter.use(*self._taken) if len(self._taken) == 2 else None

    def _take(self, first_s: float, second_s: float) -> None:
        began = time.monotonic()
        for at in (first_s, second_s):
            ended = self._stopped.wait(max(0.0, began + at - time.monotonic()))
            nearly = first_s + _NEARLY * (second_s - first_s)
            if ended and (not self._taken or time.monotonic() - began < nearly):
                return
            self._taken.append(self._meter.read())


def cores() -> int:
    """How many this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
