"""The workers that are connected to the predictor process: who they are, and what they send."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from .channel import Channel, Gone, Message
from .forks import descriptor_closed_in_children
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
    """Accepts workers and reads what they send, whenever `read` is called.

    Args:
        listener: The socket they connect to; taken over.
        take: Called with each request, on the thread that reads; must not wait.
    """

    def __init__(self, listener: socket.socket, take: Callable[[Peer, Message], None]) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._take = take
        self._peers: dict[int, Peer] = {}
        self._next = 1
        # Not a selector: what it does around this takes longer than the system call.
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._rung, self._bell = os.pipe()
        for descriptor in (self._rung, self._bell):
            os.set_blocking(descriptor, False)
            descriptor_closed_in_children(descriptor)
        self._watch(listener.fileno(), self._accept)
        self._watch(self._rung, self._hear)
        self._changing = threading.Lock()
        self._verdict: Callable[[Peer], tuple[int, object]] | None = None

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
        self._unwatch(self._listener.fileno())
        self._listener.close()

    def _tell(self, verdict: Callable[[Peer], tuple[int, object]]) -> None:
        with self._changing:
            self._verdict = verdict
            peers = [peer for peer in self._peers.values() if peer.pid]
        for peer in peers:
            kind, value = verdict(peer)
            peer.send(kind, 0, value)

    def read(self, timeout_s: float | None) -> None:
        """Take what has come: workers, and what they send; by one thread at a time.

        Args:
            timeout_s: How long to wait for something, or for `ring`; None: for ever.
        """
        for descriptor, _events in self._poll.poll(
            None if timeout_s is None else math.ceil(timeout_s * 1000)
        ):
            read = self._readers.get(descriptor)
            if read is not None:  # else it was closed meanwhile
                read()

    def ring(self) -> None:
        """Let `read` return, the next one if none waits; from any thread."""
        with contextlib.suppress(BlockingIOError):  # it has been rung often enough
            os.write(self._bell, b"!")

    def _watch(self, descriptor: int, read: Callable[[], None]) -> None:
        self._readers[descriptor] = read
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._readers[descriptor]

    def _hear(self) -> None:
        os.read(self._rung, 4096)

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
        self._watch(connection.fileno(), partial(self._read, peer))

    def _drop(self, peer: Peer) -> None:
        peer.closed = True
        self._unwatch(peer.channel.fileno())
        peer.channel.close()
        del self._peers[peer.number]

    def _read(self, peer: Peer) -> None:
        try:
            for message in peer.channel.receive(wait=False):
                self._hand_on(peer, message)
        except Gone:
            self._drop(peer)
        except Exception:  # the others are served on
            _logger.exception("the connection of worker %d is given up", peer.pid)
            self._drop(peer)

    def _hand_on(self, peer: Peer, message: Message) -> None:
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
