"""The requests in a predictor process's queue, and where each is in the user's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..failures import Failure
from ..hooks import Item
from ..requests import Request
from ..streaming import ConsumerGone
from ..wire import STREAM_WISH
from .page import PREDICTING, Page
from .peers import Peer
from .protocol import ANSWER, CHUNK, Predicted, Prepared

_GONE = Failure(499, "ClientGone", "The worker that asked has gone")


class Desk(Protocol):
    """What a request needs of the process that serves it."""

    @property
    def page(self) -> Page:
        """The process's page."""

    def reply(self, item: Item, send: Callable[[], None]) -> None:
        """Send a request's answer, now or a little later."""

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Settle a failure."""


class Slot:
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


class PeerOutlet:
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


class PreparedEntry:
    """A request that a worker has prepared. See `Entry` for the methods."""

    def __init__(self, desk: Desk, peer: Peer, number: int, sent: Prepared, *, explains: bool) -> None:
        item = Item(0, sent.entry or _entry(sent), sent.properties, Request(sent.properties, sent.request_id))
        item.stage, item.inputs, item.ready_ns = sent.stage, sent.inputs, sent.ready_ns
        item.request._metadata = sent.metadata
        item.data, item.files, item.http = sent.data, sent.files, sent.http
        if sent.outlet:
            item.outlet = PeerOutlet(peer, number, page=desk.page)
        self.item = item
        self.explains = explains
        self._desk = desk
        self._peer = peer
        self._number = number
        self._slot = Slot(desk.page, peer, number)

    @property
    def abandoned(self) -> bool:
        return self._peer.gave_up(self._number)

    def entered(self) -> None:
        if self.item.failure is None:  # else it could not wait any longer, and the others of its batch could
            self._slot.enter()

    def done(self) -> None:
        # Out of the user's code: if the process dies before the answer is out, in the next request's predict, this
        # one is not to blame, and is predicted again.
        self._slot.leave()
        self._desk.reply(self.item, self._send)

    def _send(self) -> None:
        item, metadata = self.item, self.item.request._metadata
        state = item.http.state if item.http is not None else None
        try:
            answer = tuple(Predicted(item.outputs, item.failure, metadata, item.sent, state))
            self._peer.send(ANSWER, self._number, answer)
        except Exception as error:
            told = TypeError(
                f"what predict returned cannot be sent to the worker: {type(error).__name__}: {error}"
            )
            told.__cause__ = error  # which tells a lack of memory from the rest
            self._desk.fail(item, told, "predict")
            self._peer.send(ANSWER, self._number, tuple(Predicted(None, item.failure, None, item.sent, None)))

    def skipped(self) -> None:
        """Nobody waits for it."""


class RelayedEntry:
    """A request whose stages run in this process. See `Entry` for the methods."""

    explains = False

    def __init__(self, item: Item, slot: Slot | None, done: Callable[[], None], *, explains: bool) -> None:
        self.item = item
        self.explains = explains
        self._slot = slot
        self._done = done

    @property
    def abandoned(self) -> bool:
        return self._slot is not None and self._slot.peer.gave_up(self._slot.number)

    def entered(self) -> None:
        if self._slot is not None and self.item.failure is None:
            self._slot.enter()

    def done(self) -> None:
        if self._slot is not None:
            self._slot.leave()  # as for `PreparedEntry`; its own thread enters again
        self._done()

    def skipped(self) -> None:
        self.item.failure = _GONE
        self._done()


def _entry(sent: Prepared) -> dict[str, Any]:
    return {STREAM_WISH: sent.wish} if sent.wish is not None else {}
