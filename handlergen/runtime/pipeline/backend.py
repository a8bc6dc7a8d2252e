"""What answers a worker's requests: this process, or a predictor process (`predictor_process.backends`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class BackendFactory(Protocol):
    """Makes a backend."""

    def __call__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
    ) -> Backend: ...


class PipelineBackend:
    """The stages in this process, wherever the model is. See `Backend` for the methods.

    Args:
        bundle: Contract and settings.
        model: The model; closed with the backend.
        batch_size: The most requests that come at once.
        describe: What describe answers.
        about: Returns `predictor`, for `describe`.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: Model,
        *,
        batch_size: int,
        describe: Callable[[], Any],
        about: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._model = model
        self._dispatcher = Dispatcher(bundle, model, batch_size=batch_size, describe=describe)
        self._about = about
        self.is_healthy = model.is_healthy

    @property
    def metrics(self) -> Metrics | None:
        return self._model.recording.metrics

    @property
    def pipeline(self) -> Pipeline:
        return self._dispatcher.pipeline

    def answer(self, items: Sequence[Item]) -> int:
        return self._dispatcher.answer(items)

    def describe(self) -> dict[str, Any]:
        return {"types": self._dispatcher.types(), "predictor": self._about()["predictor"]}

    def flush(self) -> None:
        self._model.recording.flush()

    def close(self) -> None:
        self._dispatcher.close()
        self._model.close()


class LocalBackend(PipelineBackend):
    """The stages and a copy of the model in this process.

    Args:
        bundle: Contract and settings.
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        batch_size: The most requests that come at once.
        describe: What describe answers.
        server: TorchServe's process; None without one.

    Attributes:
        model: The model.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
        server: int | None = None,
    ) -> None:
        model = self.model = LoadedModel(bundle, model_dir, gpu_id=gpu_id, server=server)

        def about() -> dict[str, Any]:
            return {"predictor": model.predictor.describe()}

        super().__init__(bundle, model, batch_size=batch_size, describe=describe, about=about)

    @classmethod
    def in_worker(
        cls,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
    ) -> LocalBackend:
        """Make that of one of several workers, which share the machine's cores."""
        share_the_cores()
        server, _started = server_of_this_process()
        return cls(bundle, model_dir, gpu_id=gpu_id, batch_size=batch_size, describe=describe, server=server)

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """See `Worker.observe`."""
        self.model.predictor.use(self._dispatcher.observe(observed))

    def disable_lock_timeout(self) -> None:
        """See `Worker.disable_lock_timeout`."""
        self.model.predictor.disable_lock_timeout()
