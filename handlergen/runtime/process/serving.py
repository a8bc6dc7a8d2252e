"""The predictor process at work: requests of all workers, one predict at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..answering import Answering
from ..contract import Bundle
from ..failures import Failure, LockTimeout
from ..hooks import Item, Stage
from ..model import LoadedModel
from ..pipeline import open_items
from ..predictor import Lock
from ..recording import memory_of
from .afterwards import Afterwards, LateRecorder
from .channel import Message, Unreadable
from .entries import PeerOutlet, PreparedEntry, Slot
from .page import IDLE, PREDICTING, Page
from .peers import Peer, Peers
from .protocol import (
    ANSWER,
    DESCRIBE,
    EXPLAIN,
    HEALTH,
    IN_QUEUE,
    REQUEST,
    Answered,
    Predicted,
    Prepared,
    Raw,
)
from .queued import QueuedModel
from .reading import Reading
from .values import pack
from .waiting import Entry, Taken, Waiting

_WORTH_ANOTHER_THREAD_S = 0.5e-3
"""Waking a thread, which then contends for the interpreter, costs some 50 to 100 µs."""
_THREADS = 256
"""The most requests that are preprocessed and postprocessed at once, with `stages: predictor`."""


class NotingLock:
    """The device lock; the page says when it is held, and for whom.

    Args:
        lock: The lock itself.
        page: This process's.

    Attributes:
        entries: For whom it is acquired next.
        loaded: The model is; the lock is held while it is being loaded too, which is no prediction.
        before_wait: Called when somebody else has the device.
    """

    def __init__(self, lock: Lock, page: Page) -> None:
        self._lock = lock
        self._page = page
        self.key = lock.key
        self.entries: Sequence[Entry] = ()
        self.loaded = False
        self.before_wait: Callable[[], None] = lambda: None

    def acquire(self, timeout_s: float) -> None:
        """As the lock's."""
        try:
            self._lock.acquire(0)
        except LockTimeout:
            self.before_wait()
            self._lock.acquire(timeout_s)
        for entry in self.entries:
            entry.entered()
        if self.loaded:
            self._page.enter(PREDICTING)

    def release(self) -> None:
        """As the lock's."""
        if self.loaded:
            self._page.enter(IDLE)
        self._lock.release()


class Serving:
    """Answers workers.

    Args:
        bundle: Contract and settings.
        model: Loaded in this process.
        lock: That it was loaded with.
        page: This process's.
        peers: Says who is connected.
        reading: Of what they send.
        batch_size: The most requests that TorchServe hands a worker at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: LoadedModel,
        lock: NotingLock,
        *,
        page: Page,
        peers: Peers,
        reading: Reading,
        batch_size: int,
    ) -> None:
        settings = self._settings = bundle.settings
        self._model = model
        self._lock = lock
        lock.loaded = True
        self._afterwards = Afterwards()
        self._reading = reading
        self._predict_s = _WORTH_ANOTHER_THREAD_S
        lock.before_wait = self._use_the_time
        self._page = page
        self._peers = peers
        together = settings.batch != "each"
        self.waiting = Waiting(
            most=settings.max_batch if together else 1,
            linger_s=settings.linger_ms / 1000 if together else 0.0,
            idle=reading,
        )
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen")
        self._slots = threading.local()
        # Also with `stages: worker`: a worker relays when this process or an earlier one has told it to.
        here = QueuedModel(model, self.waiting, self._slots)
        self._answering = Answering(bundle, here, batch_size=max(8, batch_size), describe=dict)
        model.predictor.use(tuple(self._noting(stage) for stage in model.hooks))
        if model.recording.recorder is not None:
            model.predictor.tell(LateRecorder(model.recording.recorder, self._afterwards))

    def take(self, peer: Peer, message: Message) -> None:
        """Take what a worker sends; never waits."""
        kind, number, value = message
        if isinstance(value, Unreadable):
            failure = Failure(
                500, "InternalError", "The predictor process cannot read what preprocess returned"
            )
            self._model.context.logger.error(
                "a request of worker %d cannot be read: %s", peer.pid, value.error
            )
            refused = (
                Answered(None, failure, False)
                if kind == REQUEST
                else Predicted(None, failure, None, False, None)
            )
            peer.send(ANSWER, number, tuple(refused))
        elif kind in IN_QUEUE:
            self.waiting.put(PreparedEntry(self, peer, number, Prepared(*value), explains=kind == EXPLAIN))
        elif kind == REQUEST:
            self._threads.submit(self._answer, peer, number, Raw(*value))
        elif kind == DESCRIBE:
            self._threads.submit(self._tell, peer, number, self.describe)
        elif kind == HEALTH:
            self._threads.submit(self._tell, peer, number, self._health)

    def predict_until_ended(self) -> bool:
        """Predict, on this thread, the one that loaded the model.

        Returns:
            Whether it was ended; False when the device is broken, so that only a new process can go on.
        """
        # Inference mode is entered once, and not between two predictions, while the device has nothing to do.
        with torch.inference_mode():
            while entries := self._next():
                self._lock.entries = entries
                began = time.monotonic()
                self._predict(entries)
                self._predict_s += (time.monotonic() - began - self._predict_s) / 8
                self._lock.entries = ()
                self._afterwards.add(partial(self._count, len(entries)))
                if self._model.device.broken:
                    break
        self._afterwards.make_now()
        return not self._model.device.broken

    def _next(self) -> list[Entry]:
        entries = self.waiting.take(wait=False)
        if not entries or not self._long:
            self._afterwards.make_now()
        return entries or self.waiting.take()

    @property
    def _long(self) -> bool:
        """Whether a prediction takes long enough for other threads to do something meanwhile."""
        return self._predict_s >= _WORTH_ANOTHER_THREAD_S

    def _use_the_time(self) -> None:
        """Let other threads work, while this one waits or predicts."""
        self._afterwards.hand_over()
        self._reading.beside()

    def _count(self, requests: int) -> None:
        self._page.count(requests, len(self.waiting))

    def _predict(self, entries: list[Entry]) -> None:
        explainer = self._model.explainer if entries[0].explains else None
        if explainer is None:
            self._model.predictor.predict(Taken(entries))
        else:
            with torch.inference_mode(mode=False):
                explainer.predict(Taken(entries))

    def reply(self, item: Item, send: Callable[[], None]) -> None:
        """Send an answer: now, or beside the next predict when the device has something to do already."""
        if self._long and len(self.waiting):
            self._model.own_outputs(item)
            self._afterwards.add(send)
        else:
            send()

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Settle a failure."""
        self._model.failing.fail(item, error, hook)

    @property
    def page(self) -> Page:
        return self._page

    def describe(self) -> dict[str, Any]:
        """What the workers pass on as theirs."""
        picture = self._page.look()
        about = {
            **self._model.predictor.describe(),
            "placement": "process",
            "stages": self._settings.stages,
            "pid": picture.pid,
            "state": picture.state,
            "workers": len(self._peers.workers()),
            "waiting": len(self.waiting),
            "predictions": picture.predictions,
            "mean_batch": picture.mean_batch,
            "largest_batch": picture.largest_batch,
            "memory_bytes": memory_of(self._model.device),
        }
        return {"predictor": about, "types": self._answering.types()}

    def flush(self) -> None:
        """Write recorded spans."""
        self._model.recording.flush()

    def _health(self) -> Any:
        ask = self._model.is_healthy
        answer = ask({}) if ask is not None else None
        try:
            pack(answer)
        except Exception:  # no JSON either: of such an answer only whether it is true is told
            return bool(answer)
        return answer

    def _tell(self, peer: Peer, number: int, ask: Callable[[], Any]) -> None:
        try:
            peer.send(ANSWER, number, ask())
        except BaseException as error:  # whatever it is: somebody waits for the answer
            self._model.context.logger.exception("worker %d asked in vain", peer.pid, exc_info=error)
            peer.send(ANSWER, number, {})

    def _answer(self, peer: Peer, number: int, raw: Raw) -> None:
        """All stages of one request, on a thread of its own."""
        (item,) = open_items([raw.entry], [raw.properties], [raw.request_id])
        if raw.outlet:
            item.outlet = PeerOutlet(peer, number)
        slot = self._slots.current = Slot(self._page, peer, number)
        slot.enter()
        try:
            self._answering.answer([item])
            peer.send(ANSWER, number, tuple(Answered(item.reply, item.failure, item.sent)))
        except BaseException as error:  # whatever it is: somebody waits for the answer
            self.fail(item, error, "handle")
            peer.send(ANSWER, number, tuple(Answered(None, item.failure, item.sent)))
        finally:
            slot.leave()

    def _noting(self, stage: Stage) -> Stage:
        """A stage whose predict tells the page when it begins: a limit on its time counts from there."""
        page, call = self._page, stage.predict.call

        def noted(item: Item) -> Any:
            page.enter(PREDICTING)
            if self._long:
                self._use_the_time()
            return call(item)

        # Whose requests come together is chance: those that do not fit into one batch are predicted alone.
        return replace(stage, predict=replace(stage.predict, call=noted), one_by_one=True)
