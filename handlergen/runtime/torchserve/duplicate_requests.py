"""Requests that TorchServe gives to a second worker although the first has answered them.

Scaling down and unregistering end a worker in the thread of the management request: it puts what the worker has in
hand back into the queue, for another one (TorchServe 0.12: WorkerThread.shutdown, BatchAggregator.sendError). It does
not see whether the worker's own thread is just passing the answer on (BatchAggregator.sendResponse, which forgets a
request only afterwards). The second answer then goes out too, on the same connection, where its client takes it for
the answer to its next request, and so on until one of them closes the connection. A stream is given out again as a
whole, whatever its client has of it already.

So the workers note in a file that they share what they have answered, and refuse what stands there. An error closes the
connection (NettyUtils.sendHttpResponse): no client gets an answer that is not its own.

What TorchServe has passed on it had received before it interrupted the worker's thread, and only then it gives the
request out again: that stands in the file by then. Of an answer that it received just before, nobody can see whether
it was passed on; such a request is refused too.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

from ..codec.errors import Failure
from ..descriptors import has_name, hung_up, reserve
from ..device.lock import lock_directory
from ..pipeline.dispatch import failure_for
from ..pipeline.hooks import Item
from .streaming import raise_to_torchserve

_FILE = "answered-1"
"""The number is that of the layout: running workers of another version may have theirs."""
_SLOTS = 1 << 15
"""A slot is overwritten after so many answers of all of this user's models, on average. A request is given out again
within milliseconds."""
_SLOT_BYTES = 16
_LOOK_EVERY_S = 1.0
"""Whether the file is still there; a look costs 3 µs."""
ANSWERED, STREAMED = b"\1", b"\2"

_REFUSED = Failure(
    503,
    "GivenTwice",
    "TorchServe gave this request to a second worker while it ended the first, which had answered it; send it again",
    {"Retry-After": "1"},
)


class Answered:
    """The ids of the requests that were answered last, in a mapped file.

    Args:
        directory: Makes it if it is not there, and names it: private to this user.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, directory: Callable[[], Path] = lock_directory) -> None:
        self._directory = directory
        self._open()

    def _open(self) -> None:
        path = self._directory() / _FILE
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            reserve(descriptor, _SLOTS * _SLOT_BYTES)
            self._memory = mmap.mmap(descriptor, _SLOTS * _SLOT_BYTES)
            self._path, self._file = path, os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def follow(self) -> None:
        """Go on with a new file where somebody has deleted this one, so that workers that start later see the same.

        Raises:
            OSError: It cannot be made; the old one serves on.
        """
        if not has_name(self._file, self._path):
            self._open()

    def note(self, request_id: str, how: bytes) -> None:
        """A request is answered, or its stream begun; before TorchServe has it."""
        place, name = _slot(request_id)
        self._memory[place : place + _SLOT_BYTES] = name + how

    def find(self, request_id: str) -> bytes:
        """How a request was noted; empty when it was not, or too many were since."""
        place, name = _slot(request_id)
        found = self._memory[place : place + _SLOT_BYTES]
        return found[-1:] if found.startswith(name) else b""


class Unchecked:
    """Answers whatever comes: without a TorchServe nothing is given out twice."""

    def new(self, items: Sequence[Item]) -> Sequence[Item]:
        """All of them."""
        return items

    def begin(self, item: Item) -> None:
        """Nothing is noted."""

    def end(self, items: Sequence[Item]) -> None:
        """Nothing is noted."""


class AnsweredOnce(Unchecked):
    """Sees that no request is answered by two workers.

    Args:
        answered: What all workers have answered.
        closed: Whether TorchServe has closed its connection to this worker, which does not answer anything any more.
        logger: Told of each that is refused.
    """

    def __init__(self, answered: Answered, closed: Callable[[], bool], logger: logging.Logger) -> None:
        self._answered = answered
        self._closed = closed
        self._logger = logger
        self._look_at = 0.0

    def new(self, items: Sequence[Item]) -> list[Item]:
        """Those that nobody has answered; the others have their failure afterwards.

        Raises:
            Exception: TorchServe's, which fails the batch, when one was answered by a stream. Only that closes the
                connection of a stream, wherever it is (RestJob.responseInference): its neighbours may come again.
        """
        self._follow()
        new, streamed = [], False
        for item in items:
            how = self._answered.find(item.request.id)
            if how:
                item.failure = failure_for(item, _REFUSED)
                streamed |= how == STREAMED
                self._logger.warning(
                    "request %s had been answered by another worker already", item.request.id
                )
            else:
                new.append(item)
        if streamed:
            raise_to_torchserve(_REFUSED)
        return new

    def begin(self, item: Item) -> None:
        """The first chunk of an answer is about to be sent."""
        if not self._closed():
            self._answered.note(item.request.id, STREAMED)

    def end(self, items: Sequence[Item]) -> None:
        """These are about to be answered.

        A failure is not noted: it closes the client's connection anyway.
        """
        if self._closed():
            return
        for item in items:
            if item.failure is None and item.reply.status < 400 and not item.sent:
                self._answered.note(item.request.id, ANSWERED)

    def _follow(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            with contextlib.suppress(OSError):  # a full disk
                self._answered.follow()


def for_this_user(connection: socket.socket | None, logger: logging.Logger) -> Unchecked:
    """What a worker has.

    Where the file cannot be made, the log is told, and nothing is checked: a full disk is no reason not to serve.

    Args:
        connection: TorchServe's; without one nothing needs to be checked.
        logger: Told of each request that is refused.
    """
    if connection is None:
        return Unchecked()
    try:
        return AnsweredOnce(Answered(), partial(hung_up, connection.fileno()), logger)
    except OSError as error:
        logger.warning("requests that TorchServe gives to two workers cannot be noticed: %s", error)
        return Unchecked()


def _slot(request_id: str) -> tuple[int, bytes]:
    name = blake2b(request_id.encode(), digest_size=_SLOT_BYTES - 1).digest()
    return int.from_bytes(name[:4], "little") % _SLOTS * _SLOT_BYTES, name
