"""A model's stage times, measured in processes of their own: one alone, and several that share device and cores."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from handlergen.answering_child import Child, answering_child
from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.recordings import Span, read_spans
from handlergen.runtime.device_lock import STATE_DIR_VARIABLE
from handlergen.runtime.spans import TRACE_DIR_VARIABLE
from handlergen.tuning.queueing import Stage, Work

BATCHES = (1, 2, 4, 8, 16, 32)
ROLES = ("preprocess", "predict", "postprocess")
_PROGRAM = "handlergen.tuning.child"
_PARTS = {
    "preprocess": ("decode", "preprocess"),
    "predict": ("predict",),
    "postprocess": ("postprocess", "encode"),
}


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        source: What `handlergen archive` takes.
        sample: A file that is posted as a client would.
        gpu: Predict there instead of on the CPU.
        seconds: How long each of the two measurements takes.
    """

    source: Path
    sample: Path
    gpu: int | None
    overrides: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Alone:
    """One process, one request at a time.

    Attributes:
        model: Its name.
        device: Where predict ran.
        devices: How many such devices there are.
        cores: Of this machine.
        batch: The batch mode: `each`, `collate` or `list`.
        memory: Bytes that each further process with a copy of the model takes.
        predictor: `worker` or `process`: whether each worker has a copy.
        stages: `worker` or `predictor`: where the other stages run.
        max_batch: The most requests of several workers that one predict takes, in a process of its own.
        work: The stages, as the simulation wants them.
        computing: Role -> the part of its time, 0..1, in which it computes.
    """

    model: str
    device: str
    devices: int
    cores: int
    batch: str
    memory: int
    predictor: str
    stages: str
    max_batch: int
    work: Work
    computing: Mapping[str, float]

    def mean_ms(self, role: str) -> float:
        """A stage's time: with decode for `preprocess`, with encode for `postprocess`."""
        parts = {"preprocess": self.work.before, "predict": self.work.predict, "postprocess": self.work.after}
        return fmean(stage.total_ms for stage in parts[role])


@dataclass(frozen=True)
class Beside:
    """Several processes at once, each with one request at a time, taking turns on the device.

    Attributes:
        processes: How many.
        requests_per_s: Of all together.
        mean_ms: Role -> a stage's time.
    """

    processes: int
    requests_per_s: float
    mean_ms: Mapping[str, float]


def measure_alone(subject: Subject) -> Alone:
    """Load the model in one process and answer the sample again and again.

    Raises:
        ModuleFailed: It cannot be loaded, or its process died.
        HandlergenError: The sample is answered with an error.
    """
    (report,), spans = _run(subject, 1, BATCHES)
    window = (report["start_ns"], report["end_ns"])
    computing = dict.fromkeys(ROLES, 0.0)
    for role, (_calls, cpu_s, wall_s) in report["computed"].items():
        computing[role] = min(1.0, cpu_s / wall_s) if wall_s else 0.0
    batch_ms = {1: 0.0}
    if report["batch"] != "each":
        batch_ms |= _batch_ms(spans, report["batches"])
    before, predict, after = (_stages(_inside(spans, window), role, computing[role]) for role in ROLES)
    batch_ms[1] = fmean(stage.total_ms for stage in predict)
    return Alone(
        model=report["model"],
        device=report["device"],
        devices=report["devices"],
        cores=report["cores"],
        batch=report["batch"],
        memory=report["memory"],
        predictor=report["predictor"],
        stages=report["stages"],
        max_batch=report["max_batch"],
        work=Work(before, predict, after, batch_ms),
        computing=computing,
    )


def measure_beside(subject: Subject, processes: int) -> Beside:
    """The same in several processes at once.

    Raises:
        ModuleFailed: One of them died.
    """
    reports, spans = _run(subject, processes, ())
    window = (max(r["start_ns"] for r in reports), min(r["end_ns"] for r in reports))
    inside = _inside(spans, window)
    ended = [span for span in inside if span.stage == "encode"]
    return Beside(
        processes,
        len(ended) / max(1e-3, (window[1] - window[0]) / 1e9),
        {role: fmean(stage.total_ms for stage in _stages(inside, role, 1.0)) for role in ROLES},
    )


def _inside(spans: Sequence[Span], window: tuple[int, int]) -> list[Span]:
    return [span for span in spans if window[0] <= span.start_ns and span.end_ns <= window[1]]


def _stages(spans: Sequence[Span], role: str, computing: float) -> list[Stage]:
    """One entry a request: what the stage waited and computed. Decoding and encoding always compute."""
    sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for span in spans:
        if span.stage in _PARTS[role]:
            sums[span.pid, span.request_id][span.stage != role] += (span.end_ns - span.start_ns) / 1e6
    found = [
        Stage(wait_ms=own * (1 - computing), cpu_ms=own * computing + codec) for own, codec in sums.values()
    ]
    return found or [Stage(0.0, 0.0)]


def _batch_ms(spans: Sequence[Span], batches: Sequence[Sequence[int]]) -> dict[int, float]:
    found = {}
    for size, start_ns, end_ns in batches:
        lengths = [
            span.end_ns - span.start_ns
            for span in _inside(spans, (start_ns, end_ns))
            if span.stage == "predict" and span.request_id.count(",") + 1 == size
        ]
        if lengths:
            found[size] = fmean(lengths) / 1e6
    return found


def _run(subject: Subject, processes: int, batches: Sequence[int]) -> tuple[list[dict[str, Any]], list[Span]]:
    """Start processes, let them begin together, take their reports and spans."""
    given = {
        "source": str(subject.source.absolute()),
        "sample": str(subject.sample.absolute()),
        "gpu": subject.gpu,
        "overrides": dict(subject.overrides),
        "seconds": subject.seconds,
        "batches": list(batches),
    }
    with tempfile.TemporaryDirectory(prefix="handlergen-") as directory, contextlib.ExitStack() as stack:
        # Their own locks: a server that runs on this machine must not take turns with them.
        own = {TRACE_DIR_VARIABLE: f"{directory}/spans", STATE_DIR_VARIABLE: directory}
        environ = {**os.environ, **own}
        children = [
            _Probed(stack.enter_context(answering_child(_PROGRAM, given, environ=environ, told=True)))
            for _ in range(processes)
        ]
        for child in children:
            child.report()
        for child in children:
            child.go()
        reports = [child.report() for child in children]
        return reports, read_spans(f"{directory}/spans")


class _Probed:
    def __init__(self, child: Child) -> None:
        self._child = child

    def go(self) -> None:
        self._child.tell(b"go\n")

    def report(self) -> dict[str, Any]:
        """Its next message. Raises what it failed with."""
        line = self._child.answers.readline()
        if not line:
            raise ModuleFailed(f"the module's process ended with status {self._child.wait()} and no answer")
        found: dict[str, Any] = json.loads(line)
        if "error" not in found:
            return found
        if found["traceback"]:
            raise ModuleFailed(found["error"], traceback=found["traceback"], hint=found["hint"])
        raise HandlergenError(found["error"], hint=found["hint"])
