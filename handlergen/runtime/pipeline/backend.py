"""What answers a worker's requests: this process, or a predictor process (`predictor_process.backends`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..contract import Bundle
from ..device.device import share_the_cores
from ..server_process import server_of_this_process
from ..telemetry.metrics import Metrics
from .dispatch import Dispatcher
from .hooks import BoundHook, Item
from .model import LoadedModel, Model
from .pipeline import Pipeline


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is made from.

    Attributes:
        bundle: Contract and settings.
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        batch_size: The most requests that come at once.
        describe: Returns the answer of describe.
    """

    bundle: Bundle
    model_dir: Path
    gpu_id: int | None
    batch_size: int
    describe: Callable[[], Any]


class Backend(Protocol):
    """What answers a worker's requests.

    Attributes:
        is_healthy: Calls the module's `is_healthy`; None without one.
    """

    is_healthy: Callable[[Mapping[str, Any]], Any] | None

    @property
    def metrics(self) -> Metrics | None:
        """The counters of answers; None without metrics."""

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, for callers that run its steps one by one."""

    def answer(self, items: Sequence[Item]) -> int:
        """Give each item its `reply` or its `failure`; return how many requests were not describe."""

    def describe(self) -> dict[str, Any]:
        """Return `predictor` and `types`, for `health.description`."""

    def flush(self) -> None:
        """Write what was recorded of a batch."""

    def close(self) -> None:
        """Release threads, connections and the model."""


class PipelineBackend:
    """The pipeline in this process, wherever the model is. See `Backend` for the methods.

    Args:
        model: Closed with the backend.
    """

    def __init__(self, options: BackendOptions, model: Model) -> None:
        self._model = model
        self._dispatcher = Dispatcher(options.bundle, model, batch_size=options.batch_size, describe=options.describe)
        self.pipeline = self._dispatcher.pipeline
        self.metrics = model.recording.metrics
        self.is_healthy = model.is_healthy

    def answer(self, items: Sequence[Item]) -> int:
        return self._dispatcher.answer(items)

    def flush(self) -> None:
        self._model.recording.flush()

    def describe(self) -> dict[str, Any]:
        return {"types": self._dispatcher.types(), "predictor": self._model.predictor.describe()}

    def close(self) -> None:
        self._dispatcher.close()
        self._model.close()


class LocalBackend(PipelineBackend):
    """The pipeline and a copy of the model in this process.

    Args:
        server: TorchServe's process; None without one.

    Attributes:
        model: The model.
    """

    def __init__(self, options: BackendOptions, server: int | None = None) -> None:
        self.model = LoadedModel(options.bundle, options.model_dir, gpu_id=options.gpu_id, server=server)
        super().__init__(options, self.model)

    @classmethod
    def in_worker(cls, options: BackendOptions) -> LocalBackend:
        """Make the backend of one of several workers, which share the machine's cores."""
        share_the_cores()
        server, _started = server_of_this_process()
        return cls(options, server)

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """Replace each hook. See `Worker.observe`."""

        def optional(number: int, role: str, hook: BoundHook | None) -> BoundHook | None:
            return observed(number, role, hook) if hook is not None else None

        hooks = tuple(
            replace(
                each,
                preprocess=optional(number, "preprocess", each.preprocess),
                predict=observed(number, "predict", each.predict),
                postprocess=optional(number, "postprocess", each.postprocess),
            )
            for number, each in enumerate(self.model.hooks)
        )
        self.pipeline.hooks = self.model.predictor.hooks = hooks
