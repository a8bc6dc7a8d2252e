"""A batch of requests: decode, preprocess, predict, postprocess, encode; each request alone in its success and failure.

The same code runs in TorchServe, locally and offline.
"""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import Any

from ..codec.content import decode, is_compressed
from ..codec.content_encoding import decompressed
from ..codec.encode import encode
from ..codec.errors import INPUT
from ..contract import RuntimeSettings
from ..device.device import inference_mode
from ..request import Request
from ..torchserve.streaming import drain, drain_async, is_stream, opened_stream
from .batching import RequestQueue
from .event_loop import EventLoop
from .hooks import BoundHook, Hooks, Item
from .model import Model
from .predictor import Predictor

_Step = Callable[[Item, Callable[[Item], None]], None]
"""One of a pipeline's steps for one request; calls the second argument when it is done, on any thread."""


class Pipeline:
    """Takes requests through decode, preprocess, predict, postprocess and encode.

    Args:
        model: Handles failures, sends chunks and records how long each stage took.
        convert: Turns a request's data into what the first hook's annotation asks for, and raises what `failure_of`
            accepts for the hook `INPUT`; None where there is no such annotation.
        batch_size: The most requests that come at once.

    Attributes:
        contexts: Makes the contexts of requests.
        hooks: What is called; may be replaced while no request is being answered.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        model: Model,
        hooks: Hooks,
        predictor: Predictor,
        *,
        convert: Callable[[Any], Any] | None,
        batch_size: int,
    ) -> None:
        self._settings = settings
        self.hooks = hooks
        self._predictor = predictor
        self._convert = convert
        self._streaming = model.streaming
        self._recorder = model.recording.recorder
        self._batch_size = batch_size
        self.fail = model.failures.fail
        self._threads: ThreadPoolExecutor | None = None
        self._loop = model.loop
        self.contexts = model.contexts

    def close(self) -> None:
        """Stop the threads. No request may be in progress."""
        if self._threads is not None:
            self._threads.shutdown()

    def forked(self) -> Pipeline:
        """Return a copy for a process forked from this one: threads do not survive a fork."""
        own = copy.copy(self)
        own._threads, own._loop = None, EventLoop()
        own._loop.enter_inference_mode()
        own._recorder = None  # its spans would never be written
        return own

    def run(self, items: Sequence[Item]) -> None:
        """Answer a batch: each item ends with its `reply` or its `failure`.

        A single request runs in this thread, from decode to encode. Of several, each is prepared and answered in a
        thread of its own (or on the event loop), while this thread predicts those that are ready.
        """
        if len(items) == 1:
            self.preprocess(items)
            self.predict(items)
            self.postprocess(items)
            return
        finished: queue.SimpleQueue[Item] = queue.SimpleQueue()
        threads = self._threads = self._threads or ThreadPoolExecutor(self._batch_size, thread_name_prefix="handlergen")
        last = len(self.hooks) - 1

        def predicted(item: Item) -> None:
            if item.failure is not None:
                finished.put(item)
            elif item.model_index == last:
                threads.submit(self._run_step, self._finish, item, finished.put)
            else:
                threads.submit(self._run_step, self._advance, item, requests.put)

        requests = RequestQueue(len(items), last, predicted)
        for item in items:
            threads.submit(self._run_step, self._prepare, item, requests.put)
        self._predictor.predict(requests)
        for _ in items:
            finished.get()

    def preprocess(self, items: Sequence[Item]) -> None:
        """Decode and preprocess in this thread, one after the other; async hooks run concurrently."""
        self._each(items, self._prepare)

    def predict(self, items: Sequence[Item]) -> None:
        """Predict for every item that has not failed; in a flow, with the hooks between its models."""
        for index in range(len(self.hooks)):
            if index:
                self._each([item for item in items if item.failure is None], self._advance)
            requests = RequestQueue(len(items), index, lambda _item: None)
            for item in items:
                requests.put(item)
            self._predictor.predict(requests)

    def postprocess(self, items: Sequence[Item]) -> None:
        """Postprocess and encode what has not failed in this thread; async hooks run concurrently."""
        with inference_mode():  # once for all of them
            self._each([item for item in items if item.failure is None], self._finish)

    def _run_step(self, step: _Step, item: Item, then: Callable[[Item], None]) -> None:
        """Run a step in a thread. Whatever it raises fails the request: the batch waits for `then`."""
        try:
            step(item, then)
        except BaseException as error:
            self.fail(item, error, "handle")
            then(item)

    def _each(self, items: Sequence[Item], step: _Step) -> None:
        done: queue.SimpleQueue[Item] = queue.SimpleQueue()  # the cheapest signal there is
        for item in items:
            step(item, done.put)
        for _ in items:
            done.get()

    def _prepare(self, item: Item, then: Callable[[Item], None]) -> None:
        item.context = self.contexts.new()
        start = time.monotonic_ns()
        # A part of a KServe request has been decoded already, and the file of an offline row could not be read.
        if item.files is None and item.failure is None:
            try:
                if is_compressed(item.properties):
                    item.entry = decompressed(item.entry, item.properties)
                decoded = decode(item.entry, item.properties)
                item.data, item.files = decoded.data, decoded.files
            except BaseException as error:
                self.fail(item, error, "decode")
        if self._convert is not None and item.failure is None:
            try:
                item.data = item.context.run(self._convert, item.data)
            except BaseException as error:
                self.fail(item, error, INPUT)
        self._record("decode", item, start)
        self._make_ready(item, item.data, then)

    def _make_ready(self, item: Item, value: Any, then: Callable[[Item], None]) -> None:
        """Preprocess for the item's next model; the item is then ready for the device."""

        def ready(inputs: Any) -> None:
            item.inputs = inputs
            item.ready_ns = time.monotonic_ns()
            then(item)

        item.inputs = value
        self._call(self.hooks[item.model_index].preprocess, item, value, "preprocess", ready)

    def _advance(self, item: Item, then: Callable[[Item], None]) -> None:
        """Take a request of a flow from one model to the next, outside the lock."""

        def answered(value: Any) -> None:
            item.model_index += 1
            self._make_ready(item, value, then)

        with inference_mode():
            self._call(self.hooks[item.model_index].postprocess, item, item.outputs, "postprocess", answered)

    def _finish(self, item: Item, then: Callable[[Item], None]) -> None:
        hook = self.hooks[-1].postprocess
        if hook is None:
            self._encode(item, item.outputs, then)
            return
        # predict's outputs are inference tensors, which only inference mode lets a hook change in place.
        with inference_mode():
            self._call(hook, item, item.outputs, "postprocess", lambda value: self._encode(item, value, then))

    def _encode(self, item: Item, value: Any, then: Callable[[Item], None]) -> None:
        if item.failure is None and is_stream(value):
            self._stream(item, value, then)
            return
        start = time.monotonic_ns()
        if item.failure is None:
            try:
                if item.wrap is not None:
                    value = item.wrap(value)
                item.reply = encode(value, nan=self._settings.nan, limit=self._settings.max_response_bytes)
            except BaseException as error:
                self.fail(item, error, "encode")
        self._record("encode", item, start)
        then(item)

    def _stream(self, item: Item, value: Any, then: Callable[[Item], None]) -> None:
        """Send the chunks of what postprocess returned, outside the lock."""
        try:
            stream, head = opened_stream(value)
        except BaseException as error:
            self.fail(item, error, "encode")
            self._encode(item, None, then)
            return
        chunks = self._streaming.chunks(item, head)

        def ended(_nothing: Any, error: BaseException | None) -> None:
            if error is not None:
                self.fail(item, error, "postprocess")
            self._encode(item, None if error is not None else chunks.answer(), then)

        if isinstance(stream, AsyncGenerator):
            self._loop.submit(drain_async(stream, chunks.put, self._streaming.limit_s), item.context, ended)
            return
        try:
            item.context.run(drain, stream, chunks.put, self._streaming.limit_s)
        except BaseException as error:
            ended(None, error)
        else:
            ended(None, None)

    def _call(
        self, hook: BoundHook | None, item: Item, unchanged: Any, stage: str, then: Callable[[Any], None]
    ) -> None:
        """Call a hook and continue with what it returns, on this thread, or on the event loop if the hook is async."""
        if item.failure is not None or hook is None:
            then(unchanged)
            return
        start = time.monotonic_ns()

        def returned(value: Any, error: BaseException | None) -> None:
            self._record(stage, item, start)
            if error is not None:
                self.fail(item, error, stage)
            then(value)

        try:
            value = item.context.run(hook.call, item)
        except BaseException as error:
            returned(None, error)
            return
        if type(value) is CoroutineType:
            self._loop.submit(value, item.context, returned)
        else:
            returned(value, None)

    def _record(self, stage: str, item: Item, start_ns: int) -> None:
        if self._recorder is not None:
            self._recorder(stage, item.request.full_id, start_ns, time.monotonic_ns())


def open_items(
    data: Sequence[Mapping[str, Any]], properties: Sequence[Mapping[str, Any]], torchserve_ids: Sequence[str]
) -> list[Item]:
    """Return one item for each request.

    Args:
        data: A mapping for each request: `{"body": ...}`, or a value for each part of a form.
        properties: The request's headers and its parts' content types.
    """
    return [
        Item(index, entry, headers, Request(headers, torchserve_id))
        for index, (entry, headers, torchserve_id) in enumerate(zip(data, properties, torchserve_ids))
    ]
