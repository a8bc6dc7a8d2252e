"""The workers that are connected to the predictor process: who they are, and what they send."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

from .channel import Channel, Gone, Message
from .home import NotOurs, check_peer
from .protocol import ANSWER, CANCEL, HELLO, REFUSED, WELCOME, Welcome

_logger = logging.getLogger("handlergen")


class Peer:
    """One connection of a worker's.

    Attributes:
        number: Tells it from the others of this process's life.
        pid: The worker.
        closed: It has gone.
        cancelled: Numbers of its requests that it does not wait for any more.
    """

    def __init__(self, number: int, channel: Channel) -> None:
        self.number = number
        self.channel = channel
        self.pid = 0
        self.closed = False
        self.cancelled: set[int] = set()

    def send(self, kind: int, number: int, value: object) -> None:
        """Send it something, unless it has gone.

        Raises:
            Exception: The value cannot be pickled.
        """
        if not self.closed:
            with contextlib.suppress(Gone):
                self.channel.send(kind, number, value)
        if kind == ANSWER:
            self.cancelled.discard(number)

    def gave_up(self, number: int) -> bool:
        """Whether nobody waits for a request any more."""
        return self.closed or number in self.cancelled


class Peers:
    """Accepts workers and reads what they send, in one thread.

    Args:
        listener: The socket they connect to; taken over.
        take: Called with each request, on that thread; must not wait.
    """

    def __init__(self, listener: socket.socket, take: Callable[[Peer, Message], None]) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._take = take
        self._peers: dict[int, Peer] = {}
        self._next = 1
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._changing = threading.Lock()
        self._verdict: Callable[[Peer], tuple[int, object]] | None = None
        threading.Thread(target=self._run, name="handlergen-peers", daemon=True).start()

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def seen(self) -> bool:
        """Whether a worker has ever been connected."""
        return self._next > 1

    def workers(self) -> list[int]:
        """Process ids of the workers that are connected."""
        return sorted({peer.pid for peer in list(self._peers.values()) if peer.pid})

    def welcome(self, welcome: Callable[[int], Welcome]) -> None:
        """Tell everybody, those who come later too, that the model is loaded."""
        self._tell(lambda peer: (WELCOME, welcome(peer.number)))

    def refuse(self, reason: str) -> None:
        """Tell everybody that it cannot be loaded."""
        self._tell(lambda _peer: (REFUSED, reason))

    def close(self) -> None:
        """Take no more workers."""
        self._listener.close()

    def _tell(self, verdict: Callable[[Peer], tuple[int, object]]) -> None:
        with self._changing:
            self._verdict = verdict
            peers = [peer for peer in self._peers.values() if peer.pid]
        for peer in peers:
            kind, value = verdict(peer)
            peer.send(kind, 0, value)

    def _run(self) -> None:
        while True:
            for key, _events in self._selector.select():
                peer = key.data
                if peer is None:
                    self._accept()
                    continue
                try:
                    self._read(peer)
                except Exception:  # this thread serves the others too
                    _logger.exception("the connection of worker %d is given up", peer.pid)
                    self._drop(peer)

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            time.sleep(0.01)  # no more files may be opened: what waits keeps waiting
            return
        try:
            check_peer(connection)
        except NotOurs:
            connection.close()
            return
        connection.setblocking(True)
        peer = Peer(self._next, Channel(connection))
        self._next += 1
        self._peers[peer.number] = peer
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _drop(self, peer: Peer) -> None:
        peer.closed = True
        self._selector.unregister(peer.channel.fileno())
        peer.channel.close()
        del self._peers[peer.number]

    def _read(self, peer: Peer) -> None:
        try:
            messages = peer.channel.receive(wait=False)
        except Gone:
            self._drop(peer)
            return
        for message in messages:
            if message.kind == HELLO:
                with self._changing:
                    peer.pid = message.value
                    verdict = self._verdict
                if verdict is not None:
                    kind, value = verdict(peer)
                    peer.send(kind, 0, value)
            elif message.kind == CANCEL:
                peer.cancelled.add(message.number)
            else:
                self._take(peer, message)
