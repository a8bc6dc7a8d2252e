"""Predictions: under the device lock, in inference mode, one request after the other or a batch together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, Protocol

from ..codec.errors import LockTimeout, pass_interrupt
from ..contract import RuntimeSettings
from ..device.device import Device, inference_mode
from ..forms.loading import UserModule
from ..telemetry.recording import Recorder
from ..torchserve.streaming import (
    STREAMS,
    StreamAnswerError,
    Streaming,
    drain,
    drain_async,
    is_stream,
    opened_stream,
)
from .batching import BatchError, RequestSource, check_length, collate, map_tensors, split
from .hooks import BoundHook, Hooks, Item
from .request_context import RequestContexts


class Lock(Protocol):
    """What serializes predictions (`device.lock`)."""

    key: str

    def acquire(self, timeout_s: float) -> None: ...
    def release(self) -> None: ...


class Predictor(Protocol):
    """Predicts for the pipeline, in this process or through another one."""

    def predict(self, requests: RequestSource) -> None:
        """Give every request of a batch its `outputs` or its `failure`, and pass each to `requests.done`."""

    def describe(self) -> dict[str, Any]:
        """Return plain values about the model's copy: device, process, counts."""


def seconds_left(item: Item, lock_timeout_s: float) -> float:
    """Return how long a request may still wait for the device, counted from when it was ready."""
    return max(0.0, lock_timeout_s - (time.monotonic_ns() - item.ready_ns) / 1e9)


class WorkerPredictor:
    """Predicts in this process, with its own copy of the model, under the device lock.

    The lock is held while further requests of the batch are ready: the device is not handed over between two
    predictions whose inputs are both there, so batches of different workers follow each other whole, and one worker's
    answers go out while another one predicts.

    Args:
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
        streaming: Where the chunks of a predict that is a generator go. It holds the lock until it ends.
        recorder: Records how long each stage took; None where nothing is recorded.

    Attributes:
        contexts: Makes the contexts of requests: copies of what import, setup and load left.
        hooks: The module's, after `load`; may be replaced while no request is being answered.
    """

    def __init__(
        self,
        module: UserModule,
        device: Device,
        lock: Lock,
        settings: RuntimeSettings,
        *,
        fail: Callable[[Item, BaseException, str], None],
        streaming: Streaming,
        recorder: Recorder | None,
    ) -> None:
        self._module = module
        self._device = device
        self._lock = lock
        self._batch = settings.batch
        self._lock_timeout_s = settings.lock_timeout_s
        self._fail = fail
        self._streaming = streaming
        self._recorder = recorder
        self._loop = module.loop
        self.contexts = RequestContexts(Context())
        self._calls = 0
        self._load_s = 0.0
        self.hooks: Hooks = ()

    def disable_lock_timeout(self) -> None:
        """Let no request fail because the device is not free in time: an offline run has no client that waits."""
        self._lock_timeout_s = math.inf

    def load(self) -> None:
        """Load the model under the device lock; waits for it as long as TorchServe lets a worker start."""
        self._lock.acquire(math.inf)
        try:
            start = time.monotonic()
            self._module.load()
            self._device.wait()
            self._load_s = time.monotonic() - start
        finally:
            self._lock.release()
        self.hooks = self._module.hooks()
        self.contexts = RequestContexts(copy_context())
        self._loop.enter_inference_mode()

    def predict(self, requests: RequestSource) -> None:
        if self._batch != "each":
            items = list(iter(requests.next, None))
            items.sort(key=lambda item: item.index)  # the same batch, whichever was ready first
            self._predict_together(items, requests)
            return
        while (item := requests.next()) is not None:
            # Entered before the wait: under the lock, nothing that could have been done earlier or later.
            with inference_mode():
                if self._pinned(item) and not self._late([item]):
                    self._predict_ready(item, requests)
                else:
                    requests.done(item)

    def describe(self) -> dict[str, Any]:
        return {
            "placement": "worker",
            "device": str(self._device.torch),
            "device_key": self._device.key,
            "lock": self._lock.key,
            "load_s": round(self._load_s, 3),
            "predictions": self._calls,
        }

    def _pinned(self, item: Item) -> bool:
        """Pin the memory of a request's inputs, before the lock."""
        try:
            item.inputs = self._device.pin(item.inputs)
        except BaseException as error:
            self._fail(item, error, "predict")
            return False
        return True

    def _late(self, items: list[Item]) -> list[Item]:
        """Acquire the lock, or wait for it until the first of these requests has waited too long.

        Returns:
            Those that have waited too long: they have failed. None of them when the lock is held.
        """
        left = {item: seconds_left(item, self._lock_timeout_s) for item in items}
        soonest = min(left.values())
        try:
            self._lock.acquire(soonest)
        except BaseException as error:
            late = [item for item in items if left[item] == soonest] if isinstance(error, LockTimeout) else items
            for item in late:
                self._fail(item, error, "predict")
            return late
        return []

    def _predict_ready(self, first: Item, requests: RequestSource) -> None:
        """Predict, one after the other, the requests that are ready, under the lock, which is then released."""
        predicted = []
        item: Item | None = first
        try:
            while item is not None:
                # Read now: `done` may begin the request's next model.
                started, ready = time.monotonic_ns(), item.ready_ns
                try:
                    item.outputs = self._call(item)
                    if requests.more:  # this answer is encoded during the next predict, which may overwrite its memory
                        item.outputs = self._device.own(item.outputs)
                except BaseException as error:
                    self._device.recover(error)
                    self._fail(item, error, "predict")
                predicted.append((item.request, ready, started, time.monotonic_ns()))
                requests.done(item)
                item = requests.next_ready()
        finally:
            self._lock.release()
        if self._recorder is not None:
            for request, ready, started, ended in predicted:
                self._recorder("lock_wait", request.full_id, ready, started)
                self._recorder("predict", request.full_id, started, ended)

    def _predict_together(self, items: list[Item], requests: RequestSource) -> None:
        """Predict a batch; again without those that wait too long for the lock, until it is free or none is left."""
        originals: dict[Item, Any] = {}
        while items:
            try:
                originals = originals or self._originals(items)
                joined = self._join_if_possible(items)
            except BaseException as error:
                for item in items:
                    self._fail(item, error, "predict")
                break
            with inference_mode():
                late = self._late(items)
                if not late:
                    self._predict_locked(items, joined, originals)
                    break
            for item in late:
                requests.done(item)
            items = [item for item in items if item not in late]
        for item in items:
            requests.done(item)

    def _predict_locked(self, items: list[Item], joined: Item | None, originals: Mapping[Item, Any]) -> None:
        """Predict a batch under the lock, which is then released; one by one where it is not joined, or has failed."""
        started = time.monotonic_ns()
        try:
            if joined is None:
                self._predict_one_by_one(items, originals)
            else:
                self._predict_joined(items, joined)
        except BaseException as error:
            pass_interrupt(error)
            self._device.recover(error)
            if len(items) == 1 or isinstance(error, BatchError):
                for item in items:
                    self._fail(item, error, "predict")
            else:
                self._predict_one_by_one(items, originals)
        finally:
            ended = time.monotonic_ns()
            self._lock.release()
        if self._recorder is not None:
            for item in items:
                self._recorder("lock_wait", item.request.full_id, item.ready_ns, started)
            self._recorder("predict", ",".join(item.request.full_id for item in items), started, ended)

    def _predict_one_by_one(self, items: Sequence[Item], originals: Mapping[Item, Any]) -> None:
        """Predict each request of a batch alone, so that only the culprit fails."""
        for item in items:
            item.inputs = originals.get(item, item.inputs)
            try:
                self._predict_joined([item], self._join([item]))
            except BaseException as error:
                self._device.recover(error)
                self._fail(item, error, "predict")

    def _predict_joined(self, items: Sequence[Item], joined: Item) -> None:
        """Predict several requests joined to one item, and give each its output."""
        outputs, name = self._call(joined), self.hooks[0].predict.name
        if self._batch == "collate":
            outputs = split(outputs, len(items), hook=name)
        else:
            check_length(outputs, len(items), hook=name)
        for item, output in zip(items, outputs):
            item.outputs = output

    def _originals(self, items: Sequence[Item]) -> dict[Item, Any]:
        """Return copies of the inputs, where predict gets these themselves, may change them in place, and then fail.

        torch's default collate makes tensors of its own.
        """
        if len(items) == 1 or (self._batch == "collate" and self.hooks[0].collate is None):
            return {}
        return {item: self._device.own(item.inputs) for item in items}

    def _join_if_possible(self, items: Sequence[Item]) -> Item | None:
        """Return the requests joined to one item; None when they are to be predicted one by one.

        They are when a collate of the module's failed (one by one, only the culprit does), or when the samples cannot
        be stacked and the form allows it.
        """
        try:
            return self._join(items)
        except BaseException as error:
            pass_interrupt(error)
            hopeless = isinstance(error, BatchError) and not self.hooks[0].one_by_one
            if hopeless or len(items) == 1:
                raise
            return None

    def _join(self, items: Sequence[Item]) -> Item:
        """Return one item for several: what `predict` sees in the batch modes."""
        joined = Item(-1, {}, {}, [item.request for item in items])
        joined.context = self.contexts.new()
        together: Any = [item.inputs for item in items]
        if self._batch == "collate":
            own = self.hooks[0].collate
            together = collate(together) if own is None else joined.context.run(own, together)
        joined.inputs = self._device.pin(together)
        return joined

    def _call(self, item: Item) -> Any:
        """Move inputs to the device, call `predict`, wait for the device, return outputs on the CPU."""
        self._calls += 1
        device = self._device
        item.inputs = device.put(item.inputs)
        outputs = item.context.run(self.hooks[item.model_index].predict.call, item)
        if type(outputs) is CoroutineType:
            outputs = self._loop.run(outputs, item.context)
        if is_stream(outputs):
            outputs = self._streamed(item, outputs)
        device.wait()
        return device.fetch(outputs)

    def _streamed(self, item: Item, outputs: Any) -> Any:
        """Send the chunks of the stream that `predict` returned; return what is left to encode."""
        what = "a generator" if type(outputs) in STREAMS else f"a {type(outputs).__name__}"
        if self._batch != "each" or item.model_index != len(self.hooks) - 1:
            raise StreamAnswerError(f"predict returned {what}, which only one request at a time can have")
        if self.hooks[item.model_index].postprocess is not None:
            raise StreamAnswerError(
                f"predict returned {what}, whose chunks go out as they are made, and there is a postprocess: "
                "do its work inside predict, and remove it"
            )
        stream, head = opened_stream(outputs)
        chunks = self._streaming.chunks(item, head)

        def put(chunk: Any) -> None:
            self._device.wait()
            chunks.put(self._device.fetch(chunk))

        if isinstance(stream, Generator):
            item.context.run(drain, stream, put, self._streaming.limit_s)
        else:
            self._loop.run(drain_async(stream, put, self._streaming.limit_s), item.context)
        return chunks.answer()


class Explainer:
    """A `Predictor` whose predictions are explanations, one request at a time, under the lock of the predictions.

    An explanation (`POST /explanations/NAME`) gets what `preprocess` returned, as with TorchServe's own handlers
    (BaseHandler.explain_handle), and is not postprocessed. It is not in inference mode: attributions need gradients.

    Args:
        predictor: Has the device, its lock, and what handles failures.
    """

    def __init__(self, hook: BoundHook, predictor: WorkerPredictor) -> None:
        self._hook = hook
        self._predictor = predictor

    def predict(self, requests: RequestSource) -> None:
        own = self._predictor._device.own
        while (item := requests.next()) is not None:
            try:
                outputs = self._explain(item)
                # Where more follow, this answer is encoded during the next explanation, which may overwrite its memory.
                item.outputs = own(outputs) if requests.more else outputs
            except BaseException as error:
                self._predictor._fail(item, error, "explain")
            requests.done(item)

    def describe(self) -> dict[str, Any]:
        return {}

    def _explain(self, item: Item) -> Any:
        lock, device, recorder = self._predictor._lock, self._predictor._device, self._predictor._recorder
        lock.acquire(seconds_left(item, self._predictor._lock_timeout_s))
        started = time.monotonic_ns()
        try:
            # An async preprocess runs in inference mode; what it made could not be differentiated.
            inputs = map_tensors(item.inputs, lambda each: each.clone() if each.is_inference() else each)
            item.inputs = device.put(inputs)
            outputs = item.context.run(self._hook.call, item)
            if type(outputs) is CoroutineType:
                outputs = self._predictor._loop.run(outputs, item.context, gradients=True)
            device.wait()
            return device.fetch(outputs)
        except BaseException as error:
            device.recover(error)
            raise
        finally:
            ended = time.monotonic_ns()
            lock.release()
            if recorder is not None:
                recorder("lock_wait", item.request.full_id, item.ready_ns, started)
                recorder("explain", item.request.full_id, started, ended)
