"""Measure candidates on a real TorchServe with `bench`, and report the recommendation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from handlergen.archives.build import archive_project
from handlergen.archives.packing import private_directory
from handlergen.client import Client
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.inspection.project import Project, open_project
from handlergen.local.offline.preparation import available_cores
from handlergen.performance.bench.measure import LoadPlan, Measurement, measure, of_file
from handlergen.performance.bench.report import number
from handlergen.performance.bench.traffic import RIGHT, Closed, Open
from handlergen.performance.tune.search import (
    MAX_BATCH_DELAY_MS,
    MOST_CLIENTS,
    Candidate,
    Measured,
    Recommendation,
    Turn,
    candidates,
    most_turns,
    reasons,
    search,
)
from handlergen.runtime.device.lock import STATE_DIR_VARIABLE
from handlergen.runtime.telemetry.recording import TRACE_DIR_VARIABLE
from handlergen.server.configuration import write_configuration
from handlergen.server.launching import end_marked
from handlergen.server.lifecycle import RunningServer, serve
from handlergen.server.model_store import store_has_requirements
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import ServerSettings, server_settings

WARM_UP_S = 1.0
_SHARE_OF_MEMORY = 0.8
_CHANGE_S = 6.0  # estimate of the time to scale workers, or to restart the server for another batch size


@dataclass(frozen=True)
class Subject:
    """What to tune.

    Attributes:
        source, sample: A source as for `handlergen archive`, and a file with a request body.
        gpu: Index of the GPU; None: the CPU.
        overrides: Settings that override file and environment.
        seconds: Length of each load.
    """

    source: Path
    sample: Path
    gpu: int | None
    overrides: Mapping[str, Any]
    seconds: float

    def project(self, batch_size: int = 1) -> Project:
        """Return the project with the settings of a measurement. Raises what `open_project` raises."""
        tried = {
            "devices": "cpu" if self.gpu is None else (self.gpu,),
            "workers_per_device": 1,  # the server is scaled
            "batch_size": batch_size,
            "max_batch_delay_ms": MAX_BATCH_DELAY_MS,
            "queue_size": 2 * MOST_CLIENTS,
        }
        return open_project(self.source, overrides={**self.overrides, **tried})


@dataclass(frozen=True)
class Tuned:
    """A recommendation for a project."""

    project: Project
    found: Recommendation
    seconds: float


def tune(
    subject: Subject,
    *,
    target_p99_ms: float | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Tuned:
    """Search for the best settings on a private server, which is always stopped.

    Args:
        target_p99_ms: The goal: 99 % of the requests, at random times, are answered within it.
        progress: Called with lines of text: the plan, then each candidate's figures.

    Raises:
        ModuleFailed: The model cannot be loaded.
        ServerError: TorchServe cannot be started.
        HandlergenError: The sample is answered with an error, or no candidate meets the goal.
    """
    project = subject.project()
    field = candidates(project.settings.batch)
    turns = most_turns(len(field), target_p99_ms)
    load_s = subject.seconds + WARM_UP_S
    progress(
        f"measuring up to {len(field)} candidates in {turns} loads, about {_length(turns * (load_s + _CHANGE_S))} at "
        "most ..."
    )
    free_bytes = psutil.virtual_memory().available
    own_copies = project.settings.predictor == "worker"

    with private_directory() as directory, closing(CandidateServer(subject, directory)) as server:

        def measured(candidate: Candidate, rate: float | None) -> Turn:
            turn = server.measure(candidate, rate)
            due = f" of {number(rate)} due" if rate else ""
            progress(f"{candidate}: {number(turn.requests_per_s)}{due} requests/s, p99 {number(turn.p99_ms)} ms")
            return turn

        found = search(
            field,
            measured,
            target_p99_ms=target_p99_ms,
            copies_bytes=int(free_bytes * _SHARE_OF_MEMORY) if own_copies else None,
        )
    return Tuned(project, found, subject.seconds)


class CandidateServer:
    """A TorchServe in a private directory, with one model whose workers and batch size can be changed.

    Workers are scaled; another batch size needs another archive and a restart. The server records spans, and has its
    own device locks, so that it does not wait for other servers of this machine.
    """

    def __init__(self, subject: Subject, directory: Path) -> None:
        self._subject = subject
        self._name = subject.project().settings.name
        self._sample = of_file(subject.sample)
        self._directory = directory
        self._running: RunningServer | None = None
        self._now = Candidate(0, 0)

    def measure(self, candidate: Candidate, rate: float | None) -> Turn:
        """Apply a candidate's settings, run a load, and return its result."""
        running, now = self._running, self._now
        if running is None or candidate.batch_size != now.batch_size:
            self.close()
            running = self._running = self._start(candidate.batch_size)
            now = Candidate(candidate.batch_size, 1)
        plan = LoadPlan(
            pace=Closed(candidate.clients) if rate is None else Open(rate),
            seconds=self._subject.seconds,
            warmup_s=WARM_UP_S,
        )
        with running.client() as client:
            if candidate != now:
                self._scale(client, candidate.workers)
            self._now = candidate
            self._check_device(client)
            try:
                measurement = measure(client, self._name, [self._sample], plan)
            except RequestFailed as error:
                raise HandlergenError(
                    f"the sample is answered with {error.status}: {error.message}",
                    hint="give a sample that the model answers; `handlergen check SOURCE --sample FILE` shows more",
                ) from error
            return turn_of(measurement, rate, worker_bytes=_own_memory(client, self._name))

    def close(self) -> None:
        """Stop the server and all of its processes."""
        running, self._running = self._running, None
        if running is None:
            return
        try:
            running.stop(drain=0)  # all requests were its own
        finally:  # even after a second Ctrl-C while the server stops
            end_marked(running.state.marker, grace=1.0)

    def _start(self, batch_size: int) -> RunningServer:
        project = self._subject.project(batch_size)
        store = self._directory / "model-store"
        archive_project(project, model_store=store, force=True)
        ports: dict[str, Any] = dict(free_port_settings())
        usual = ServerSettings()
        settings = server_settings(
            **ports,
            install_requirements=store_has_requirements(store),
            max_request_size=max(usual.max_request_size, 2 * len(self._sample.content)),
            max_response_size=max(usual.max_response_size, project.settings.max_response_bytes),
        )
        config = self._directory / "config.properties"
        write_configuration(config, settings, force=True)
        locks = self._directory / "locks"
        locks.mkdir(mode=0o700, exist_ok=True)
        own = {TRACE_DIR_VARIABLE: str(self._directory / "spans"), STATE_DIR_VARIABLE: str(locks)}
        return serve(config, environ={**os.environ, **own})

    def _scale(self, client: Client, workers: int) -> None:
        try:
            client.scale(self._name, workers)
        except ServerError as error:
            error.hint = f"`tune` keeps no log; `handlergen serve` with workers_per_device: {workers} writes one"
            raise

    def _check_device(self, client: Client) -> None:
        """Raise HandlergenError if the model is on the CPU: TorchServe ignores a GPU that does not exist."""
        gpu = self._subject.gpu
        if gpu is not None and "cpu" in client.describe(self._name).placement:
            raise HandlergenError(
                f"this machine has no GPU {gpu} that TorchServe can use",
                hint="`handlergen doctor` lists the devices; without --gpu, tune measures on the CPU",
            )


def turn_of(measurement: Measurement, rate: float | None, *, worker_bytes: int) -> Turn:
    """Return the figures of a measurement that a search needs."""
    figures, recorded = measurement.figures, measurement.recorded
    failed = sum(count for outcome, count in figures.outcomes.items() if outcome != RIGHT)
    return Turn(
        rate=rate,
        requests_per_s=figures.requests_per_s,
        errors=failed / max(1, sum(figures.outcomes.values())),
        p50_ms=figures.latency_ms.get(50, math.inf),
        p99_ms=figures.latency_ms.get(99, math.inf),
        device=recorded.devices[0].device if recorded and recorded.devices else "",
        device_busy=recorded.busy if recorded and recorded.devices else None,
        stages_ms={stage.stage: stage.per_request_ms for stage in recorded.stages} if recorded else {},
        worker_bytes=worker_bytes,
        other_cores=(measurement.cpu.others or 0.0) if measurement.cpu else 0.0,
        bottleneck=measurement.verdict.bottleneck,
        why=measurement.verdict.sentence,
    )


def plain(tuned: Tuned) -> dict[str, Any]:
    """Return the report as JSON values: times in ms, shares 0..1."""
    settings, found = tuned.project.settings, tuned.found
    turn = found.chosen.shown
    return {
        "model": settings.name,
        "device": turn.device or None,
        "cores": available_cores(),
        "batch": settings.batch,
        "predictor": settings.predictor,
        "stages_run_in": settings.stages,
        "memory_bytes_of_a_worker": turn.worker_bytes,
        "stages": {stage: round(ms, 3) for stage, ms in turn.stages_ms.items()},
        "seconds": tuned.seconds,
        "target_p99_ms": found.target_p99_ms,
        "settings": found.settings,
        "measured": _plain_candidate(found.chosen),
        "candidates": [_plain_candidate(one) for one in found.measured],
        "why": list(reasons(found, batch=settings.batch, cores=available_cores())),
    }


def lines(tuned: Tuned) -> Iterator[str]:
    """Yield the report for a terminal."""
    settings, found = tuned.project.settings, tuned.found
    yield f"{settings.name}: " + ", ".join(f"{name} {value}" for name, value in found.settings.items())
    yield ""
    latency = found.target_p99_ms is not None
    yield (
        f"{'workers':>7} {'batch size':>11} {'loads':>6} {'requests/s':>11} {'device busy':>12} {'p50, ms':>9} "
        f"{'p99, ms':>9}"
    )
    for one in found.measured:
        turn = one.shown
        rate = "missed" if latency and one.kept is None else number(turn.rate or one.capacity)
        busy = "" if turn.device_busy is None else f"{turn.device_busy:.0%}"
        notes = ("  <-" if one is found.chosen else "") + (f"  {turn.errors:.0%} errors" if turn.errors else "")
        yield (
            f"{one.candidate.workers:>7} {one.candidate.batch_size:>11} {len(one.turns):>6} {rate:>11} {busy:>12} "
            f"{number(turn.p50_ms):>9} {number(turn.p99_ms):>9}{notes}"
        )
    yield ""
    stages = found.chosen.shown.stages_ms
    if stages:
        parts = "   ".join(f"{stage.replace('_', ' ')} {number(ms)}" for stage, ms in stages.items())
        yield f"A request with the recommended settings, ms: {parts}"
        yield ""
    for reason in reasons(found, batch=settings.batch, cores=available_cores()):
        yield f"- {reason}"


def _plain_candidate(one: Measured) -> dict[str, Any]:
    turn = one.shown
    return {
        "workers_per_device": one.candidate.workers,
        "batch_size": one.candidate.batch_size,
        "loads": len(one.turns),
        "clients": one.candidate.clients if turn.rate is None else None,
        "rate": None if turn.rate is None else round(turn.rate, 2),
        "requests_per_s": round(one.capacity if turn.rate is None else turn.requests_per_s, 2),
        "errors": round(turn.errors, 4),
        "device_busy": None if turn.device_busy is None else round(turn.device_busy, 4),
        "p50_ms": round(turn.p50_ms, 2) if math.isfinite(turn.p50_ms) else None,
        "p99_ms": round(turn.p99_ms, 2) if math.isfinite(turn.p99_ms) else None,
    }


def _own_memory(client: Client, name: str) -> int:
    """Return the mean memory, in bytes, that a worker does not share with others."""
    own = []
    for worker in client.describe(name).workers:
        try:
            own.append(psutil.Process(worker.pid).memory_full_info().uss)
        except (psutil.Error, AttributeError):
            own.append(worker.memory)
    return int(fmean(own)) if own else 0


def _length(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
