"""One request of a worker's to the predictor process, and what its item gets of the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..failures import Failure
from ..hooks import Item
from .protocol import Answered, Predicted
from .start import Unavailable

_Answer = TypeVar("_Answer", Predicted, Answered)


class PredictorDied(Exception):
    """The predictor process died while it had this request."""


class PredictTimeout(Exception):
    """It was killed, because predict took longer than `predict_timeout_s`."""

    status_code = 504

    def __init__(self, limit_s: float) -> None:
        self.detail = f"The model took longer than {limit_s:g} s"
        super().__init__(self.detail)


class CannotCross(Exception):
    """A value cannot be pickled."""


class Call:
    """One request of a worker's to the predictor process.

    Args:
        kind, value: Of the message.
        on_chunk: Called with the value of each CHUNK; what it raises cancels the call and becomes its error.
        on_done: Called when the call is done, on the thread that received the answer.
        ready_ns: Since when it may be waiting for the device; None for a call that does not.
        within_s: How long such a call may take, in seconds.

    Attributes:
        begun: A part of its answer is out: it cannot be done again.
        done: It has an answer or an error.
        answer: The value of the ANSWER.
        error: Why there is none.
    """

    __slots__ = (
        "answer",
        "begun",
        "deadline",
        "done",
        "error",
        "kind",
        "number",
        "on_chunk",
        "on_done",
        "sendings",
        "value",
        "waiting_ns",
    )

    def __init__(
        self,
        kind: int,
        value: Any = None,
        *,
        on_chunk: Callable[[Any], None] | None = None,
        on_done: Callable[[Call], None] | None = None,
        ready_ns: int | None = None,
        within_s: float = 10.0,
    ) -> None:
        self.kind = kind
        self.value = value
        self.on_chunk = on_chunk
        self.on_done = on_done
        self.waiting_ns = ready_ns
        self.deadline = time.monotonic() + within_s
        self.number = 0
        self.sendings = 0
        self.begun = False
        self.done = False
        self.answer: Any = None
        self.error: BaseException | None = None

    def finish(self, answer: Any, error: BaseException | None = None) -> None:
        """Settle it; once."""
        if self.done:
            return
        self.answer, self.error = answer, error
        self.value = None
        self.done = True
        if self.on_done is not None:
            self.on_done(self)


def call_for(
    item: Item, kind: int, value: Any, *, ready_ns: int, on_done: Callable[[Call], None] | None = None
) -> Call:
    """The call of a client's request: chunks of its answer go out at once.

    Args:
        item: The request.
        kind, value: Of the message.
        ready_ns: Since when it may be waiting for the device.
        on_done: As for `Call`.
    """

    def chunk(value: tuple[bytes, str]) -> None:
        item.outlet.send(item, *value)
        item.sent = True

    return Call(kind, value, on_chunk=chunk, on_done=on_done, ready_ns=ready_ns)


def settle(
    item: Item, call: Call, kind: type[_Answer], fail: Callable[[Item, BaseException, str], None]
) -> _Answer | None:
    """Tell an item how its call went: its failure, and whether chunks are out.

    Args:
        kind: Of the answer's value.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.

    Returns:
        The answer, for what else is in it; None when there is none.
    """
    error = call.error
    if error is None:
        answer = kind(*call.answer)
        item.failure = answer.failure
        item.sent = item.sent or answer.sent
        return answer
    if isinstance(error, Unavailable):
        item.failure = _unavailable(error)
    else:
        fail(item, error, "predict")
    return None


def _unavailable(error: Unavailable) -> Failure:
    """What a client is told while the model cannot be loaded: 503, and when to try again."""
    return Failure(
        503,
        "ModelUnavailable",
        f"The model is not available: {error}",
        {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))},
    )
