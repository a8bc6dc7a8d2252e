"""The bottleneck of a load test: CPU use by process group, and a verdict in a word and a sentence."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from handlergen.local.offline.preparation import available_cores
from handlergen.performance.bench.traffic import RIGHT, Closed, Figures, Open, Pace
from handlergen.performance.recordings import Recorded

BUSY = 0.93  # a device or a CPU with this share of busy time is the bottleneck
_NEARLY = 0.8
_NEARLY_FULL = 0.85
_OWN_SHARE = 0.5
_COMPUTES = 0.25
_WAIT_SHARE = 0.25
_KEPT_UP = 0.97
_ONE_THREAD = 0.9
_EARLY = 0.9  # share of a load after which the second reading may be taken
_NOT_WORK = ("lock_wait", "predict")


@dataclass(frozen=True)
class CpuUse:
    """CPU use within a window, in cores: 1.0 is one core all the time.

    Attributes:
        cores: Cores that this process may use.
        client: This process, the load generator.
        workers, frontend: The server's processes; None if it runs on another machine.
        others: The rest of the machine; None if unknown, in a container.
    """

    cores: int
    client: float
    workers: float | None = None
    frontend: float | None = None
    others: float | None = None

    @property
    def full(self) -> float:
        """Share of all cores that was in use, 0..1."""
        return sum(filter(None, (self.client, self.workers, self.frontend, self.others))) / self.cores


class CpuMeter:
    """Reads the CPU time of groups of processes: `workers`, whose children are added, and `frontend`."""

    def __init__(self, groups: Mapping[str, Iterable[int]]) -> None:
        self._groups: dict[str, list[psutil.Process]] = {"client": [psutil.Process()]}
        for name, pids in groups.items():
            found = self._groups[name] = []
            for pid in pids:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    found.append(process)
                    if name == "workers":
                        found += process.children(recursive=True)
        self.cores = available_cores()

    def read(self) -> dict[str, float]:
        """Return name -> CPU seconds so far; also of the `machine`, and the clock (`at`)."""
        every = psutil.cpu_times()
        reading = {
            "at": time.monotonic(),
            "machine": sum(getattr(every, kind, 0.0) for kind in ("user", "system", "nice", "irq", "softirq")),
        }
        return reading | {name: sum(map(_cpu_s, processes)) for name, processes in self._groups.items()}

    def use(self, before: Mapping[str, float], after: Mapping[str, float]) -> CpuUse:
        """Return the CPU use between two readings."""
        spent = {name: after[name] - before[name] for name in before}
        seconds = max(spent.pop("at"), 1e-9)
        known = {name: max(0.0, spent[name]) / seconds for name in spent if name != "machine"}
        # In a container, psutil reports the host's CPU time, which may include more cores than this process may use.
        whole = self.cores == (os.cpu_count() or 1)
        others = max(0.0, spent["machine"] / seconds - sum(known.values())) if whole else None
        return CpuUse(self.cores, others=others, **{name: known[name] for name in known if self._groups[name]})


class Readings:
    """CPU readings at two times during a load, taken by a thread; the second at the load's end if that is early."""

    def __init__(self, meter: CpuMeter, first_s: float, second_s: float) -> None:
        self._meter = meter
        self._readings: list[dict[str, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(first_s, second_s), daemon=True)

    def __enter__(self) -> Readings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def use(self) -> CpuUse | None:
        """Return the CPU use between the readings; None if the load ended too early."""
        return self._meter.use(*self._readings) if len(self._readings) == 2 else None

    def _take(self, first_s: float, second_s: float) -> None:
        began = time.monotonic()
        for at in (first_s, second_s):
            ended = self._stopped.wait(max(0.0, began + at - time.monotonic()))
            nearly = first_s + _EARLY * (second_s - first_s)
            if ended and (not self._readings or time.monotonic() - began < nearly):
                return
            self._readings.append(self._meter.read())


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


@dataclass(frozen=True)
class Verdict:
    """The bottleneck, and why it is and what would help.

    Attributes:
        bottleneck: `device`, `preprocessing CPU`, `workers`, `server`, `load generator`, `other processes`, `clients`
            (too few to tell), `none` (the server keeps up with an open loop), `errors` or `unknown`.
    """

    bottleneck: str
    sentence: str


def judge(pace: Pace, figures: Figures, recorded: Recorded | None, cpu: CpuUse | None, batch_size: int = 1) -> Verdict:
    """Return the bottleneck of a load; `batch_size` is the most requests that a worker gets at once."""
    return (
        _load_itself(figures, cpu)
        or _device(recorded, cpu)
        or _kept_up(pace, figures, recorded)
        or _cpu(figures, recorded, cpu, BUSY)
        or _workers(recorded)
        or _cpu(figures, recorded, cpu, _NEARLY_FULL)
        or _clients(pace, recorded, batch_size)
        or _server(figures, recorded)
    )


def _load_itself(figures: Figures, cpu: CpuUse | None) -> Verdict | None:
    if not figures.outcomes.get(RIGHT):
        return Verdict("errors", "No request was answered: the figures say nothing about speed.")
    if cpu is None or cpu.client < _ONE_THREAD:
        return None
    return Verdict(
        "load generator",
        f"It used {cpu.client:.0%} of a core, the most that one thread can: the server may be able to do more. "
        "Use several load generators, or REST instead of gRPC.",
    )


def _device(recorded: Recorded | None, cpu: CpuUse | None) -> Verdict | None:
    if recorded is None or not recorded.devices:
        return None
    if recorded.busy < BUSY and not (recorded.busy >= _NEARLY and _waits_for_the_device(recorded)):
        return None
    share = max(device.busy_with_others for device in recorded.devices)
    if share > 0.2:
        return Verdict(
            "device",
            f"It is busy {recorded.busy:.1%} of the time, {share:.0%} of the time with other models: this one gets the "
            "rest.",
        )
    more = "a faster predict or another device"
    if max(device.requests_each for device in recorded.devices) < 1.5:
        more = "a faster predict, batches (batch: collate or list, with batch_size) or another device"
    rest = ""
    if recorded.busy < BUSY and cpu is not None and cpu.full >= _NEARLY:
        rest = f" At times it waits for the CPU, {cpu.full:.0%} of which is in use."
    waits = " and requests wait for it" if _waits_for_the_device(recorded) else ""
    return Verdict(
        "device",
        f"It runs predict {recorded.busy:.1%} of the time{waits}. Only {more} would increase throughput.{rest}",
    )


def _waits_for_the_device(recorded: Recorded) -> bool:
    """Return whether requests queue for the device."""
    wait, predict = recorded.stage("lock_wait"), recorded.stage("predict")
    return wait is not None and predict is not None and wait.per_request_ms > _WAIT_SHARE * predict.per_request_ms


def _kept_up(pace: Pace, figures: Figures, recorded: Recorded | None) -> Verdict | None:
    right, sent = figures.outcomes[RIGHT], sum(figures.outcomes.values())
    if not isinstance(pace, Open) or figures.requests_per_s < _KEPT_UP * figures.due_per_s or right < _KEPT_UP * sent:
        return None
    busy = f", its device busy {recorded.busy:.0%} of the time" if recorded and recorded.devices else ""
    return Verdict("none", f"The server keeps up with {pace.rate:g} requests/s{busy}.")


def _cpu(figures: Figures, recorded: Recorded | None, cpu: CpuUse | None, full: float) -> Verdict | None:
    if cpu is None or cpu.full < full:
        return None
    parts = {
        "workers": cpu.workers or 0.0,
        "server": cpu.frontend or 0.0,
        "load generator": cpu.client,
        "other processes": cpu.others or 0.0,
    }
    most = max(parts, key=lambda name: parts[name])
    if most == "other processes" and recorded is not None and cpu.workers is not None:
        # Workers that are occupied without using the CPU only wait: its load by others does not matter.
        occupied = sum(recorded.occupied.values())
        if recorded.mean_occupied >= _NEARLY and cpu.workers < _COMPUTES * occupied:
            return None
    cores = f"All {cpu.cores} cores" if cpu.full >= BUSY else f"{cpu.full * cpu.cores:.1f} of {cpu.cores} cores"
    used = f"{cores} of the CPU are in use, {parts[most]:.1f} of them"
    busy = f" The device is busy only {recorded.busy:.0%} of the time." if recorded and recorded.devices else ""
    if most == "workers":
        return _workers_cpu(figures, recorded, parts[most], used, busy)
    by, advice = {
        "server": ("TorchServe's frontend", "Larger batches reduce its share."),
        "load generator": ("the load generator", "Run it on another machine."),
        "other processes": ("other processes of this machine", "Measure when the machine is idle."),
    }[most]
    return Verdict(most, f"{used} by {by}.{busy} {advice}")


def _workers_cpu(figures: Figures, recorded: Recorded | None, cores: float, used: str, busy: str) -> Verdict:
    """Tell CPU use of the stages from that of passing requests and answers."""
    on_cpu = recorded is not None and any(device.device == "cpu" for device in recorded.devices)
    if recorded is not None:
        # The most that the stages can have used: as if they waited for nothing but the device.
        each_ms = recorded.per_request_ms(without=("lock_wait",) if on_cpu else _NOT_WORK)
        stages = figures.requests_per_s * each_ms / 1e3
        if stages < _OWN_SHARE * cores:
            return Verdict(
                "server",
                f"{used} by the workers, but the stages take {stages:.2f} at most: the rest is spent on passing "
                f"requests and answers.{busy} Larger batches, or more work per request, reduce that share.",
            )
    and_predict = ", and for predict, since the device is the CPU" if on_cpu else ""
    return Verdict(
        "preprocessing CPU",
        f"{used} by the workers, for preprocessing and postprocessing{and_predict}.{busy} More cores, or cheaper "
        "stages, would increase throughput; more workers would not.",
    )


def _workers(recorded: Recorded | None) -> Verdict | None:
    if recorded is None or recorded.mean_occupied < _NEARLY:
        return None
    predict = recorded.stage("predict")
    others = recorded.per_request_ms(without=_NOT_WORK)
    advice = "Raise workers_per_device"
    if predict is not None and predict.per_request_ms > 0:
        wanted = math.ceil(1 + others / predict.per_request_ms) + 1
        if wanted > len(recorded.occupied) / max(1, len(recorded.devices)):
            advice += (
                f" to about {wanted}: the other stages take {others:.1f} ms beside {predict.per_request_ms:.1f} ms "
                "of predict"
            )
    many = len(recorded.occupied)
    who = f"All {many} have" if many > 1 else "The only one has"
    return Verdict(
        "workers",
        f"{who} a request {recorded.mean_occupied:.0%} of the time, and the device is busy only "
        f"{recorded.busy:.0%}. {advice}.",
    )


def _clients(pace: Pace, recorded: Recorded | None, batch_size: int) -> Verdict | None:
    if recorded is None or not isinstance(pace, Closed) or pace.clients > len(recorded.occupied) * batch_size:
        return None
    some = f"{pace.clients} client{'s' * (pace.clients != 1)} at a time"
    return Verdict(
        "clients",
        f"There are too few: {some} cannot keep the workers busy, which have a request "
        f"{recorded.mean_occupied:.0%} of the time. Try more --clients.",
    )


def _server(figures: Figures, recorded: Recorded | None) -> Verdict:
    if recorded is None:
        return Verdict("unknown", "Without spans it is unknown where requests spend their time.")
    typical = figures.latency_ms[50]
    outside = max(0.0, typical - recorded.in_workers_ms)
    return Verdict(
        "server",
        f"Time is lost between the workers' requests: they have one only {recorded.mean_occupied:.0%} of the time, the "
        f"device is busy {recorded.busy:.0%}, and a request spends {outside:.1f} ms of its {typical:.1f} ms outside "
        "the workers. Larger batches, or more work per request, reduce that share.",
    )
