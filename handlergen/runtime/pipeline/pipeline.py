"""A batch of requests: decode, preprocess, predict, postprocess, encode; each request alone in its success and failure.

The same code runs in TorchServe, locally and offline.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import Any

from ..codec.decode import decode
from ..codec.encode import encode
from ..codec.errors import INPUT
from ..contract import RuntimeSettings
from ..device.device import inference_mode
from ..request import Request
from ..telemetry.recording import Recorder
from ..torchserve.streaming import STREAMS, Streaming, drain, drain_async
from .batching import Arrivals
from .hooks import BoundHook, EventLoopThread, Hooks, Item
from .predictor import Predictor


class Pipeline:
    """Takes requests through the stages of one model.

    Args:
        settings: What the archive carries.
        streaming: Where the chunks go of a postprocess that is a generator.
        recorder: Is told how long each stage took; None for nobody.
        batch_size: The most requests that come at once.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        *,
        streaming: Streaming,
        recorder: Recorder | None,
        batch_size: int,
        fail: Callable[[Item, BaseException, str], None],
    ) -> None:
        self._settings = settings
        self._streaming = streaming
        self._recorder = recorder
        self._batch_size = batch_size
        self.fail = fail
        self._hooks: Hooks
        self._predictor: Predictor
        self._threads: ThreadPoolExecutor | None = None
        self._async: EventLoopThread | None = None
        self._async_starts = threading.Lock()

    def start(self, hooks: Hooks, predictor: Predictor, convert: Callable[[Any], Any] | None = None) -> None:
        """Connect the loaded model; before the first request.

        Args:
            convert: Makes of a request's data what the first hook's annotation asks for; raises what `failure_of`
                takes for the hook `INPUT`.
        """
        self._hooks = hooks
        self._predictor = predictor
        self._convert = convert

    def use(self, hooks: Hooks) -> None:
        """Call these hooks instead, which observe those that were given to `start`."""
        self._hooks = hooks

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        if self._threads is not None:
            self._threads.shutdown()
        if self._async is not None:
            self._async.close()

    def forked(self) -> Pipeline:
        """The same stages for use in a process that was forked off this one, which threads do not cross."""
        own = copy.copy(self)
        own._threads, own._async, own._async_starts = None, None, threading.Lock()
        own._recorder = None  # its spans would never be written
        return own

    def run(self, items: Sequence[Item]) -> None:
        """Answer a batch: each item ends with its `reply` or its `failure`.

        A single request runs in this thread, from stage to stage. Of several, each is prepared and answered in a
        thread (or on the event loop) of its own, while this thread predicts for those that are ready.
        """
        if len(items) == 1:
            self.preprocess(items)
            self.predict(items)
            self.postprocess(items)
            return
        finished = threading.Semaphore(0)
        threads = self._pool()

        def answered(_item: Item) -> None:
            finished.release()

        last = len(self._hooks) - 1

        def predicted(item: Item) -> None:
            if item.failure is not None:
                finished.release()
            elif item.stage == last:
                threads.submit(self._surely, self._finish, item, answered)
            else:
                threads.submit(self._surely, self._advance, item, arrivals.put)

        arrivals = Arrivals(len(items), last, predicted)
        for item in items:
            threads.submit(self._surely, self._prepare, item, arrivals.put)
        self._predictor.predict(arrivals)
        for _ in items:
            finished.acquire()

    def preprocess(self, items: Sequence[Item]) -> None:
        """Decode and preprocess in this thread, one after the other; async hooks run side by side."""
        self._each(items, self._prepare)

    def predict(self, items: Sequence[Item]) -> None:
        """Predict for every item that has not failed; between two stages, answer one and prepare the other."""
        for stage in range(len(self._hooks)):
            if stage:
                self._each([item for item in items if item.failure is None], self._advance)
            arrivals = Arrivals(len(items), stage, lambda _item: None)
            for item in items:
                arrivals.put(item)
            self._predictor.predict(arrivals)

    def postprocess(self, items: Sequence[Item]) -> None:
        """Postprocess and encode what has not failed, in this thread, one after the other; async hooks side by side."""
        with inference_mode():  # once for all of them
            self._each([item for item in items if item.failure is None], self._finish)

    def _surely(
        self, stage: Callable[[Item, Callable[[Item], None]], None], item: Item, then: Callable[[Item], None]
    ) -> None:
        """Run a stage in a thread. What it should not raise is the request's failure: the batch waits for `then`."""
        try:
            stage(item, then)
        except BaseException as error:
            self.fail(item, error, "handle")
            then(item)

    def _each(self, items: Sequence[Item], stage: Callable[[Item, Callable[[Item], None]], None]) -> None:
        done: queue.SimpleQueue[Item] = queue.SimpleQueue()  # the cheapest signal there is
        for item in items:
            stage(item, done.put)
        for _ in items:
            done.get()

    def _prepare(self, item: Item, then: Callable[[Item], None]) -> None:
        recorder = self._recorder
        start = time.monotonic_ns() if recorder is not None else 0
        if item.files is None:  # else it has been decoded already, as what stands in it
            try:
                decoded = decode(item.entry, item.properties)
                item.data, item.files = decoded.data, decoded.files
            except BaseException as error:
                self.fail(item, error, "decode")
        if self._convert is not None and item.failure is None:
            try:
                item.data = self._convert(item.data)
            except BaseException as error:
                self.fail(item, error, INPUT)
        if recorder is not None:
            recorder.record("decode", item.request.id, start, time.monotonic_ns())

        self._make_ready(item, item.data, then)

    def _make_ready(self, item: Item, value: Any, then: Callable[[Item], None]) -> None:
        """Preprocess for the item's stage; the item is then ready for the device."""

        def ready(inputs: Any) -> None:
            item.inputs = inputs
            item.ready_ns = time.monotonic_ns()
            then(item)

        item.inputs = value
        self._call(self._hooks[item.stage].preprocess, item, value, "preprocess", ready)

    def _advance(self, item: Item, then: Callable[[Item], None]) -> None:
        """From one stage of the model to the next, outside the lock."""

        def answered(value: Any) -> None:
            item.stage += 1
            self._make_ready(item, value, then)

        with inference_mode():
            self._call(self._hooks[item.stage].postprocess, item, item.outputs, "postprocess", answered)

    def _finish(self, item: Item, then: Callable[[Item], None]) -> None:
        hook = self._hooks[-1].postprocess
        if hook is None:
            self._encode(item, item.outputs, then)
            return
        # predict's outputs are inference tensors, which only inference mode lets a hook change in place.
        with inference_mode():
            self._call(hook, item, item.outputs, "postprocess", lambda value: self._encode(item, value, then))

    def _encode(self, item: Item, value: Any, then: Callable[[Item], None]) -> None:
        if type(value) in STREAMS and item.failure is None:
            self._stream(item, value, then)
            return
        recorder = self._recorder
        start = time.monotonic_ns() if recorder is not None else 0
        if item.failure is None:
            try:
                if item.wrap is not None:
                    value = item.wrap(value)
                item.reply = encode(value, nan=self._settings.nan, limit=self._settings.max_response_bytes)
            except BaseException as error:
                self.fail(item, error, "encode")
        if recorder is not None:
            recorder.record("encode", item.request.id, start, time.monotonic_ns())
        then(item)

    def _stream(self, item: Item, stream: Any, then: Callable[[Item], None]) -> None:
        """Send the chunks of a postprocess that is a generator; outside the lock, beside other requests."""
        chunks = self._streaming.chunks(item)

        def ended(_nothing: Any, error: BaseException | None) -> None:
            if error is not None:
                self.fail(item, error, "postprocess")
            self._encode(item, None if error is not None else chunks.answer(), then)

        if isinstance(stream, AsyncGenerator):
            self._event_loop().submit(drain_async(stream, chunks.put, self._streaming.limit_s), ended)
            return
        try:
            drain(stream, chunks.put, self._streaming.limit_s)
        except BaseException as error:
            ended(None, error)
        else:
            ended(None, None)

    def _call(
        self, hook: BoundHook | None, item: Item, unchanged: Any, stage: str, then: Callable[[Any], None]
    ) -> None:
        """Call a hook and continue with what it returns: here, or on the event loop when it is async."""
        if item.failure is not None or hook is None:
            then(unchanged)
            return
        recorder = self._recorder
        start = time.monotonic_ns() if recorder is not None else 0

        def returned(value: Any, error: BaseException | None) -> None:
            if recorder is not None:
                recorder.record(stage, item.request.id, start, time.monotonic_ns())
            if error is not None:
                self.fail(item, error, stage)
            then(value)

        try:
            value = hook.call(item)
        except BaseException as error:
            returned(None, error)
            return
        if type(value) is CoroutineType:
            self._event_loop().submit(value, returned)
        else:
            returned(value, None)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._batch_size, thread_name_prefix="handlergen")
        return self._threads

    def _event_loop(self) -> EventLoopThread:
        with self._async_starts:
            if self._async is None:
                self._async = EventLoopThread()
            return self._async


def open_items(
    data: Sequence[Mapping[str, Any]], properties: Sequence[Mapping[str, Any]], request_ids: Sequence[str]
) -> list[Item]:
    """One item a request.

    Args:
        data: A mapping a request: `{"body": ...}`, or a value a part.
        properties: The request's headers and its parts' content types.
        request_ids: The requests' ids.
    """
    return [
        Item(index, entry, headers, Request(headers, request_id))
        for index, (entry, headers, request_id) in enumerate(zip(data, properties, request_ids, strict=True))
    ]
