"""Who is told how long each stage of a request took: the spans, the metrics, both or nobody."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from .contract import RuntimeSettings
from .copies import Copies
from .device import Device
from .device_lock import lock_directory
from .metrics import COPIES, MEMORY, Metrics, switched_on
from .server_process import started
from .spans import Spans, spans_from_environment


class Recorder(Protocol):
    """Takes the times of stages."""

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """Take one; from any thread. See `Spans.record`."""

    def forked(self) -> Recorder | None:
        """Who is told in a process that was forked off this one."""


class Recording:
    """What one process records of a model.

    Args:
        settings: The model's.
        device_key: Where it predicts.
        metrics: Count for TorchServe's `/metrics` too, unless that is switched off.
        write: Takes the lines of metrics; standard output when left out.

    Attributes:
        recorder: Who takes times; None when nobody wants them, and none are taken.
        metrics: The counters, if there are any.
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
            self.metrics = Metrics(
                model=settings.name, version=settings.version, device=device_key, write=write
            )
        self._copies: Copies | None = None
        self.recorder = self._recorder(self._spans)

    def start(self) -> None:
        """Write metrics from now on."""
        if self.metrics is not None:
            self.metrics.start()

    def has_copy(self, settings: RuntimeSettings, device: Device, server: int) -> None:
        """This process has a copy of the model: count it, and measure its memory.

        Args:
            server: TorchServe's process.
        """
        if self.metrics is None:
            return
        try:
            copies = Copies(
                lock_directory(),
                server=f"{server} {started(server)}",
                model=settings.name,
                version=settings.version,
                device=device.key,
            )
            copies.add()
        except OSError as error:  # no reason not to predict
            logging.getLogger("handlergen").warning("copies of the model are not counted: %s", error)
            self.metrics.watch(lambda: {MEMORY: memory_of(device)})
            return
        self._copies = copies
        self.metrics.watch(lambda: {COPIES: copies.count(), MEMORY: memory_of(device)})

    def flush(self) -> None:
        """Write the spans of a batch."""
        if self._spans is not None:
            self._spans.flush()

    def close(self) -> None:
        """Write the last."""
        self.flush()
        if self.metrics is not None:
            self.metrics.close()
        if self._copies is not None:
            self._copies.close()

    def _recorder(self, spans: Spans | None) -> Recorder | None:
        if self.metrics is None:
            return spans
        return self.metrics if spans is None else _Both(spans, self.metrics)


class _Both:
    def __init__(self, spans: Spans, metrics: Metrics) -> None:
        self._spans = spans
        self._metrics = metrics

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        self._spans.record(stage, request_id, start_ns, end_ns)
        self._metrics.record(stage, request_id, start_ns, end_ns)

    def forked(self) -> Recorder | None:
        return self._spans.forked()


def memory_of(device: Device) -> int:
    """Bytes that this process holds on the device: what torch reserved of a GPU, else its resident memory."""
    if not device.is_cpu:
        return int(torch.cuda.memory_reserved(device.torch))
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])  # proc_pid_statm(5)
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
