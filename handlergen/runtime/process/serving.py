"""The predictor process at work: requests of all workers, one predict at a time."""

from __future__ import annotations

import queue
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from ..answering import Answering
from ..arrivals import Ready
from ..contract import Bundle
from ..failures import Failure
from ..hooks import Item, Stage
from ..model import LoadedModel
from ..pipeline import open_items
from ..predictor import HOOK_ERRORS, Lock, Predictor
from ..requests import Request
from ..streaming import ConsumerGone
from ..wire import STREAM_WISH
from .channel import Message, Unreadable
from .page import IDLE, PREDICTING, Page
from .peers import Peer, Peers
from .protocol import (
    ANSWER,
    CHUNK,
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
from .waiting import Entry, Taken, Waiting

_THREADS = 256
"""The most requests that are preprocessed and postprocessed at once, with `stages: predictor`."""

_GONE = Failure(499, "ClientGone", "The worker that asked has gone")


class NotingLock:
    """The device lock; the page says when it is held, and for whom.

    Args:
        lock: The lock itself.
        page: This process's.

    Attributes:
        entries: For whom it is acquired next.
        loaded: The model is; the lock is held while it is being loaded too, which is no prediction.
    """

    def __init__(self, lock: Lock, page: Page) -> None:
        self._lock = lock
        self._page = page
        self.key = lock.key
        self.entries: Sequence[Entry] = ()
        self.loaded = False

    def acquire(self, timeout_s: float) -> None:
        """As the lock's."""
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
        batch_size: The most requests that TorchServe hands a worker at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: LoadedModel,
        lock: NotingLock,
        *,
        page: Page,
        peers: Callable[[], Peers],
        batch_size: int,
    ) -> None:
        settings = self._settings = bundle.settings
        self._model = model
        self._lock = lock
        lock.loaded = True
        self._page = page
        self._peers = peers
        together = settings.batch != "each"
        self.waiting = Waiting(
            most=settings.max_batch if together else 1,
            linger_s=settings.linger_ms / 1000 if together else 0.0,
        )
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen")
        self._slots = threading.local()
        self._answering: Answering | None = None
        if settings.stages == "predictor":
            here = _Here(model, self.waiting, self._slots)
            self._answering = Answering(bundle, here, batch_size=max(8, batch_size), describe=dict)
        self._replies: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._reply, name="handlergen-replies", daemon=True).start()
        model.predictor.use(tuple(self._noting(stage) for stage in model.hooks))

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
                Answered(None, failure, False) if kind == REQUEST else Predicted(None, failure, None, False)
            )
            peer.send(ANSWER, number, refused)
        elif kind in IN_QUEUE:
            self.waiting.put(_Sent(self, peer, number, value, explains=kind == EXPLAIN))
        elif kind == REQUEST:
            self._threads.submit(self._answer, peer, number, value)
        elif kind == DESCRIBE:
            self._threads.submit(self._tell, peer, number, self.describe)
        elif kind == HEALTH:
            self._threads.submit(self._tell, peer, number, self._health)

    def predict_until_ended(self) -> bool:
        """Predict, on this thread, the one that loaded the model.

        Returns:
            Whether it was ended; False when the device is broken, so that only a new process can go on.
        """
        while entries := self.waiting.take():
            self._lock.entries = entries
            explains = entries[0].explains and self._model.explainer is not None
            predictor = self._model.explainer if explains else self._model.predictor
            assert predictor is not None
            predictor.predict(Taken(entries))
            self._lock.entries = ()
            self._page.count(len(entries), len(self.waiting))
            if self._model.device.broken:
                return False
        return True

    def reply(self, send: Callable[[], None]) -> None:
        """Send an answer: now, or beside the next predict when the device has something to do already."""
        if len(self.waiting):
            self._replies.put(send)
        else:
            send()

    def _reply(self) -> None:
        while True:
            self._replies.get()()

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Settle a failure."""
        self._model.failing.fail(item, error, hook)

    @property
    def page(self) -> Page:
        return self._page

    def describe(self) -> dict[str, Any]:
        """What the workers pass on as theirs."""
        picture = self._page.look()
        calls = picture.predictions
        about = {
            **self._model.predictor.describe(),
            "placement": "process",
            "stages": self._settings.stages,
            "pid": picture.pid,
            "state": picture.state,
            "workers": len(self._peers().workers()),
            "waiting": len(self.waiting),
            "predictions": calls,
            "mean_batch": round(picture.requests / calls, 2) if calls else 0,
            "largest_batch": picture.largest_batch,
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if not self._model.device.is_cpu:
            about["device_memory_bytes"] = torch.cuda.memory_reserved(self._model.device.torch)
        answer: dict[str, Any] = {"predictor": about}
        if self._answering is not None:
            answer["types"] = self._answering.types()
        return answer

    def flush(self) -> None:
        """Write recorded spans."""
        self._model.recording.flush()

    def _health(self) -> Any:
        ask = self._model.is_healthy
        return ask({}) if ask is not None else None

    def _tell(self, peer: Peer, number: int, ask: Callable[[], Any]) -> None:
        try:
            answer = ask()
        except HOOK_ERRORS as error:
            self._model.context.logger.exception("worker %d asked in vain", peer.pid, exc_info=error)
            answer = {}
        peer.send(ANSWER, number, answer)

    def _answer(self, peer: Peer, number: int, raw: Raw) -> None:
        """All stages of one request, on a thread of its own."""
        (item,) = open_items([raw.entry], [raw.properties], [raw.request_id])
        if raw.streams:
            item.outlet = _PeerOutlet(peer, number)
        slot = self._slots.current = _Slot(self._page, peer, number)
        slot.enter()
        try:
            assert self._answering is not None
            self._answering.answer([item])
            peer.send(ANSWER, number, Answered(item.reply, item.failure, item.sent))
        except BaseException as error:  # whatever it is: somebody waits for the answer
            self.fail(item, error, "handle")
            peer.send(ANSWER, number, Answered(None, item.failure, item.sent))
        finally:
            slot.leave()

    def _noting(self, stage: Stage) -> Stage:
        """A stage whose predict tells the page when it begins: a limit on its time counts from there."""
        page, call = self._page, stage.predict.call

        def noted(item: Item) -> Any:
            page.enter(PREDICTING)
            return call(item)

        # Whose requests come together is chance: those that do not fit into one batch are predicted alone.
        return replace(stage, predict=replace(stage.predict, call=noted), one_by_one=True)


class _Sent:
    """A request that a worker has prepared. See `Entry` for the methods."""

    def __init__(self, serving: Serving, peer: Peer, number: int, sent: Prepared, *, explains: bool) -> None:
        item = Item(0, sent.entry or _entry(sent), sent.properties, Request(sent.properties, sent.request_id))
        item.stage, item.inputs, item.ready_ns = sent.stage, sent.inputs, sent.ready_ns
        item.request._metadata = sent.metadata
        item.data, item.files, item.http = sent.data, sent.files, sent.http
        if sent.streams:
            item.outlet = _PeerOutlet(peer, number, page=serving.page)
        self.item = item
        self.explains = explains
        self._serving = serving
        self._peer = peer
        self._number = number
        self._slot = _Slot(serving.page, peer, number)

    @property
    def abandoned(self) -> bool:
        return self._peer.gave_up(self._number)

    def entered(self) -> None:
        self._slot.enter()

    def done(self) -> None:
        # Out of the user's code: if the process dies before the answer is out, in the next request's predict, this
        # one is not to blame, and is predicted again.
        self._slot.leave()
        self._serving.reply(self._send)

    def _send(self) -> None:
        item, metadata = self.item, self.item.request._metadata
        try:
            answer = Predicted(item.outputs, item.failure, metadata, item.sent)
            self._peer.send(ANSWER, self._number, answer)
        except Exception as error:
            told = f"what predict returned cannot be sent to the worker: {type(error).__name__}: {error}"
            self._serving.fail(item, TypeError(told), "predict")
            self._peer.send(ANSWER, self._number, Predicted(None, item.failure, None, item.sent))

    def skipped(self) -> None:
        """Nobody waits for it."""


class _Relayed:
    """A request whose stages run in this process. See `Entry` for the methods."""

    explains = False

    def __init__(self, item: Item, slot: _Slot | None, done: Callable[[], None], *, explains: bool) -> None:
        self.item = item
        self.explains = explains
        self._slot = slot
        self._done = done

    @property
    def abandoned(self) -> bool:
        return self._slot is not None and self._slot.peer.gave_up(self._slot.number)

    def entered(self) -> None:
        if self._slot is not None:
            self._slot.enter()

    def done(self) -> None:
        if self._slot is not None:
            self._slot.leave()  # as for `_Sent`; its own thread enters again
        self._done()

    def skipped(self) -> None:
        self.item.failure = _GONE
        self._done()


class _Here:
    """The model for the pipelines of this process: predictions pass through the queue. See `Model`."""

    def __init__(self, model: LoadedModel, waiting: Waiting, slots: threading.local) -> None:
        self.context, self.failing = model.context, model.failing
        self.streaming, self.recording = model.streaming, model.recording
        self.hooks = model.hooks
        self.is_healthy = model.is_healthy
        self.predictor = _Queued(waiting, slots, explains=False)
        self.explainer: Predictor | None = (
            _Queued(waiting, slots, explains=True) if model.explainer is not None else None
        )

    def close(self) -> None:
        """The model is not its own."""


class _Queued:
    """A `Predictor` that puts requests into the queue and waits."""

    def __init__(self, waiting: Waiting, slots: threading.local, *, explains: bool) -> None:
        self._waiting = waiting
        self._slots = slots
        self._explains = explains

    def load(self) -> None:
        """Nothing: it is."""

    def predict(self, arrivals: Ready) -> None:
        slot: _Slot | None = getattr(self._slots, "current", None)
        finished = threading.Semaphore(0)
        count = 0
        item = arrivals.next()
        while item is not None:

            def done(item: Item = item) -> None:
                arrivals.done(item)
                finished.release()

            count += 1
            if slot is not None and count == 1 and not arrivals.more:
                slot.leave()  # it waits for the device: not in the user's code
            self._waiting.put(_Relayed(item, slot, done, explains=self._explains))
            item = arrivals.next()
        for _ in range(count):
            finished.acquire()
        if slot is not None:
            slot.enter()

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


class _Slot:
    """A request's place on the page: there while it is in the user's code."""

    def __init__(self, page: Page, peer: Peer, number: int) -> None:
        self.peer = peer
        self.number = number
        self._page = page
        self._taken = -1

    def enter(self) -> None:
        if self._taken < 0:
            self._taken = self._page.take_slot(self.peer.number, self.number)

    def leave(self) -> None:
        taken, self._taken = self._taken, -1
        self._page.free_slot(taken)


class _PeerOutlet:
    """Sends chunks to the worker, which sends them to the client. Waits for neither."""

    def __init__(self, peer: Peer, number: int, *, page: Page | None = None) -> None:
        self._peer = peer
        self._number = number
        self._page = page

    def send(self, item: Item, body: bytes, content_type: str) -> None:
        if self._peer.gave_up(self._number):
            raise ConsumerGone
        self._peer.send(CHUNK, self._number, (body, content_type))
        if self._page is not None:
            self._page.enter(PREDICTING)  # the limit is from one chunk to the next

    def break_off(self, failure: Failure) -> None:
        """Nothing: the worker does it."""


def _entry(sent: Prepared) -> dict[str, Any]:
    return {STREAM_WISH: b"true"} if sent.streams else {}
