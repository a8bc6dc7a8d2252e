"""What need not be done while the device waits for its next predict: sending answers, keeping times, counting."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from ..recording import Recorder

_logger = logging.getLogger("handlergen")


class Afterwards:
    """Calls that one thread puts off, and another one makes while the first has something better to do.

    The other thread is woken by `hand_over`, and no earlier: it would have the interpreter in between.
    """

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._handed_over: queue.SimpleQueue[list[Callable[[], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="handlergen-afterwards", daemon=True).start()

    def add(self, call: Callable[[], None]) -> None:
        """Put a call off. What it raises is logged, and keeps none of the others from being made."""
        self._calls.append(call)

    def hand_over(self) -> None:
        """Let the other thread make them, in the order in which they were added."""
        if self._calls:
            calls, self._calls = self._calls, []
            self._handed_over.put(calls)

    def make_now(self) -> None:
        """Make them here: there is nothing better to do."""
        calls, self._calls = self._calls, []
        _make(calls)

    def _run(self) -> None:
        while True:
            _make(self._handed_over.get())


def _make(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            _logger.exception("what was put off until after a prediction failed")


class LateRecorder:
    """A `Recorder` that is told afterwards; only by the thread whose `Afterwards` it is given.

    Args:
        recorder: Who is told.
    """

    def __init__(self, recorder: Recorder, afterwards: Afterwards) -> None:
        self._recorder = recorder
        self._afterwards = afterwards

    def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
        """As the recorder's."""
        self._afterwards.add(lambda: self._recorder.record(stage, request_id, start_ns, end_ns))

    def forked(self) -> Recorder | None:
        """As the recorder's."""
        return self._recorder.forked()
