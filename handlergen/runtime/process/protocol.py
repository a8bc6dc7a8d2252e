"""What workers and a predictor process say to each other; kinds of messages and their values.

`Prepared`, `Predicted`, `Raw` and `Answered`, of which each request has two, cross as plain tuples: pickle looks up the
class of a named one at both ends (5 µs a request, and a multiple of it after a pause).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..failures import Failure
from .channel import FIRST_KIND

# From a worker.
HELLO = FIRST_KIND
PREDICT, EXPLAIN, REQUEST, DESCRIBE, HEALTH, CANCEL = range(FIRST_KIND + 1, FIRST_KIND + 7)
# From the predictor process.
WELCOME, REFUSED, ANSWER, CHUNK = range(FIRST_KIND + 16, FIRST_KIND + 20)

IN_QUEUE = frozenset((PREDICT, EXPLAIN))
"""What waits for the device as it is."""


class Welcome(NamedTuple):
    """The model is loaded. (REFUSED has a text instead: why it cannot be.)

    Attributes:
        peer: The connection's number; the page names requests by it and their own.
        pid: The predictor process.
        device, device_key: As in describe.
        load_s: How long the model took to load, in seconds.
        relay: Why the worker is to send whole requests, although it could prepare them; empty when it is not.
    """

    peer: int
    pid: int
    device: str
    device_key: str
    load_s: float
    relay: str


class Prepared(NamedTuple):
    """PREDICT and EXPLAIN: a request that a worker has preprocessed.

    Attributes:
        stage: Which of the model's stages comes.
        inputs: What `preprocess` returned.
        ready_ns: When, on the monotonic clock that all processes share.
        request_id, properties, metadata: Of the request.
        data, files, entry, http: Of the item, where a hook reads them.
        outlet: Whether chunks can reach its client; whether that takes any is only looked up when there are some.
        wish: What a gRPC client says of that; None when it says nothing.
    """

    stage: int
    inputs: Any
    ready_ns: int
    request_id: str
    properties: Mapping[str, Any]
    metadata: dict[str, Any] | None
    data: Any
    files: Any
    entry: Mapping[str, Any] | None
    http: Any
    outlet: bool
    wish: Any


class Predicted(NamedTuple):
    """The ANSWER to those.

    Attributes:
        outputs: What `predict` returned.
        failure: Why there are none.
        metadata: The request's, as the hook left it; None when it never asked for it.
        sent: Chunks have been sent.
        state: `HttpRequest.state`, as the hook left it; None when no hook there asks for the `Request`.
    """

    outputs: Any
    failure: Failure | None
    metadata: dict[str, Any] | None
    sent: bool
    state: Any


class Raw(NamedTuple):
    """REQUEST: a request as TorchServe handed it over; the predictor process does all of it.

    Attributes:
        entry, properties, request_id: As TorchServe has them.
        outlet: Whether chunks can reach its client.
    """

    entry: Mapping[str, Any]
    properties: Mapping[str, Any]
    request_id: str
    outlet: bool


class Answered(NamedTuple):
    """The ANSWER to that: the item's `reply` or `failure`, and whether chunks have been sent."""

    reply: Any
    failure: Failure | None
    sent: bool
