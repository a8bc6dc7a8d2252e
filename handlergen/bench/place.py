"""Where a model runs: the processes of its server, if they are on this machine, and where they record spans."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from handlergen.client import ModelStatus
from handlergen.launching import MARKER, marked
from handlergen.runtime.spans import TRACE_DIR_VARIABLE

TURN_ON = "start the server with `handlergen serve --trace DIR` (or with HANDLERGEN_TRACE_DIR set)"


@dataclass(frozen=True)
class Place:
    """A model's server.

    Attributes:
        workers: Processes of its workers, and what else serves models beside them.
        frontend: TorchServe's own process, as a list of one or none.
        trace_dir: Where they record spans; None: nowhere, or it cannot be told.
        missing: Why there is none.
    """

    workers: Sequence[int] = ()
    frontend: Sequence[int] = ()
    trace_dir: Path | None = None
    missing: str = ""


def find(status: ModelStatus) -> Place:
    """Look at the processes that the server names as the model's workers."""
    workers = [process for worker in status.workers if (process := _worker(worker.pid)) is not None]
    if not workers:
        return Place(missing="the server's processes are not on this machine, and its spans neither")
    first = workers[0]
    try:
        environ, parent = first.environ(), first.ppid()
    except psutil.Error:
        return Place(missing="the workers belong to another user: their spans cannot be found")
    pids = {process.pid for process in workers}
    if marker := environ.get(MARKER):
        # A process that predicts for several workers is no child of any of them.
        pids |= {process.pid for process in marked(marker)}
    pids.discard(parent)
    named = environ.get(TRACE_DIR_VARIABLE)
    if not named:
        return Place(sorted(pids), [parent], None, f"the server records no spans: {TURN_ON}")
    directory = Path(named)
    if not directory.is_absolute():
        with contextlib.suppress(psutil.Error):
            directory = Path(first.cwd()) / directory
    return Place(sorted(pids), [parent], directory)


def _worker(pid: int) -> psutil.Process | None:
    """The process, if it is a worker of a TorchServe here: on another machine its number means nothing."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return process
    return None
