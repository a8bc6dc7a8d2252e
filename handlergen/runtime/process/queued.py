"""The model of a predictor process as its own pipelines see it: predictions pass through the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..arrivals import Ready
from ..hooks import Item
from ..model import LoadedModel
from ..predictor import Predictor
from .entries import RelayedEntry, Slot
from .waiting import Waiting


class QueuedModel:
    """The model for the pipelines of this process: predictions pass through the queue. See `Model`."""

    def __init__(self, model: LoadedModel, waiting: Waiting, slots: threading.local) -> None:
        self.context, self.failing = model.context, model.failing
        self.streaming, self.recording = model.streaming, model.recording
        self.hooks = model.hooks
        self.is_healthy = model.is_healthy
        self.predictor = QueuedPredictor(waiting, slots, model.own_outputs, explains=False)
        self.explainer: Predictor | None = (
            QueuedPredictor(waiting, slots, model.own_outputs, explains=True)
            if model.explainer is not None
            else None
        )

    def close(self) -> None:
        """The model is not its own."""


class QueuedPredictor:
    """A `Predictor` that puts requests into the queue and waits."""

    def __init__(
        self, waiting: Waiting, slots: threading.local, own_outputs: Callable[[Item], None], *, explains: bool
    ) -> None:
        self._waiting = waiting
        self._own_outputs = own_outputs
        self._slots = slots
        self._explains = explains

    def load(self) -> None:
        """Nothing: it is."""

    def predict(self, arrivals: Ready) -> None:
        slot: Slot | None = getattr(self._slots, "current", None)
        finished = threading.Semaphore(0)
        count = 0
        item = arrivals.next()
        while item is not None:

            def done(item: Item = item) -> None:
                self._own_outputs(item)
                arrivals.done(item)
                finished.release()

            count += 1
            if slot is not None and count == 1 and not arrivals.more:
                slot.leave()  # it waits for the device: not in the user's code
            self._waiting.put(RelayedEntry(item, slot, done, explains=self._explains))
            item = arrivals.next()
        for _ in range(count):
            finished.acquire()
        if slot is not None:
            slot.enter()

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held."""
