"""Recording of a model's requests: spans as JSON lines of monotonic times, and metrics."""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from ..contract import RuntimeSettings
from ..device.device import Device
from ..device.lock import lock_directory
from ..server_process import ModelCopies, started
from .metrics import COPIES, MEMORY, Metrics, switched_on

_logger = logging.getLogger("handlergen")
TRACE_DIR_VARIABLE = "HANDLERGEN_TRACE_DIR"


class Spans:
    """Writes a process's spans to `spans-MODEL-PID.jsonl`, one line per span.

    `flush` writes them in one piece, after a batch: a write between two predictions would cost tens of microseconds. A
    worker that is killed loses the spans of its current batch. Spans that cannot be written (disk full) are lost with
    one warning: requests are answered nevertheless.

    Args:
        directory: The file's; made if missing, private to the user.
        model: The model's name, in every line.
        device: The device's key, in every line.

    Raises:
        OSError: The directory cannot be made or written.
    """

    def __init__(self, directory: Path, *, model: str, device: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = os.getpid()
        path = directory / f"spans-{model}-{pid}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        tail = {"pid": pid, "worker": str(pid), "device": device, "model": model}
        self._tail = json.dumps(tail)[1:]
        self._kept: deque[tuple[str, str, int, int, int]] = deque()
        self._size = os.fstat(self._descriptor).st_size
        self._losing = False

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Keep one span; called in any thread.

        Args:
            stage: A name of `stages.py`.
            request_id: The request's id; several, joined by commas, for one predict of a batch.
            start_ns, end_ns: `time.monotonic_ns()` at its start and end.
        """
        self._kept.append((stage, request_id, start_ns, end_ns, threading.get_ident()))

    def flush(self) -> None:
        """Write the kept spans in one piece: lines of several threads never mix."""
        lines = []
        while self._kept:
            stage, request_id, start_ns, end_ns, thread = self._kept.popleft()
            lines.append(
                f'{{"stage": "{stage}", "start_ns": {start_ns}, "end_ns": {end_ns}, '
                f'"request_id": {json.dumps(request_id)}, "thread": {thread}, {self._tail}\n'
            )
        try:
            self._write("".join(lines).encode())
        except OSError as error:
            if not self._losing:
                _logger.warning("spans are lost until they can be written: %s", error)
            self._losing = True
        else:
            self._losing = False

    def _write(self, text: bytes) -> None:
        """Write all of the text or nothing: half a line would make the file unreadable."""
        written = os.write(self._descriptor, text)
        if written == len(text):
            self._size += written
            return
        try:
            os.write(self._descriptor, text[written:])  # raises the error
            self._size += len(text)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise


def spans_from_environment(model: str, device: str, environ: Mapping[str, str] = os.environ) -> Spans | None:
    """Return `Spans` when `HANDLERGEN_TRACE_DIR` is set, else None; the pipeline then takes no times.

    None, with a warning, when the directory cannot be written: that is no reason not to predict.
    """
    directory = environ.get(TRACE_DIR_VARIABLE)
    if not directory:
        return None
    try:
        return Spans(Path(directory), model=model, device=device)
    except OSError as error:
        _logger.warning("no spans are recorded: %s", error)
        return None


class Recorder(Protocol):
    """A receiver of the times of stages."""

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Record one; called in any thread. See `Spans.record`."""


class Recording:
    """Everything that one process records of a model.

    Args:
        settings: The model's.
        device_key: The key of the device that predicts.
        metrics: Also count for TorchServe's `/metrics`, unless that is switched off.
        write: Writes the lines of metrics; standard output by default.

    Attributes:
        metrics: The counters, if there are any.
        recorder: Receives times; None: no times are taken.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        device_key: str,
        *,
        metrics: bool,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self._spans = spans_from_environment(settings.name, device_key)
        self.metrics: Metrics | None = None
        if metrics and switched_on():
            self.metrics = Metrics(model=settings.name, version=settings.version, device=device_key, write=write)
        self._copies: ModelCopies | None = None
        self.recorder: Recorder | None = self._spans or self.metrics
        if self._spans is not None and self.metrics is not None:
            self.recorder = _Both(self._spans, self.metrics)

    def start(self) -> None:
        """Write metrics from now on."""
        if self.metrics is not None:
            self.metrics.start()

    def has_copy(self, settings: RuntimeSettings, device: Device, server: int) -> None:
        """Count this process's copy of the model, and measure its memory.

        Args:
            server: The process id of TorchServe's frontend.
        """
        if self.metrics is None:
            return
        try:
            copies = ModelCopies(
                lock_directory(),
                server=f"{server} {started(server)}",
                model=settings.name,
                version=settings.version,
                device=device.key,
            )
            copies.add()
        except OSError as error:  # no reason not to predict
            _logger.warning("copies of the model are not counted: %s", error)
            self.metrics.watch(lambda: {MEMORY: memory_of(device)})
            return
        self._copies = copies
        self.metrics.watch(lambda: {COPIES: copies.count(), MEMORY: memory_of(device)})

    def flush(self) -> None:
        """Write the spans of a batch."""
        if self._spans is not None:
            self._spans.flush()

    def close(self) -> None:
        """Write the last spans and metrics."""
        self.flush()
        if self.metrics is not None:
            self.metrics.close()
        if self._copies is not None:
            self._copies.close()


class _Both:
    def __init__(self, spans: Spans, metrics: Metrics) -> None:
        self._spans = spans
        self._metrics = metrics

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        self._spans.record(stage, request_id, start_ns, end_ns)
        self._metrics.record(stage, request_id, start_ns, end_ns)


def memory_of(device: Device) -> int:
    """Return the bytes that this process holds on the device: torch's reserved GPU memory, else the resident memory."""
    if not device.is_cpu:
        return int(torch.cuda.memory_reserved(device.torch))
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])  # proc_pid_statm(5)
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
