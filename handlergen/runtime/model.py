"""A model as the pipeline needs it: its stages, and who predicts, here or in a predictor process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .context import Context
from .contract import Bundle
from .device import Device
from .device_lock import DeviceLock, NoLock, lock_directory
from .explain import Explainer
from .failing import Failing
from .hooks import Hooks, Item
from .predictor import Lock, Predictor, WorkerPredictor
from .recording import Recording
from .streaming import Streaming
from .user_module import open_user_module


class Model(Protocol):
    """What answers requests (`answering`) works with.

    Attributes:
        context: What hooks receive as `context`.
        failing: Settles failures.
        streaming: Where chunks go.
        recording: Is told how long stages take.
        predictor: Who predicts.
        explainer: Who explains; None without an `explain` hook.
        is_healthy: Asks the module's `is_healthy`; None without one.
    """

    context: Context
    failing: Failing
    streaming: Streaming
    recording: Recording
    explainer: Predictor | None
    is_healthy: Callable[[Mapping[str, Any]], Any] | None

    @property
    def hooks(self) -> Hooks:
        """The stages."""

    @property
    def predictor(self) -> Predictor:
        """Who predicts."""

    def close(self) -> None:
        """Let go of what it holds."""


class LoadedModel:
    """A model in this process, loaded under the device lock.

    Args:
        bundle: Contract and settings.
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        server: TorchServe's process, whose metrics are counted for; None without one.
        guard: Stands in front of the device lock (the predictor process notes who has it).
        write_metrics: Takes lines of metrics; standard output when left out.

    Raises:
        Exception: What the user's module raises while it is imported, set up and loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        server: int | None = None,
        guard: Callable[[Lock], Lock] = lambda lock: lock,
        write_metrics: Callable[[str], None] | None = None,
    ) -> None:
        contract, settings = bundle.contract, bundle.settings
        self.device = Device(gpu_id)
        self.context = Context.open(settings, device=self.device.torch, model_dir=model_dir)
        self.failing = Failing(contract.form, user_root=str(model_dir), logger=self.context.logger)
        self.streaming = streaming_of(bundle)
        self.recording = Recording(settings, self.device.key, metrics=server is not None, write=write_metrics)
        self.failing.count_lock_timeouts(self.recording.metrics)
        lock = guard(_lock(settings.lock, settings.name, self.device.key))
        self._module = open_user_module(contract, settings, self.context)
        self._module.setup()
        self.predictor = WorkerPredictor(
            self._module,
            self.device,
            lock,
            batch=settings.batch,
            lock_timeout_s=settings.lock_timeout_s,
            fail=self.failing.fail,
            streaming=self.streaming,
            recorder=self.recording.recorder,
        )
        self.predictor.load()
        self.failing.name_stages(self.hooks)
        self.explainer: Predictor | None = None
        explain = self.hooks[0].explain
        if explain is not None:
            self.explainer = Explainer(
                explain,
                self.device,
                lock,
                lock_timeout_s=settings.lock_timeout_s,
                fail=self.failing.fail,
                recorder=self.recording.recorder,
            )
        self.is_healthy = self._module.optional("is_healthy")
        if server is not None:
            self.recording.has_copy(settings, self.device, server)
            self.recording.start()

    @property
    def hooks(self) -> Hooks:
        return self.predictor.hooks

    def own_outputs(self, item: Item) -> None:
        """Give a request's outputs memory of their own: it is answered beside the next predict."""
        try:
            item.outputs = self.device.own(item.outputs)
        except BaseException as error:  # there is no more memory, say
            self.failing.fail(item, error, "predict")

    def close(self) -> None:
        self.predictor.close()
        self.recording.close()


def streaming_of(bundle: Bundle) -> Streaming:
    """How the model's answers are streamed."""
    settings = bundle.settings
    return Streaming(nan=settings.nan, limit=settings.max_response_bytes, limit_s=settings.predict_timeout_s)


def _lock(kind: str, model: str, device_key: str) -> DeviceLock | NoLock:
    if kind == "none":
        return NoLock()
    key = device_key if kind == "device" else f"model-{model}-{device_key}"
    return DeviceLock(key, lock_directory())
