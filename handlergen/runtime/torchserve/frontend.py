"""TorchServe as a worker sees it: batches in, answers and chunks out, the connection, the lines printed per batch."""

from __future__ import annotations

import importlib
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import FrameType
from typing import Any

from ..codec.content import JSON, NO_HEADERS, STREAM_WISH, reason_phrase
from ..codec.errors import Failure
from ..codec.kserve import KSERVE_BODY, looks_like_kserve
from ..descriptors import closed_in_children
from ..diagnostics import logger
from ..pipeline.backend import is_describe
from ..pipeline.hooks import Item
from ..pipeline.pipeline import open_items
from ..request import REQUEST_ID, Request
from ..server_process import torchserve_version
from ..telemetry.recording import Counts
from .streaming import ConsumerGone, Outlet

CLIENT_REQUEST_ID = "x-client-request-id"
"""The answer's header that repeats the `x-request-id` of its request."""


def bypass_envelope() -> bool:
    """Make TorchServe's service envelope pass requests and answers on unchanged. Call it before user code is imported.

    The envelopes of 0.9 to 0.12 lose requests: those for KServe read the first of a batch only, each gives a batch one
    error, and none can send bytes. Of their modules only the configured one is imported (TsModelLoader.load).

    Returns:
        Whether there is an envelope that wraps requests, which all do but `body`.
    """
    base = sys.modules.get("ts.torch_handler.request_envelope.base")
    envelopes: list[Any] = base.BaseEnvelope.__subclasses__() if base is not None else []
    for envelope in envelopes:
        envelope.parse_input = envelope.format_output = lambda _self, data: data
    return any(not envelope.__module__.endswith(".body") for envelope in envelopes)


def received(data: Sequence[Mapping[str, Any]], context: Any, *, enveloped: bool = False) -> list[Item]:
    """Return an item for each request of TorchServe's batch.

    Args:
        enveloped: Whoever configured the server expects KServe's bodies at any address, and over gRPC: KServe's own
            wrapper of TorchServe sends them to `/predictions` (kserve_wrapper/TorchserveModel.py), as Vertex AI does.
    """
    headers = [processor.get_request_properties() for processor in context.request_processor]
    is_old = () < torchserve_version() < (0, 12)
    entry: Any
    for entry, properties in zip(data, headers):
        if is_old or enveloped:
            is_hidden = is_old and _as_from_newer_versions(entry, properties)
            if (is_hidden or enveloped) and looks_like_kserve(entry, properties):
                properties[KSERVE_BODY] = True
        if REQUEST_ID in entry and Request(properties, "").is_grpc:
            # gRPC's metadata does not reach a worker (InferenceImpl.java). It stays bytes: text would tell of REST.
            properties[REQUEST_ID] = entry.pop(REQUEST_ID)
    return open_items(data, headers, [context.request_ids[index] for index in range(len(data))])


def _as_from_newer_versions(entry: Any, properties: dict[str, Any]) -> bool:
    """Make of a request what TorchServe 0.12 would have passed on, where older versions say less, or say it elsewhere.

    - KServe's addresses: `explain` is set there as under `/predictions`, and nothing tells the two apart. From 0.12 on
      `url_path` is set under the latter (InferenceRequestHandler.handlePredictions), and here at all of them.
    - gRPC: 0.9 and 0.10 set the header `ts_stream_next` of StreamPredictions, the only one over gRPC (Job.java). It
      becomes the entry by which a client of newer versions asks for chunks.

    Returns:
        Whether the address may be KServe's. It is not where the client itself has sent a header `url_path`.
    """
    names = [name for name, value in properties.items() if isinstance(value, str)]
    if names == [STREAM_WISH]:
        del properties[STREAM_WISH]
        entry.setdefault(STREAM_WISH, b"true")
    elif "explain" in names and "url_path" not in names:
        properties["url_path"] = ""
        return True
    return False


def answered(items: Sequence[Item], context: Any, counts: Counts) -> list[bytes]:
    """Return a body for each request, in order; empty for one whose chunks have been sent.

    Args:
        context: TorchServe's; status, content type and headers of each request are set there.
        counts: Counts the answers, except descriptions.

    Raises:
        Exception: TorchServe's, for a failed single gRPC request, whose status it takes from an exception only, and
            for a single stream that failed midway.
    """
    bodies = []
    for index, item in enumerate(items):
        failure = item.failure
        if not is_describe(item):
            counts.answered(failure.status if failure is not None else item.reply.status)
        if item.request.is_grpc:
            # StreamPredictions ends only with this; without it the frontend throws and ends the worker.
            context.set_response_header(index, STREAM_WISH, "false")
        if failure is None:
            reply = item.reply
            context.set_response_content_type(index, reply.content_type)
            if reply.status != 200:
                context.set_response_status(reply.status, reason_phrase(reply.status), index)
            headers = reply.headers
            bodies.append(reply.body)
        elif item.sent:
            if len(items) == 1:
                item.outlet.break_off(failure)
            headers = NO_HEADERS  # of a batch no single response can be broken off: the stream just ends
            bodies.append(b"")
        else:
            if len(items) == 1 and item.request.is_grpc:
                raise_to_torchserve(failure)
            context.set_response_content_type(index, JSON)
            context.set_response_status(failure.status, reason_phrase(failure.status), index)
            headers = failure.headers
            bodies.append(failure.body(item.request.id))
        for name, value in (*headers.items(), *_client_id(item)):
            context.set_response_header(index, name, value)
    return bodies


def _client_id(item: Item) -> tuple[tuple[str, str], ...]:
    """Return the header that repeats the client's request id, if it sent one.

    TorchServe writes its own id to `x-request-id`, whatever the worker has set (NettyUtils.sendHttpResponse).
    """
    request = item.request
    return () if request.id == request.torchserve_id else ((CLIENT_REQUEST_ID, request.id),)


@cache
def _sender_of_chunks() -> Callable[..., None]:
    """Return TorchServe's `send_intermediate_predict_response`, which is in another module since 0.10."""
    try:
        module = importlib.import_module("ts.handler_utils.utils")
    except ImportError:
        module = importlib.import_module("ts.protocol.otf_message_handler")
    send: Callable[..., None] = module.send_intermediate_predict_response
    return send


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

    def send(
        self, item: Item, body: bytes, content_type: str, status: int = 200, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        send_intermediate_predict_response = _sender_of_chunks()
        with self._one_at_a_time:
            if not item.sent:
                self._begin(item)
                self._context.set_response_content_type(item.index, content_type)
                if status != 200:
                    self._context.set_response_status(status, reason_phrase(status), item.index)
                for name, value in (*headers.items(), *_client_id(item)):
                    self._context.set_response_header(item.index, name, value)
            try:
                send_intermediate_predict_response(
                    {item.index: body}, {item.index: item.request.torchserve_id}, "chunk", 200, self._context
                )
            except OSError as error:  # the frontend has closed the connection
                raise ConsumerGone from error

    def break_off(self, failure: Failure) -> None:
        """The frontend's error response cannot follow a chunked one that has begun: it closes the connection of a
        REST client before the body has ended (RFC 9112, section 8), and ends a gRPC call with the error."""
        raise_to_torchserve(failure)


def outlet_of(context: Any, begin: Callable[[Item], None]) -> Outlet | None:
    """Return where chunks go: the context's own `outlet`, else TorchServe's connection, else None."""
    if hasattr(context, "outlet"):
        own: Outlet | None = context.outlet
        return own
    return TorchServeOutlet(context, begin) if hasattr(context, "cl_socket") else None


def raise_to_torchserve(failure: Failure) -> None:
    """Fail a batch of one as a whole.

    Raises:
        Exception: TorchServe's PredictionException. TorchServe does not log it: the log has the user's traceback.
    """
    try:
        from ts.utils.util import PredictionException
    except ImportError:  # no TorchServe in this process: nobody to raise it to
        return
    error = PredictionException(failure.message, failure.status)
    error.logged_by_handlergen = True
    raise error


def keep_from_children() -> Callable[[], bool] | None:
    """Close TorchServe's connection in every forked child of this process; call it below TorchServe's `load_model`.

    TorchServe notices that a worker has died when the connection ends. A child that inherits the connection keeps the
    worker's request waiting until `response_timeout_s`, and the next worker from being started. TorchServe passes the
    connection on only when the model is loaded, and the model may fork a pool of processes before
    (ts/model_service_worker.py, `handle_connection`, where it is the variable `cl_socket`).

    Returns:
        A function that returns whether TorchServe has closed the connection. None, and a warning in the log, in an
        unknown version of TorchServe that keeps it elsewhere.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        connection = frame.f_locals.get("cl_socket")
        if isinstance(connection, socket.socket):
            closed_in_children(connection)
            return partial(_hung_up, connection.fileno())
        frame = frame.f_back
    logger().warning(
        "TorchServe's connection to this worker was not found: this version of TorchServe keeps it elsewhere. A child "
        "process that a hook forks can keep a dead worker's requests waiting, and a request that TorchServe re-queues "
        "while stopping a worker can be answered twice"
    )
    return None


_GONE = select.POLLHUP | getattr(select, "POLLRDHUP", 0)


def _hung_up(descriptor: int) -> bool:
    """Return whether the peer has closed a connection."""
    poll = select.poll()
    poll.register(descriptor, _GONE)
    return bool(poll.poll(0))


_BATCH_LINE = "Backend received inference at: %d"  # ts/protocol/otf_message_handler.py, retrieve_msg
_GAUGES = ("HandlerTime", "PredictionTime")
"""What TorchServe's worker prints after each batch (ts/service.py, ts/torch_handler/base_handler.py)."""
_EVERY_S = 1.0


def leave_out_batch_lines(metrics: Any) -> None:
    """Drop the log line that TorchServe's worker prints for each batch, and print its gauges once a second.

    Each line is written, read by the frontend, matched and logged: a tenth of the cost of a request to a model that
    does nothing. The frontend's log configuration would save only the logging. Versions of TorchServe with another
    line or other gauges print them.

    Args:
        metrics: TorchServe's `context.metrics`; None if there is none.
    """
    logging.getLogger().addFilter(_is_no_batch_line)  # adding it again has no effect
    if metrics is not None and not hasattr(metrics.add_time, "once_a_second"):
        metrics.add_time = _once_a_second(metrics.add_time)


def _is_no_batch_line(record: logging.LogRecord) -> bool:
    return record.msg != _BATCH_LINE or record.module != "otf_message_handler"


def _once_a_second(add_time: Callable[..., object]) -> Callable[..., None]:
    """Wrap `context.metrics.add_time`: TorchServe's gauges of the last batch pass once a second, others always."""
    next_at = dict.fromkeys(_GAUGES, 0.0)

    def limited(name: str, *arguments: Any, **options: Any) -> None:
        if name in next_at:
            now = time.monotonic()
            if now < next_at[name]:
                return
            next_at[name] = now + _EVERY_S
        add_time(name, *arguments, **options)

    limited.once_a_second = True  # type: ignore[attr-defined]
    return limited
