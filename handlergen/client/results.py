"""Typed results of the client: answers, workers and models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handlergen.runtime.codec.errors import error_of  # noqa: F401 - docs/answers-and-errors.md names it so


@dataclass(frozen=True)
class Answer:
    """The answer to one prediction.

    Attributes:
        status: HTTP status; always 200 over gRPC.
        headers: By lower-case name; empty for gRPC.
        body: The bytes as received.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; "" when the response has none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Parse the body as JSON. Raises ValueError when it is not JSON."""
        return json.loads(self.body)


READY = "READY"
"""The state of a worker that has loaded its model."""


@dataclass(frozen=True)
class WorkerStatus:
    """One worker of a model.

    Attributes:
        id: TorchServe's number for the worker ("9000"); a restart changes `pid`, not `id`.
        state: `READY`; or `UNLOADING`, which stands for every other state, loading included (ApiUtils.java).
        device: "cpu", "gpu:0", or "gpu" when the server does not know the index (no nvidia-smi).
        memory: Resident bytes; 0 until TorchServe's first measurement (one a minute).
    """

    id: str
    state: str
    pid: int
    device: str
    memory: int = 0

    @property
    def ready(self) -> bool:
        return self.state == READY


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model as the server reports it (`GET /models/NAME`).

    Attributes:
        response_timeout_s: None when the server does not report it, as TorchServe 0.9.
        queue_free: Free places in the queue; None when the server does not report it.
        queue_waiting: Requests in the queue; None when the server does not report it.
        default: Whether requests that name no version go to this one; None from `Client.describe` with a version.
        raw: The server's response.
    """

    name: str
    version: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int | None
    workers: tuple[WorkerStatus, ...]
    queue_free: int | None = None
    queue_waiting: int | None = None
    default: bool | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ready_workers(self) -> int:
        """Number of READY workers."""
        return sum(worker.ready for worker in self.workers)

    @property
    def ready(self) -> bool:
        """Whether there are at least `min_workers` workers, all of them READY."""
        return len(self.workers) >= self.min_workers and all(worker.ready for worker in self.workers)

    @property
    def archive(self) -> str:
        """File name of the archive; or the address that it was registered by."""
        return str(self.raw.get("modelUrl", ""))

    @property
    def placement(self) -> dict[str, int]:
        """Number of READY workers by device."""
        return dict(sorted(Counter(worker.device for worker in self.workers if worker.ready).items()))

    @classmethod
    def from_description(cls, raw: Mapping[str, Any]) -> ModelStatus:
        """Build a status from one element of TorchServe's response (DescribeModelResponse.java)."""
        queue = raw.get("jobQueueStatus") or {}
        return cls(
            name=raw["modelName"],
            version=str(raw["modelVersion"]),
            min_workers=raw["minWorkers"],
            max_workers=raw["maxWorkers"],
            batch_size=raw["batchSize"],
            max_batch_delay_ms=raw["maxBatchDelay"],
            response_timeout_s=raw.get("responseTimeout"),
            workers=tuple(
                WorkerStatus(
                    id=worker["id"],
                    state=worker["status"],
                    pid=worker["pid"],
                    device=_device(worker),
                    memory=worker.get("memoryUsage", 0),
                )
                for worker in sorted(raw.get("workers", ()), key=lambda worker: str(worker["id"]))
            ),
            queue_free=queue.get("remainingCapacity"),
            queue_waiting=queue.get("pendingRequests"),
            raw=raw,
        )


def _device(worker: Mapping[str, Any]) -> str:
    """Return the device; the index of a GPU is only in the text of `gpuUsage` ("gpuId::0 utilization…")."""
    if not worker.get("gpu"):
        return "cpu"
    usage = str(worker.get("gpuUsage", ""))
    if not usage.startswith("gpuId::"):
        return "gpu"
    return "gpu:" + usage.removeprefix("gpuId::").split()[0]
