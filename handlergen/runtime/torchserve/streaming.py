"""Streaming: answers sent chunk by chunk while they are made.

How TorchServe 0.12 streams (read in its jar and in ts/handler_utils/utils.py, and seen to happen):

- A message with the header `ts_stream_next: true` sends a chunk and lets the batch go on; REST clients get it
  in a chunked response (RestJob.responseInference), gRPC ones as a part of StreamPredictions (GRPCJob.response).
  It names its requests, so that one request of a batch can have a chunk of its own. A batch ends with the first
  message in which no request has `true` (BatchAggregator.sendResponse): the end of a stream therefore travels
  with the answers of its whole batch.
- `responseTimeout` counts from message to message: a stream may last longer, a chunk may not.
- A worker is not informed that a client has gone; the frontend drops chunks that it can no longer send.
- A worker cannot see whether a gRPC request came by Predictions or by StreamPredictions, and a second message for
  the former throws in the frontend, which then ends the worker. So a gRPC request streams only if its input has the
  entry `ts_stream_next`; otherwise it gets all chunks in one message, by either call. (0.9 and 0.10 say so in a header;
  `frontend.received` makes an entry of it.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import AsyncGeneratorType, GeneratorType, SimpleNamespace
from typing import Any, Protocol

from ..codec.content import EVENT_STREAM, JSON, NDJSON, NO_HEADERS, OCTETS, STREAM_WISH, TEXT
from ..codec.encode import Encoded, dump, response_head
from ..codec.errors import EncodeError, Failure
from ..pipeline.hooks import Item

STREAMS = frozenset((GeneratorType, AsyncGeneratorType))
"""The types of an answer that is streamed; see also `is_stream`."""

_NEVER = frozenset((dict, list, str, bytes, int, float, bool, tuple, type(None)))
_PIECE = 1 << 18

_UNWANTED = frozenset((b"", b"false", b"0", b"no"))


class StreamTimeout(Exception):
    """A chunk took longer than `predict_timeout_s`."""

    status_code = 504

    def __init__(self, limit_s: float) -> None:
        self.detail = f"The model took longer than {limit_s:g} s for a part of its answer"
        super().__init__(self.detail)


class ConsumerGone(Exception):
    """Nobody receives the chunks any more; their generator is closed. Not an error of the model: not logged."""

    status_code = 499
    detail = "The client has gone"


class StreamAnswerError(Exception):
    """A hook returned a generator where a value is needed."""


class Outlet(Protocol):
    """Where the chunks of a batch go."""

    def send(
        self, item: Item, body: bytes, content_type: str, status: int = 200, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Send one chunk of one request's answer, from any thread; raise ConsumerGone if nobody receives it.

        Content type, status and headers count with the first chunk.
        """

    def break_off(self, failure: Failure) -> None:
        """End the answer of a batch's only request midway; raises TorchServe's PredictionException."""


class Collected:
    """An outlet for one request, that keeps the chunks joined.

    Attributes:
        body, content_type: Of the chunks; empty without any.
        failure: Why the stream ended early, if it did.
    """

    def __init__(self) -> None:
        self.body, self.content_type = b"", ""
        self.failure: Failure | None = None

    def send(self, _item: Item, body: bytes, content_type: str, *_head: Any) -> None:
        self.body += body
        self.content_type = self.content_type or content_type

    def break_off(self, failure: Failure) -> None:
        self.failure = failure


class Chunks:
    """Sends one request's chunks, or collects them for one answer.

    Text is sent as UTF-8, bytes as they are, anything else as a line of JSON.

    Args:
        item: The request, whose outlet sends chunks; they are collected without one, or if the client wants one value.
        nan: As for `encode`.
        limit: The most bytes that the server sends in one message; longer chunks are sent in pieces.
        head: Of a response that says itself what it is; its chunks are text and bytes.
    """

    def __init__(self, item: Item, *, nan: str, limit: int, head: Encoded | None = None) -> None:
        self._item = item
        self._nan = nan
        self._limit = limit
        self._head = head
        wanted = wants_chunks(item) or (head is not None and not item.request.is_grpc)
        self._outlet: Outlet | None = item.outlet if wanted else None
        self._kept: list[Any] = []
        self._content_type = (head.content_type if head is not None else "") or OCTETS

    def put(self, chunk: Any) -> None:
        """Take the next chunk.

        Raises:
            EncodeError: It cannot be sent.
            ConsumerGone: Nobody receives the chunk.
        """
        if self._outlet is None and self._head is None:
            self._kept.append(chunk)
            return
        body, content_type = self._encoded(chunk)
        if not self._item.sent and not self._kept:
            self._content_type = content_type
        if self._outlet is None:
            self._kept.append(body)
            return
        for start in range(0, len(body), self._limit):
            piece, head = body[start : start + self._limit], self._head
            if head is None:
                self._outlet.send(self._item, piece, self._content_type)
            else:
                self._outlet.send(self._item, piece, self._content_type, head.status, head.headers)
            self._item.sent = True

    def answer(self) -> Any:
        """Return the value to encode after the last chunk."""
        head = self._head
        if head is None and self._outlet is None:
            return gathered(self._kept)
        if head is None:  # everything has been sent: an empty response
            return SimpleNamespace(status_code=200, body=b"", media_type=self._content_type)
        if self._item.wrap is not None:  # KServe: the value, in an answer of its own
            return gathered(self._kept)
        body = b"".join(self._kept)
        return SimpleNamespace(status_code=head.status, body=body, media_type=self._content_type, headers=head.headers)

    def _encoded(self, chunk: Any) -> tuple[bytes, str]:
        if self._head is not None:
            text = isinstance(chunk, str)
            if not text and not isinstance(chunk, (bytes, bytearray, memoryview)):
                raise EncodeError(f"A streamed response has text and bytes; this one has {type(chunk).__name__}")
            kind = self._head.content_type or (TEXT if text else OCTETS)
            return chunk.encode("utf-8", "replace") if isinstance(chunk, str) else bytes(chunk), kind
        if isinstance(chunk, str):
            wants_events = EVENT_STREAM in self._item.request.headers.get("accept", "")
            return chunk.encode("utf-8", "replace"), EVENT_STREAM if wants_events else TEXT
        if isinstance(chunk, (bytes, bytearray, memoryview)):
            return bytes(chunk), OCTETS
        return dump(chunk, self._nan) + b"\n", NDJSON


def is_stream(value: Any) -> bool:
    """Return whether an answer is sent part by part: a generator, or a streamed response of Starlette's kind.

    Such a response has a `status_code`, and a `body_iterator` or the `path` of a file in place of a `body`.
    """
    kind = type(value)
    if kind in _NEVER or kind in STREAMS:
        return kind in STREAMS
    # An instance may have any attribute by `__getattr__`; a response has a number.
    if type(getattr(value, "status_code", None)) is not int or isinstance(value, type):
        return False
    return hasattr(value, "body_iterator") or (hasattr(value, "path") and not hasattr(value, "body"))


def opened_stream(value: Any) -> tuple[Any, Encoded | None]:
    """Return the generator, or async generator, of what `is_stream`, and the head of a response.

    Raises:
        EncodeError: The response's status or headers cannot be sent.
        OSError: The file that it names cannot be read.
    """
    if type(value) in STREAMS:
        return value, None
    head = response_head(value)
    parts = getattr(value, "body_iterator", None)
    if parts is None:
        return _pieces(Path(value.path)), head
    # Starlette reads a synchronous iterator in threads of its own (iterate_in_threadpool); it belongs in the hook's.
    frame = getattr(parts, "ag_frame", None)
    if frame is not None and frame.f_code.co_name == "iterate_in_threadpool":
        parts = frame.f_locals.get("iterator", parts)
    if type(parts) in STREAMS:
        return parts, head
    return _each_async(parts) if isinstance(parts, AsyncIterable) else (part for part in parts), head


def _pieces(path: Path) -> Generator[bytes, None, None]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


async def _each_async(parts: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async for part in parts:
        yield part


def wants_chunks(item: Item) -> bool:
    """Return whether a request's client wants chunks, or one value.

    Over REST `Accept: application/json` asks for one value; over gRPC that is the default, see above.
    """
    if item.outlet is None:
        return False
    if item.request.is_grpc:
        value = item.entry.get(STREAM_WISH, b"")
        if isinstance(value, (bytes, bytearray)):
            return bytes(value).strip().lower() not in _UNWANTED
        return bool(value)
    accepted = item.request.headers.get("accept", "").lower()
    return JSON not in accepted or EVENT_STREAM in accepted


def gathered(chunks: list[Any]) -> Any:
    """Return the chunks as one value: text or bytes joined, other chunks as a list.

    Bytes that are UTF-8 become text, which JSON can hold.
    """
    if chunks and all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    if chunks and all(isinstance(chunk, (bytes, bytearray, memoryview)) for chunk in chunks):
        joined = b"".join(chunks)
        try:
            return joined.decode()
        except UnicodeDecodeError:
            return joined
    return chunks


def drain(stream: Generator[Any, None, None], put: Callable[[Any], None], limit_s: float | None) -> None:
    """Pass each chunk of a generator to `put`, in this thread; the generator is closed in any case.

    Args:
        limit_s: How long a chunk may take. A thread cannot be interrupted in the hook's own code, so the stream ends
            when the late chunk arrives; without one, TorchServe's response timeout ends it.

    Raises:
        StreamTimeout: A chunk took too long.
        Exception: As the generator or `put` raises.
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


async def drain_async(stream: AsyncGenerator[Any, None], put: Callable[[Any], None], limit_s: float | None) -> None:
    """`drain` for an async generator; a chunk that takes too long is cancelled.

    The generator runs in one task: it may have opened a timeout, task group or HTTP stream around its `yield`
    (`asyncio.wait_for` would make a task for each chunk).
    """
    task: Any = asyncio.current_task()
    loop = asyncio.get_running_loop()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    try:
        while True:
            timer = loop.call_later(limit_s, expire) if limit_s is not None else None
            try:
                chunk = await stream.__anext__()
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if expired and limit_s is not None:
                    raise StreamTimeout(limit_s) from None
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            put(chunk)
    finally:
        await stream.aclose()


@dataclass(frozen=True)
class Streaming:
    """How a model's answers are streamed; `nan` and `limit` as for `Chunks`."""

    nan: str
    limit: int
    limit_s: float | None
    """How long a chunk may take, in seconds; None for as long as TorchServe waits."""

    def chunks(self, item: Item, head: Encoded | None = None) -> Chunks:
        """Return the receiver of the chunks of a request's answer; `head` is that of a response."""
        return Chunks(item, nan=self.nan, limit=self.limit, head=head)
