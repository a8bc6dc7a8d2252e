"""The messages between workers and a predictor process: their kinds and their values.

`Prepared`, `Predicted`, `RawRequest` and `RawAnswer`, of which each request has two, are sent as plain tuples: pickle
looks up the class of a named tuple at both ends (5 µs a request, and a multiple of it after a pause).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..codec.errors import Failure
from .transport import FIRST_KIND

# From a worker.
HELLO = FIRST_KIND
"""The worker's process id."""
PREDICT, EXPLAIN, REQUEST, DESCRIBE, HEALTH, CANCEL = range(FIRST_KIND + 1, FIRST_KIND + 7)
# From the predictor process.
WELCOME, REFUSED, ANSWER, CHUNK = range(FIRST_KIND + 16, FIRST_KIND + 20)
UNSENDABLE = FIRST_KIND + 20
"""In place of an ANSWER: a value of the request or of its answer cannot be sent; the text says which, and why."""
LOG, METRICS = FIRST_KIND + 21, FIRST_KIND + 22
"""A log record for TorchServe's model log; lines of metrics for TorchServe's frontend, which reads them from a worker's
standard output."""


class Welcome(NamedTuple):
    """The model is loaded.

    Attributes:
        connection: The number of the connection; the status file names requests by it and by their own number.
        pid: The predictor process.
        device_key: The device, as in the key of its lock.
    """

    connection: int
    pid: int
    device_key: str


class Refused(NamedTuple):
    """The model cannot be loaded.

    Attributes:
        reason: One line: the exception.
        traceback: The user's own.
    """

    reason: str
    traceback: str


class LogEntry(NamedTuple):
    """A log record.

    Attributes:
        logger: The logger's name.
        level: As in `logging`.
        text: The message, with the traceback if there is one.
    """

    logger: str
    level: int
    text: str


class Prepared(NamedTuple):
    """PREDICT and EXPLAIN: a request that a worker has preprocessed.

    Attributes:
        stage: The number of the flow's model that is to predict; 0 in all other forms.
        inputs: What `preprocess` returned.
        ready_ns: When it returned it, on the monotonic clock that all processes share.
        request_id, properties, metadata: Of the request.
        data, files, entry, http: Of the item, where a hook reads them.
        outlet: Whether chunks of the answer can be sent to the client.
        wish: What a gRPC client asks for about chunks; None when it does not say.
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
    """The ANSWER to PREDICT and EXPLAIN.

    Attributes:
        outputs: What `predict` returned.
        failure: Why there are none.
        metadata: The request's, as the hook left it; None when the hook never asked for it.
        sent: Chunks have been sent.
        state: `HttpRequest.state`, as the hook left it; None when no hook there asks for the `Request`.
    """

    outputs: Any
    failure: Failure | None
    metadata: dict[str, Any] | None
    sent: bool
    state: Any


class RawRequest(NamedTuple):
    """REQUEST: a request as TorchServe handed it over; the predictor process runs all of its stages.

    Attributes:
        entry, properties, request_id: As TorchServe has them.
        outlet: Whether chunks of the answer can be sent to the client.
    """

    entry: Mapping[str, Any]
    properties: Mapping[str, Any]
    request_id: str
    outlet: bool


class RawAnswer(NamedTuple):
    """The ANSWER to REQUEST: the item's `reply` or `failure`, and whether chunks have been sent."""

    reply: Any
    failure: Failure | None
    sent: bool
