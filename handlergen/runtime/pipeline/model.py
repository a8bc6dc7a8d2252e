"""A model as the pipeline needs it: hooks, predictor, explainer, and what handles failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..codec.errors import LockTimeout, failure_of, pass_interrupt
from ..codec.redaction import user_traceback
from ..context import Context
from ..contract import Bundle
from ..device.device import Device
from ..device.lock import DeviceLock, NoLock, lock_directory
from ..diagnostics import logger
from ..forms.loading import open_user_module
from ..telemetry.recording import Metrics, Recording
from ..torchserve.streaming import Streaming
from .event_loop import EventLoop
from .hooks import Hooks, Item
from .predictor import Explainer, Lock, Predictor, WorkerPredictor
from .request_context import RequestContexts
from .thread_hints import thread_hint

_HOOKS = ("preprocess", "predict", "postprocess")


class Model(Protocol):
    """What a `Dispatcher` works with.

    Attributes:
        explainer: Explains; None without an `explain` hook.
        contexts: Makes the contexts of requests.
        loop: Runs async hooks.
        is_healthy: Calls the module's `is_healthy`; None without one.
    """

    context: Context
    failures: FailureHandler
    streaming: Streaming
    recording: Recording
    explainer: Predictor | None
    contexts: RequestContexts
    loop: EventLoop
    is_healthy: Callable[[Mapping[str, Any]], Any] | None

    @property
    def hooks(self) -> Hooks: ...
    @property
    def predictor(self) -> Predictor: ...

    def close(self) -> None:
        """Release what the model holds."""


class LoadedModel:
    """A model in this process, loaded under the device lock. See `BackendOptions` for the other arguments.

    Args:
        server: TorchServe's process, for its metrics; None without one.
        guard: Wraps the device lock (the predictor process records who holds it).
        write_metrics: Writes lines of metrics; to standard output by default.

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
        self.failures = FailureHandler(contract.form, user_root=str(model_dir))
        self.streaming = streaming_of(bundle)
        self.recording = Recording(settings, self.device.key, metrics=server is not None, write=write_metrics)
        self.failures.metrics = self.recording.metrics
        lock_key = self.device.key if settings.lock == "device" else f"model-{settings.name}-{self.device.key}"
        lock = guard(NoLock() if settings.lock == "none" else DeviceLock(lock_key, lock_directory()))
        module = open_user_module(contract, settings, self.context)
        self.loop = module.loop
        self.loop.prepare_thread = self.device.prepare_thread
        module.setup()
        self.predictor = WorkerPredictor(
            module,
            self.device,
            lock,
            settings,
            fail=self.failures.fail,
            streaming=self.streaming,
            recorder=self.recording.recorder,
        )
        self.predictor.load()
        self.contexts = contexts = self.predictor.contexts
        self.failures.hooks = self.hooks
        explain = self.hooks[0].explain
        self.explainer: Predictor | None = Explainer(explain, self.predictor) if explain is not None else None
        ask = module.is_healthy()
        self.is_healthy = None if ask is None else lambda values: contexts.new().run(ask, values)
        if server is not None:
            self.recording.has_copy(settings, self.device, server)
            self.recording.start()

    @property
    def hooks(self) -> Hooks:
        return self.predictor.hooks

    def own_outputs(self, item: Item) -> None:
        """Copy a request's outputs if a hook may overwrite them: it is answered while the next one is predicted."""
        try:
            item.outputs = self.device.own(item.outputs)
        except BaseException as error:  # there is no more memory, say
            self.failures.fail(item, error, "predict")

    def close(self) -> None:
        self.loop.close()
        self.recording.close()


def streaming_of(bundle: Bundle) -> Streaming:
    settings = bundle.settings
    return Streaming(nan=settings.nan, limit=settings.max_response_bytes, limit_s=settings.predict_timeout_s)


class FailureHandler:
    """Turns what was raised into a request's failure, and logs it.

    The log gets a traceback for each request that fails by the module's fault; at level DEBUG also for each that a hook
    refuses.

    Args:
        user_root: Directory of the user's code, to which tracebacks are reduced.

    Attributes:
        hooks: The loaded module's, for the names of a flow's models in messages.
        metrics: Counts requests that did not get the device in time.
    """

    def __init__(self, form: str, *, user_root: str) -> None:
        self._form = form
        self._user_root = user_root
        self.hooks: Hooks = ()
        self.metrics: Metrics | None = None

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Set a request's failure and log it; at level DEBUG only where the client is at fault.

        Args:
            hook: What raised the error: a hook's role, or another step.

        Raises:
            KeyboardInterrupt: It was raised in the main thread.
        """
        pass_interrupt(error)
        role = hook
        public = hook
        name = self.hooks[item.model_index].name if self.hooks else ""
        if name and role in _HOOKS:
            hook = f"{role} of {name}"
            # What later hooks of a flow get is the module's own doing: their ValueError is not the client's mistake.
            if role != "preprocess" or item.model_index:
                public = f"stage {item.model_index + 1} ({role})"
        item.failure = failure_of(error, hook=public, form=self._form, request_id=item.request.id)
        if self.metrics is not None and isinstance(error, LockTimeout):
            self.metrics.lock_timed_out()
        level = logging.ERROR if item.failure.status >= 500 else logging.DEBUG
        if level == logging.ERROR or (role in _HOOKS and logger().isEnabledFor(level)):
            logger().log(
                level,
                "request %s failed in %s with status %d\n%s%s",
                item.request.full_id,
                hook,
                item.failure.status,
                user_traceback(error, user_root=self._user_root),
                thread_hint(error),
            )
