"""What TorchServe's worker prints for each batch and nobody reads."""

from __future__ import annotations

import logging
import time
from typing import Any

_BATCH_LINE = "Backend received inference at: %d"  # ts/protocol/otf_message_handler.py, retrieve_msg
_GAUGES = ("[METRICS]HandlerTime.", "[METRICS]PredictionTime.")
"""Gauges that TorchServe's worker prints after each batch (ts/service.py, ts/torch_handler/base_handler.py)."""
_EVERY_S = 1.0


def leave_out_batch_lines() -> None:
    """Stop the lines that TorchServe's worker prints for each batch; all others pass.

    Each line is written, read by the frontend, matched and logged: a tenth of what a request costs that does
    nothing else. Dropping it in the frontend's log configuration saves only the last part of that, and a filter leaves
    the making of the record, so the two modules get loggers that do not make it. A gauge of the last batch is as good
    when it is printed once a second; nobody asks for it more often.
    """
    from ts.metrics import caching_metric
    from ts.protocol import otf_message_handler as protocol

    if not isinstance(protocol.logging, WithoutBatchLine):
        protocol.logging = WithoutBatchLine(protocol.logging)
    if not isinstance(caching_metric.logger, OnceASecond):
        caching_metric.logger = OnceASecond(caching_metric.logger)


class WithoutBatchLine:
    """A logger, or the module `logging`, but for the line of each batch.

    Args:
        logger: Gets all others.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def info(self, message: str, *arguments: object, **options: Any) -> None:
        """As the logger's."""
        if message != _BATCH_LINE:
            self._logger.info(message, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class OnceASecond:
    """A logger that lets each of TorchServe's gauges of the last batch pass once a second.

    Args:
        logger: Gets all that passes.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._next = dict.fromkeys(_GAUGES, 0.0)

    def info(self, message: str, *arguments: object, **options: Any) -> None:
        """As the logger's."""
        for name in _GAUGES:
            if message.startswith(name):
                now = time.monotonic()
                if now < self._next[name]:
                    return
                self._next[name] = now + _EVERY_S
        self._logger.info(message, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)
