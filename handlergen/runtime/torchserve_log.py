"""What TorchServe's worker prints for each batch and nobody reads."""

from __future__ import annotations

import logging
import time

_BATCH_LINE = "Backend received inference at: %d"  # ts/protocol/otf_message_handler.py, retrieve_msg
_GAUGES = ("[METRICS]HandlerTime.", "[METRICS]PredictionTime.")
"""Gauges that TorchServe's worker prints after each batch (ts/service.py, ts/torch_handler/base_handler.py)."""
_EVERY_S = 1.0


def leave_out_batch_lines() -> None:
    """Stop the lines that TorchServe's worker prints for each batch; all others pass.

    Each line is written, read by the frontend, matched and logged: a tenth of what a request costs that does
    nothing else. Dropping it in the frontend's log configuration saves only the last part of that. A gauge of the last
    batch is as good when it is printed once a second; nobody asks for it more often.
    """
    logging.getLogger().addFilter(_is_news)
    logging.getLogger("ts.metrics.caching_metric").addFilter(OnceASecond())


class OnceASecond(logging.Filter):
    """Lets each of TorchServe's gauges of the last batch pass once a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next = dict.fromkeys(_GAUGES, 0.0)

    def filter(self, record: logging.LogRecord) -> bool:
        line = str(record.msg)
        for name in _GAUGES:
            if line.startswith(name):
                now = time.monotonic()
                if now < self._next[name]:
                    return False
                self._next[name] = now + _EVERY_S
        return True


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _BATCH_LINE
