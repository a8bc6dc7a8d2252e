"""Answers that are sent chunk by chunk while they are made.

How TorchServe 0.12 streams (read in its jar and in ts/handler_utils/utils.py, and seen to happen):

- A message with the header `ts_stream_next: true` sends a chunk and lets the batch go on; REST clients get it
  in a chunked response (RestJob.responseInference), gRPC ones as a part of StreamPredictions (GRPCJob.response).
  It names its requests, so that one request of a batch can have a chunk of its own. A batch ends with the first
  message in which no request has `true` (BatchAggregator.sendResponse): the end of a stream therefore travels
  with the answers of its whole batch.
- `responseTimeout` counts from message to message: a stream may last longer, a chunk may not.
- Nothing tells a worker that a client has gone; the frontend drops what it can no longer send.
- Nothing tells a worker whether a gRPC request came by Predictions or by StreamPredictions, and a second message
  for the former throws in the frontend, which then ends the worker. So a gRPC request streams only if its input
  has the entry `ts_stream_next`; otherwise it gets the chunks together, in one message, by either call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Protocol

from ..codec.content import JSON, OCTETS, STREAM_WISH, TEXT
from ..codec.errors import Failure
from ..codec.json import dump
from ..pipeline.hooks import Item

STREAMS = frozenset((GeneratorType, AsyncGeneratorType))
"""Types of what a hook returns when its answer is to be streamed."""

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

_UNWANTED = frozenset((b"", b"false", b"0", b"no"))


class StreamTimeout(Exception):
    """A chunk took longer than `predict_timeout_s`."""

    status_code = 504

    def __init__(self, limit_s: float) -> None:
        self.detail = f"The model took longer than {limit_s:g} s for a part of its answer"
        super().__init__(self.detail)


class ConsumerGone(Exception):
    """Nobody takes the chunks any more; whatever makes them is closed. No failure of the model's: not logged."""

    status_code = 499
    detail = "The client has gone"


class StreamAnswerError(Exception):
    """A hook returned a generator where a value is needed."""


class Outlet(Protocol):
    """Where the chunks of a batch go."""

    def send(self, item: Item, body: bytes, content_type: str) -> None:
        """Send one chunk of one request's answer; from any thread.

        Raises:
            ConsumerGone: Nobody takes it.
        """

    def break_off(self, failure: Failure) -> None:
        """End the answer of a batch's only request midway.

        Raises:
            Exception: What TorchServe takes for a failed prediction.
        """


class TorchServeOutlet:
    """Sends chunks through the worker's connection to the frontend.

    Args:
        context: TorchServe's, of this batch.
        begin: Called before the first chunk of an answer is sent.
    """

    def __init__(self, context: Any, begin: Callable[[Item], None]) -> None:
        self._context = context
        self._begin = begin
        self._one_at_a_time = threading.Lock()  # a postprocess that streams does so beside others'

    def send(self, item: Item, body: bytes, content_type: str) -> None:
        from ts.handler_utils.utils import send_intermediate_predict_response

        with self._one_at_a_time:
            if not item.sent:
                self._begin(item)
                self._context.set_response_content_type(item.index, content_type)
            try:
                send_intermediate_predict_response(
                    {item.index: body}, {item.index: item.request.id}, "chunk", 200, self._context
                )
            except OSError as error:  # the frontend has closed the connection
                raise ConsumerGone from error

    def break_off(self, failure: Failure) -> None:
        """The frontend's error response cannot follow a chunked one that has begun: it closes the connection of a
        REST client before the body has ended (RFC 9112, section 8), and ends a gRPC call with the error."""
        raise_to_torchserve(failure)


def outlet_of(context: Any, begin: Callable[[Item], None]) -> Outlet | None:
    """Where chunks go: the context's own `outlet`, else TorchServe's connection, else nowhere.

    Args:
        context: Of this batch.
        begin: As for `TorchServeOutlet`.
    """
    if hasattr(context, "outlet"):
        own: Outlet | None = context.outlet
        return own
    return TorchServeOutlet(context, begin) if hasattr(context, "cl_socket") else None


def raise_to_torchserve(failure: Failure) -> None:
    """Fail a batch of one as a whole.

    Raises:
        Exception: TorchServe's PredictionException; its log entry is left out, the user's traceback stands there.
    """
    try:
        from ts.utils.util import PredictionException
    except ImportError:  # no TorchServe in this process: nobody to raise it to
        return
    error = PredictionException(failure.message, failure.status)
    error.logged_by_handlergen = True
    raise error


class Chunks:
    """Takes one request's chunks: sends each, or keeps them for one answer.

    What a chunk is sent as: text as UTF-8, bytes as they are, anything else as a line of JSON.

    Args:
        item: The request. Its outlet is where chunks go; without one, or when its client wants one value, they
            are kept.
        nan: As for `encode`.
        limit: The most bytes that the server sends in one message; longer chunks are sent in pieces.
    """

    def __init__(self, item: Item, *, nan: str, limit: int) -> None:
        self._item = item
        self._nan = nan
        self._limit = limit
        self._outlet: Outlet | None = item.outlet if wants_chunks(item) else None
        self._kept: list[Any] = []
        self._content_type = OCTETS

    def put(self, chunk: Any) -> None:
        """Take the next chunk.

        Raises:
            EncodeError: It cannot be sent.
            ConsumerGone: Nobody takes it.
        """
        if self._outlet is None:
            self._kept.append(chunk)
            return
        body, content_type = self._encoded(chunk)
        if not self._item.sent:
            self._content_type = content_type
        for start in range(0, len(body), self._limit):
            self._outlet.send(self._item, body[start : start + self._limit], self._content_type)
            self._item.sent = True

    def answer(self) -> Any:
        """What is left to be answered after the last chunk, for `encode`."""
        if self._outlet is None:
            return gathered(self._kept)
        return Sent(self._content_type)

    def _encoded(self, chunk: Any) -> tuple[bytes, str]:
        if isinstance(chunk, str):
            wants_events = SSE in self._item.request.headers.get("accept", "")
            return chunk.encode("utf-8", "replace"), SSE if wants_events else TEXT
        if isinstance(chunk, bytes | bytearray | memoryview):
            return bytes(chunk), OCTETS
        return dump(chunk, self._nan) + b"\n", NDJSON


class Sent:
    """Stands for an answer whose chunks have all gone out; `encode` reads it as an empty response."""

    status_code = 200
    body = b""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type


def wants_chunks(item: Item) -> bool:
    """Does its client take chunks, or one value?

    Over REST one value is what `Accept: application/json` asks for; over gRPC it is the default, see above.
    """
    if item.outlet is None:
        return False
    if item.request.is_grpc:
        wish = item.entry.get(STREAM_WISH, b"")
        return (
            bytes(wish).strip().lower() not in _UNWANTED
            if isinstance(wish, bytes | bytearray)
            else bool(wish)
        )
    accepted = item.request.headers.get("accept", "").lower()
    return JSON not in accepted or SSE in accepted


def gathered(chunks: list[Any]) -> Any:
    """The chunks as one value: texts (or bytes) joined, others as a list.

    Bytes that are UTF-8 become text, which JSON can hold.
    """
    if chunks and all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    if chunks and all(isinstance(chunk, bytes | bytearray | memoryview) for chunk in chunks):
        joined = b"".join(chunks)
        try:
            return joined.decode()
        except UnicodeDecodeError:
            return joined
    return chunks


def drain(stream: Generator[Any, None, None], put: Callable[[Any], None], limit_s: float | None) -> None:
    """Take a generator's chunks to its end, in this thread; it is closed however this ends.

    Args:
        stream: The hook's.
        put: Gets each chunk.
        limit_s: How long a chunk may take. A thread cannot be interrupted in the hook's own code, so this ends
            the stream when the late chunk is there; one that never comes ends with TorchServe's response timeout.

    Raises:
        StreamTimeout: A chunk took too long.
        Exception: What the generator or `put` raises.
    """
    try:
        began = time.monotonic()
        for chunk in stream:
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise StreamTimeout(limit_s)
            put(chunk)
            began = time.monotonic()
    finally:
        stream.close()


async def drain_async(
    stream: AsyncGenerator[Any, None], put: Callable[[Any], None], limit_s: float | None
) -> None:
    """`drain` for an async generator; a chunk that takes too long is cancelled.

    All of it runs in one task, as a generator needs that opens a timeout, task group or HTTP stream around its
    `yield` (`asyncio.wait_for` would make a task a chunk).
    """
    task = asyncio.current_task()
    assert task is not None
    clock = _Deadline(task, limit_s)
    try:
        while True:
            clock.start()
            try:
                chunk = await stream.__anext__()
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if clock.expired and limit_s is not None:
                    raise StreamTimeout(limit_s) from None
                raise
            finally:
                clock.stop()
            put(chunk)
    finally:
        await stream.aclose()


class _Deadline:
    """Cancels a task that takes too long between `start` and `stop`."""

    def __init__(self, task: asyncio.Task[Any], limit_s: float | None) -> None:
        self._task = task
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None
        self.expired = False

    def start(self) -> None:
        if self._limit_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._expire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()


class Streaming:
    """How a model's answers are streamed.

    Args:
        nan, limit: As for `Chunks`.
        limit_s: How long a chunk may take, in seconds; None for as long as TorchServe waits.
    """

    def __init__(self, *, nan: str, limit: int, limit_s: float | None) -> None:
        self._nan = nan
        self._limit = limit
        self.limit_s = limit_s

    def chunks(self, item: Item) -> Chunks:
        """Where the chunks of this request's answer go."""
        return Chunks(item, nan=self._nan, limit=self._limit)
