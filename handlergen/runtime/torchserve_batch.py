"""TorchServe's batch on the way in, and its answers on the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .describe import Counts
from .dispatch import is_describe
from .hooks import Item
from .pipeline import open_items
from .streaming import raise_to_torchserve
from .wire import NO_HEADERS, STREAM_WISH, reason_phrase


def received(data: Sequence[Mapping[str, Any]], context: Any) -> list[Item]:
    """An item a request.

    Args:
        data: TorchServe's batch, a mapping a request.
        context: TorchServe's context.
    """
    ids = context.request_ids
    return open_items(
        data,
        [processor.get_request_properties() for processor in context.request_processor],
        [ids[index] for index in range(len(data))],
    )


def answered(items: Sequence[Item], context: Any, counts: Counts) -> list[bytes]:
    """One body a request, in order; empty for one whose chunks have been sent.

    Args:
        items: Each with its reply or failure.
        context: TorchServe's; gets each request's status, content type and headers.
        counts: Counts the answers, but no descriptions.

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
            context.set_response_content_type(index, "application/json")
            context.set_response_status(failure.status, failure.phrase, index)
            headers = failure.headers
            bodies.append(failure.body(item.request.id))
        for name, value in headers.items():
            context.set_response_header(index, name, value)
    return bodies
