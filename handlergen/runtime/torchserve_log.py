"""What TorchServe's worker prints for each batch and nobody reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

_BATCH_LINE = "Backend received inference at: %d"  # ts/protocol/otf_message_handler.py, retrieve_msg
_GAUGES = ("HandlerTime", "PredictionTime")
"""What TorchServe's worker prints after each batch (ts/service.py, ts/torch_handler/base_handler.py)."""
_EVERY_S = 1.0


def leave_out_batch_lines(metrics: Any) -> None:
    """Stop the lines that TorchServe's worker prints for each batch; all others pass.

    Each line is written, read by the frontend, matched and logged: a tenth of what a request costs that does
    nothing else. Dropping it in the frontend's log configuration saves only the last part of that. A gauge of the last
    batch is as good when it is printed once a second; nobody asks for it more often.

    A TorchServe that words the line or names the gauges otherwise prints them.

    Args:
        metrics: TorchServe's `context.metrics`; None if there is none.
    """
    logging.getLogger().addFilter(_is_no_batch_line)  # twice is once
    if metrics is not None and not isinstance(metrics.add_time, OnceASecond):
        metrics.add_time = OnceASecond(metrics.add_time)


def _is_no_batch_line(record: logging.LogRecord) -> bool:
    return record.msg != _BATCH_LINE or record.module != "otf_message_handler"


class OnceASecond:
    """`context.metrics.add_time`, but TorchServe's gauges of the last batch pass once a second.

    Args:
        add_time: Gets all that passes.
    """

    def __init__(self, add_time: Callable[..., object]) -> None:
        self._add_time = add_time
        self._next = dict.fromkeys(_GAUGES, 0.0)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> None:
        """As the method."""
        due = self._next.get(name)
        if due is not None:
            now = time.monotonic()
            if now < due:
                return
            self._next[name] = now + _EVERY_S
        self._add_time(name, *arguments, **options)
