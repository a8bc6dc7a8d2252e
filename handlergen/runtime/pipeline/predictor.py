"""Who may predict when: under the device lock, in inference mode, one request after the other or a batch together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from types import CoroutineType
from typing import Any, Protocol

from ..codec.errors import LockTimeout, pass_interrupt
from ..device.device import Device, inference_mode
from ..forms.loading import UserModule
from ..telemetry.recording import Recorder
from ..torchserve.streaming import STREAMS, StreamAnswerError, Streaming, drain, drain_async
from .batching import BatchError, Ready, check_length, collate, split
from .hooks import Hooks, Item


class Lock(Protocol):
    """What serializes predictions (`device_lock`)."""

    key: str

    def acquire(self, timeout_s: float) -> None: ...
    def release(self) -> None: ...


class Predictor(Protocol):
    """Where predictions happen. The pipeline does not know whether that is this process."""

    def load(self) -> None:
        """Load the model; once."""

    def predict(self, arrivals: Ready) -> None:
        """Give every request of a batch its `outputs` or its `failure`, and hand each to `arrivals.done`."""

    def describe(self) -> dict[str, Any]:
        """Plain values about the model's copy: device, process, counts."""

    def close(self) -> None:
        """Let go of what it holds."""


def seconds_left(item: Item, lock_timeout_s: float) -> float:
    """How long a request may still wait for the device, counted from when it was ready for it."""
    return max(0.0, lock_timeout_s - (time.monotonic_ns() - item.ready_ns) / 1e9)


class WorkerPredictor:
    """Predicts in this process, with its own copy of the model, taking turns with others by the device lock.

    A turn lasts while requests of the batch are ready: the device is not handed over between two predictions
    whose inputs are both there, so batches of different workers follow each other whole, and one worker's
    answers go out while the other one predicts.

    Args:
        module: The user's module.
        device: Where its model is.
        lock: Who has the device.
        batch: `each`, `collate` or `list`.
        lock_timeout_s: How long a request may wait for the device, in seconds.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
        streaming: Where the chunks go of a predict that is a generator. It has the device until it ends.
        recorder: Is told how long each stage took; None for nobody.
    """

    def __init__(
        self,
        module: UserModule,
        device: Device,
        lock: Lock,
        *,
        batch: str,
        lock_timeout_s: float,
        fail: Callable[[Item, BaseException, str], None],
        streaming: Streaming,
        recorder: Recorder | None,
    ) -> None:
        self._module = module
        self._device = device
        self._call = DeviceCall(device, streaming, streams=batch == "each")
        self._lock = lock
        self._lock_timeout_s = lock_timeout_s
        self._fail = fail
        self._recorder = recorder
        self._predict_batch = {"each": None, "collate": self._collated, "list": self._listed}[batch]
        self._hooks: Hooks
        self._load_s = 0.0

    @property
    def hooks(self) -> Hooks:
        """The module's stages; after `load`."""
        return self._hooks

    def use(self, hooks: Hooks) -> None:
        """Call these hooks instead, which observe the module's."""
        self._hooks = hooks

    def tell(self, recorder: Recorder) -> None:
        """Tell this one how long each stage took, instead."""
        self._recorder = recorder

    def wait_for_ever(self) -> None:
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
        self._hooks = self._module.hooks()

    def predict(self, arrivals: Ready) -> None:
        item = arrivals.next()
        if self._predict_batch is not None:
            items = []
            while item is not None:
                items.append(item)
                item = arrivals.next()
            items.sort(key=lambda item: item.index)  # the same batch, whoever was ready first
            self._predict_together(items, arrivals)
            return
        while item is not None:
            # Entered before the wait: under the lock, nothing that could have been done earlier or later.
            with inference_mode():
                if self._staged(item) and not self._late([item]):
                    self._turn(item, arrivals)
                else:
                    arrivals.done(item)
            item = arrivals.next()

    def describe(self) -> dict[str, Any]:
        return {
            "placement": "worker",
            "device": str(self._device.torch),
            "device_key": self._device.key,
            "lock": self._lock.key,
            "load_s": round(self._load_s, 3),
            "predictions": self._call.count,
        }

    def close(self) -> None:
        self._call.close()

    def _staged(self, item: Item) -> bool:
        """Lay the inputs of a request out for the device, before the lock."""
        try:
            item.inputs = self._device.pin(item.inputs)
        except BaseException as error:
            self._fail(item, error, "predict")
            return False
        return True

    def _late(self, items: list[Item]) -> list[Item]:
        """Wait for the device, until the first of these requests cannot wait any longer.

        Returns:
            Those that cannot: they have failed. None when the device is theirs.
        """
        left = {item: seconds_left(item, self._lock_timeout_s) for item in items}
        soonest = min(left.values())
        try:
            self._lock.acquire(soonest)
        except LockTimeout as error:
            late = [item for item in items if left[item] == soonest]
            for item in late:
                self._fail(item, error, "predict")
            return late
        except BaseException as error:
            for item in items:
                self._fail(item, error, "predict")
            return items
        return []

    def _turn(self, first: Item, arrivals: Ready) -> None:
        """Predict, one after the other, for the requests that are ready; the lock is held, and given back."""
        predicted = []
        item: Item | None = first
        try:
            while item is not None:
                started, ready = (
                    time.monotonic_ns(),
                    item.ready_ns,
                )  # of this stage: `done` may begin the next
                try:
                    item.outputs = self._call(self._hooks, item)
                    if arrivals.more:  # it is answered while the next one is predicted
                        item.outputs = self._device.own(item.outputs)
                except BaseException as error:
                    self._device.recover(error)
                    self._fail(item, error, "predict")
                predicted.append((item.request.id, ready, started, time.monotonic_ns()))
                arrivals.done(item)
                item = arrivals.next_ready()
        finally:
            self._lock.release()
        if self._recorder is not None:
            for request_id, ready, started, ended in predicted:
                self._recorder.record("lock_wait", request_id, ready, started)
                self._recorder.record("predict", request_id, started, ended)

    def _predict_together(self, items: list[Item], arrivals: Ready) -> None:
        originals: dict[Item, Any] = {}
        while items:
            try:
                originals = originals or self._originals(items)
                together = self._together(items)
            except BaseException as error:
                for item in items:
                    self._fail(item, error, "predict")
                break
            with inference_mode():
                late = self._late(items)
                if not late:
                    self._on_device_together(items, together, originals)
                    break
            for item in late:
                arrivals.done(item)
            items = [item for item in items if item not in late]
        for item in items:
            arrivals.done(item)

    def _on_device_together(
        self, items: list[Item], together: Item | None, originals: Mapping[Item, Any]
    ) -> None:
        """The batch's turn on the device, which has begun."""
        assert self._predict_batch is not None
        started = time.monotonic_ns()
        try:
            if together is None:
                self._one_by_one(items, originals)
            else:
                self._predict_batch(items, together)
        except BaseException as error:
            pass_interrupt(error)
            self._device.recover(error)
            if len(items) == 1 or isinstance(error, BatchError):
                for item in items:
                    self._fail(item, error, "predict")
            else:
                self._one_by_one(items, originals)
        finally:
            ended = time.monotonic_ns()
            self._lock.release()
        if self._recorder is not None:
            self._record(items, started, ended)

    def _one_by_one(self, items: Sequence[Item], originals: Mapping[Item, Any]) -> None:
        """After a failed batch: each request alone, so that only the culprit fails."""
        assert self._predict_batch is not None
        for item in items:
            item.inputs = originals.get(item, item.inputs)
            try:
                self._predict_batch([item], self._join([item]))
            except BaseException as error:
                self._device.recover(error)
                self._fail(item, error, "predict")

    def _originals(self, items: Sequence[Item]) -> dict[Item, Any]:
        """The inputs as they are before the batch's predict, which may change them in place, and then fail.

        Only where it sees the inputs themselves: torch's default collate makes tensors of its own.
        """
        seen = self._predict_batch == self._listed or self._hooks[0].collate is not None
        if not seen or len(items) == 1:
            return {}
        return {item: self._device.own(item.inputs) for item in items}

    def _together(self, items: Sequence[Item]) -> Item | None:
        """The requests joined to one batch; None when they are to be predicted one by one.

        That is: an own collate failed (one by one only the culprit does), or the samples cannot be stacked and the
        form allows it.
        """
        try:
            return self._join(items)
        except BaseException as error:
            pass_interrupt(error)
            hopeless = isinstance(error, BatchError) and not self._hooks[0].one_by_one
            if hopeless or len(items) == 1:
                raise
            return None

    def _join(self, items: Sequence[Item]) -> Item:
        """One item that stands for several: what `predict` sees in the batch modes."""
        joined = Item(-1, {}, {}, [item.request for item in items])
        inputs = [item.inputs for item in items]
        own = self._hooks[0].collate
        together: Any = inputs
        if self._predict_batch == self._collated:
            together = collate(inputs) if own is None else own(inputs)
        joined.inputs = self._device.pin(together)
        return joined

    def _collated(self, items: Sequence[Item], joined: Item) -> None:
        outputs = split(self._call(self._hooks, joined), len(items), hook=self._hooks[0].predict.name)
        for item, output in zip(items, outputs, strict=True):
            item.outputs = output

    def _listed(self, items: Sequence[Item], joined: Item) -> None:
        outputs = self._call(self._hooks, joined)
        check_length(outputs, len(items), hook=self._hooks[0].predict.name)
        for item, output in zip(items, outputs, strict=True):
            item.outputs = output

    def _record(self, items: Sequence[Item], started: int, ended: int) -> None:
        assert self._recorder is not None
        for item in items:
            self._recorder.record("lock_wait", item.request.id, item.ready_ns, started)
        self._recorder.record("predict", ",".join(item.request.id for item in items), started, ended)


class DeviceCall:
    """Calls `predict`, whatever it is: a function, a coroutine, a generator. The caller has the lock.

    Args:
        device: Where the model is.
        streaming: Where the chunks go of a predict that is a generator.
        streams: Whether it may be one: not when several requests are predicted together.

    Attributes:
        count: Calls so far.
    """

    def __init__(self, device: Device, streaming: Streaming, *, streams: bool) -> None:
        self._device = device
        self._streaming = streaming
        self._streams = streams
        self._loop: asyncio.AbstractEventLoop | None = None
        self.count = 0

    def __call__(self, hooks: Hooks, item: Item) -> Any:
        """Inputs to the device, `predict` of the item's stage, wait, outputs to the CPU; in inference mode."""
        self.count += 1
        device = self._device
        item.inputs = device.put(item.inputs)
        outputs = hooks[item.stage].predict.call(item)
        if type(outputs) is CoroutineType:
            outputs = self._await(outputs)
        if type(outputs) in STREAMS:
            outputs = self._streamed(hooks, item, outputs)
        device.wait()
        return device.fetch(outputs)

    def close(self) -> None:
        """Let go of what it holds."""
        if self._loop is not None:
            self._loop.close()

    def _streamed(self, hooks: Hooks, item: Item, stream: Any) -> Any:
        """Iterate what `predict` returned, here, and send its chunks; what is left to be answered."""
        if not self._streams or item.stage != len(hooks) - 1:
            raise StreamAnswerError("predict returned a generator, which only one request at a time can have")
        if hooks[item.stage].postprocess is not None:
            raise StreamAnswerError(
                "predict returned a generator, whose chunks go out as they are made, and there is a postprocess: "
                "do its work inside predict, and remove it"
            )
        chunks = self._streaming.chunks(item)
        device = self._device

        def put(chunk: Any) -> None:
            device.wait()
            chunks.put(device.fetch(chunk))

        if isinstance(stream, Generator):
            drain(stream, put, self._streaming.limit_s)
        else:
            self._await(drain_async(stream, put, self._streaming.limit_s))
        return chunks.answer()

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(coroutine)
