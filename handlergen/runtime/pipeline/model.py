"""A model as the pipeline needs it: its stages, who predicts and explains, and what becomes of failures.

An explanation (`POST /explanations/NAME`) gets what `preprocess` returned, as with TorchServe's own handlers
(BaseHandler.explain_handle), and is not postprocessed. It has the device to itself, but is not in inference mode:
attributions need gradients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CoroutineType
from typing import Any, Protocol

from ..codec.errors import LockTimeout, failure_of, pass_interrupt
from ..codec.redaction import user_traceback
from ..context import Context
from ..contract import Bundle
from ..device.device import Device
from ..device.lock import DeviceLock, NoLock, lock_directory
from ..forms.loading import open_user_module
from ..telemetry.metrics import Metrics
from ..telemetry.recording import Recorder, Recording
from ..torchserve.streaming import Streaming
from .batching import RequestSource, map_tensors
from .hooks import BoundHook, Hooks, Item
from .predictor import Lock, Predictor, WorkerPredictor, seconds_left

_HOOKS = ("preprocess", "predict", "postprocess")


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
    failures: FailureHandler
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
        self.failures = FailureHandler(contract.form, user_root=str(model_dir), logger=self.context.logger)
        self.streaming = streaming_of(bundle)
        self.recording = Recording(settings, self.device.key, metrics=server is not None, write=write_metrics)
        self.failures.count_lock_timeouts(self.recording.metrics)
        lock = guard(_lock(settings.lock, settings.name, self.device.key))
        self._module = open_user_module(contract, settings, self.context)
        self._module.setup()
        self.predictor = WorkerPredictor(
            self._module,
            self.device,
            lock,
            batch=settings.batch,
            lock_timeout_s=settings.lock_timeout_s,
            fail=self.failures.fail,
            streaming=self.streaming,
            recorder=self.recording.recorder,
        )
        self.predictor.load()
        self.failures.name_stages(self.hooks)
        self.explainer: Predictor | None = None
        explain = self.hooks[0].explain
        if explain is not None:
            self.explainer = Explainer(
                explain,
                self.device,
                lock,
                lock_timeout_s=settings.lock_timeout_s,
                fail=self.failures.fail,
                recorder=self.recording.recorder,
            )
        self.is_healthy = self._module.is_healthy()
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
            self.failures.fail(item, error, "predict")

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


class Explainer:
    """A `Predictor` whose predictions are explanations, one request at a time.

    Args:
        hook: The module's `explain`.
        device: Where the model is.
        lock: The same as the predictions': explanations and predictions take turns.
        lock_timeout_s: How long a request may wait for the device, in seconds.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
        recorder: Is told how long each stage took; None for nobody.
    """

    def __init__(
        self,
        hook: BoundHook,
        device: Device,
        lock: Lock,
        *,
        lock_timeout_s: float,
        fail: Callable[[Item, BaseException, str], None],
        recorder: Recorder | None = None,
    ) -> None:
        self._hook = hook
        self._device = device
        self._lock = lock
        self._lock_timeout_s = lock_timeout_s
        self._fail = fail
        self._recorder = recorder

    def load(self) -> None:
        """Nothing: the predictor has loaded the model."""

    def predict(self, requests: RequestSource) -> None:
        """Explain each request when it is ready."""
        item = requests.next()
        while item is not None:
            try:
                item.outputs = self._explain(item)
                if requests.more:  # as the predictor does
                    item.outputs = self._device.own(item.outputs)
            except BaseException as error:
                self._fail(item, error, "explain")
            requests.done(item)
            item = requests.next()

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held between two explanations."""

    def _explain(self, item: Item) -> Any:
        self._lock.acquire(seconds_left(item, self._lock_timeout_s))
        started = time.monotonic_ns()
        try:
            # An async preprocess runs in inference mode; what it made could not be differentiated.
            inputs = map_tensors(item.inputs, lambda each: each.clone() if each.is_inference() else each)
            item.inputs = self._device.put(inputs)
            outputs = self._hook.call(item)
            if type(outputs) is CoroutineType:
                outputs = asyncio.run(outputs)
            self._device.wait()
            return self._device.fetch(outputs)
        except BaseException as error:
            self._device.recover(error)
            raise
        finally:
            ended = time.monotonic_ns()
            self._lock.release()
            if self._recorder is not None:
                self._recorder.record("lock_wait", item.request.id, item.ready_ns, started)
                self._recorder.record("explain", item.request.id, started, ended)


class FailureHandler:
    """Makes a request's failure of what was raised.

    Args:
        form: The contract's.
        user_root: Directory of the user's code; tracebacks are cut to it.
        logger: Gets one traceback for each request that fails by the module's fault; at level DEBUG also for each that
            a hook refuses.
    """

    def __init__(self, form: str, *, user_root: str, logger: logging.Logger) -> None:
        self._form = form
        self._user_root = user_root
        self._logger = logger
        self._stages: tuple[str, ...] = ("",)
        self._metrics: Metrics | None = None

    def name_stages(self, hooks: Hooks) -> None:
        """Tell what the stages are called in messages; once the model is loaded."""
        self._stages = tuple(stage.name for stage in hooks)

    def count_lock_timeouts(self, metrics: Metrics | None) -> None:
        """Count requests that did not get the device in time."""
        self._metrics = metrics

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Settle that a request has no answer, and log why; what is the client's fault, for debugging only.

        Args:
            item: Its `failure` is set.
            error: What was raised.
            hook: The role of what raised it.

        Raises:
            KeyboardInterrupt: It was that, in the main thread.
        """
        pass_interrupt(error)
        request_id, role = item.request.id, hook
        name = self._stages[item.model_index]
        if name and hook in _HOOKS:
            # What comes into a later stage is the module's own doing: its ValueError is not the client's.
            own = hook == "preprocess" and item.model_index == 0
            told, hook = hook if own else f"stage {item.model_index + 1} ({hook})", f"{hook} of {name}"
        else:
            told = hook
        item.failure = failure_of(error, hook=told, form=self._form, request_id=request_id)
        if self._metrics is not None and isinstance(error, LockTimeout):
            self._metrics.lock_timed_out()
        level = logging.ERROR if item.failure.status >= 500 else logging.DEBUG
        if level == logging.ERROR or (role in _HOOKS and self._logger.isEnabledFor(level)):
            self._logger.log(
                level,
                "request %s failed in %s with status %d\n%s",
                request_id,
                hook,
                item.failure.status,
                user_traceback(error, user_root=self._user_root),
            )
