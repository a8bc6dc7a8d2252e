"""What answers a worker's requests: this process, or a predictor process (`predictor_process.backends`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..contract import Bundle
from ..device.device import share_the_cores
from ..server_process import server_of_this_process
from ..telemetry.metrics import Metrics
from .dispatch import Answering
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
        describe: What describe answers.
    """

    bundle: Bundle
    model_dir: Path
    gpu_id: int | None
    batch_size: int
    describe: Callable[[], Any]


class Backend(Protocol):
    """What answers a worker's requests.

    Attributes:
        is_healthy: Asks the module's `is_healthy`; None without one.
    """

    is_healthy: Callable[[Mapping[str, Any]], Any] | None

    @property
    def metrics(self) -> Metrics | None:
        """What answers are counted in."""

    @property
    def pipeline(self) -> Pipeline:
        """The stages one by one."""

    def answer(self, items: Sequence[Item]) -> int:
        """Give each item its `reply` or its `failure`; return how many were no descriptions."""

    def describe(self) -> dict[str, Any]:
        """Return `predictor` and `types`, for `describe.description`."""

    def flush(self) -> None:
        """Write what was recorded of a batch."""

    def close(self) -> None:
        """Let go of what it holds."""


class PipelineBackend:
    """The stages in this process, wherever the model is. See `Backend` for the methods.

    Args:
        options: What every backend is made from.
        model: The model; closed with the backend.
        about: Returns `predictor`, for `describe`.
    """

    def __init__(
        self, options: BackendOptions, model: Model, *, about: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._model = model
        self._answering = Answering(
            options.bundle, model, batch_size=options.batch_size, describe=options.describe
        )
        self._about = about
        self.is_healthy = model.is_healthy

    @property
    def metrics(self) -> Metrics | None:
        return self._model.recording.metrics

    @property
    def pipeline(self) -> Pipeline:
        return self._answering.pipeline

    def answer(self, items: Sequence[Item]) -> int:
        return self._answering.answer(items)

    def describe(self) -> dict[str, Any]:
        return {"types": self._answering.types(), "predictor": self._about()["predictor"]}

    def flush(self) -> None:
        self._model.recording.flush()

    def close(self) -> None:
        self._answering.close()
        self._model.close()


class LocalBackend(PipelineBackend):
    """The stages and a copy of the model in this process.

    Args:
        options: What every backend is made from.
        server: TorchServe's process; None without one.

    Attributes:
        model: The model.
    """

    def __init__(self, options: BackendOptions, server: int | None = None) -> None:
        model = self.model = LoadedModel(
            options.bundle, options.model_dir, gpu_id=options.gpu_id, server=server
        )

        def about() -> dict[str, Any]:
            return {"predictor": model.predictor.describe()}

        super().__init__(options, model, about=about)

    @classmethod
    def in_worker(cls, options: BackendOptions) -> LocalBackend:
        """Make that of one of several workers, which share the machine's cores."""
        share_the_cores()
        server, _started = server_of_this_process()
        return cls(options, server)

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """See `Worker.observe`."""
        self.model.predictor.use(self._answering.observe(observed))

    def wait_for_ever(self) -> None:
        """See `Worker.wait_for_ever`."""
        self.model.predictor.wait_for_ever()
