"""Find this user's predictor processes on this machine, from the files that they write."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from handlergen.runtime.device.lock import lock_directory
from handlergen.runtime.predictor_process.run_directory import RunDirectory, StatusFile, run_directories


@dataclass(frozen=True)
class PredictorStatus:
    """A process that has the only copy of a model on a device.

    Attributes:
        server: Process id of its TorchServe.
        device: `cpu` or `gpu` with its index.
        state: `loading`, `idle`, `predicting` or `ending`.
        since_s: Seconds in this state.
        predictions: Calls of predict.
        mean_batch, largest_batch: Requests per call.
        memory_bytes: Resident memory.
        log: The file with the process's output.
        stages_because: Why the process runs preprocess and postprocess although the settings put them into the
            workers; empty when it does not.
    """

    server: int
    model: str
    version: str
    device: str
    pid: int
    state: str
    since_s: float
    predictions: int
    mean_batch: float
    largest_batch: int
    restarts: int
    memory_bytes: int
    log: str
    stages_because: str


def running_predictors() -> list[PredictorStatus]:
    """Return all predictor processes, sorted by server, model and device."""
    try:
        base = lock_directory()
    except OSError:
        return []
    found = []
    for path in run_directories(base):
        try:
            directory = RunDirectory.at(path)
            seen = StatusFile.open(directory.status_file).look()
            memory = psutil.Process(seen.pid).memory_info().rss
            log = str(directory.arguments().get("log", ""))
        except (OSError, ValueError, TypeError, psutil.Error):  # it has just ended
            continue
        identity = directory.identity
        found.append(
            PredictorStatus(
                server=identity.server,
                model=identity.name,
                version=identity.version,
                device=identity.device,
                pid=seen.pid,
                state=seen.state,
                since_s=round(seen.since_s, 3),
                predictions=seen.predictions,
                mean_batch=seen.mean_batch,
                largest_batch=seen.largest_batch,
                restarts=directory.starts().restarts,
                memory_bytes=memory,
                log=log,
                stages_because=directory.unsendable(),
            )
        )
    return sorted(found, key=lambda each: (each.server, each.model, each.version, each.device))


def servers_of(workers: Iterable[int]) -> set[int]:
    """Return the process ids of the workers' ancestors, which include their servers."""
    found: set[int] = set()
    for pid in workers:
        with suppress(psutil.Error, ValueError):  # -1 while a worker starts
            found.update(parent.pid for parent in psutil.Process(pid).parents())
    return found
