"""Explanations: `POST /explanations/NAME` calls the module's `explain`.

As with TorchServe's own handlers (BaseHandler.explain_handle) it gets what `preprocess` returned, and its answer is
not postprocessed. Like `predict` it has the device to itself; unlike it, not in inference mode: attributions need
gradients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from .arrivals import Ready
from .device import Device
from .hooks import BoundHook, Item
from .nested import map_tensors
from .predictor import Lock, seconds_left
from .recording import Recorder


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

    def predict(self, arrivals: Ready) -> None:
        """Explain each request when it is ready."""
        item = arrivals.next()
        while item is not None:
            try:
                item.outputs = self._explain(item)
                if arrivals.more:  # as the predictor does
                    item.outputs = self._device.own(item.outputs)
            except BaseException as error:
                self._fail(item, error, "explain")
            arrivals.done(item)
            item = arrivals.next()

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
