"""Duplicate requests: TorchServe gives a request to a second worker although the first has answered it.

Scaling down and unregistering stop a worker in the thread of the management request, which re-queues the worker's
requests for another one (TorchServe 0.12: WorkerThread.shutdown, BatchAggregator.sendError). It does not see whether
the worker's own thread is just passing an answer on (BatchAggregator.sendResponse, which forgets a request only
afterwards). The second answer then goes out too, on the same connection, where the client takes it for the answer to
its next request, and so on until one of them closes the connection. A stream is repeated from its start.

So the workers note in a shared file which requests they have answered, and refuse those. An error closes the
connection (NettyUtils.sendHttpResponse): no client gets an answer that is not its own.

TorchServe passes on only what it has received before it interrupts the worker's thread, and re-queues the request only
then: by that time the request is noted. Whether an answer that TorchServe received just before was passed on cannot be
seen; such a request is refused too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from ..codec.errors import Failure
from ..descriptors import reserve
from ..device.lock import lock_directory
from ..diagnostics import logger
from ..pipeline.backend import failure_for
from ..pipeline.hooks import Item
from ..server_process import torchserve_version
from .frontend import raise_to_torchserve

_logger = logger()
_FILE = "answered-1"
"""The number is the layout's: workers of another version may be running."""
_SLOTS = 1 << 15
"""A slot is overwritten after so many answers of all of this user's models, on average. TorchServe re-queues a request
within milliseconds."""
_SLOT_BYTES = 16
_CHECK_EVERY_S = 1.0
"""How often a worker checks that the file still exists; a check costs 3 µs."""
ANSWERED, STREAMED = b"\1", b"\2"

_REFUSED = Failure(
    503,
    "DuplicateRequest",
    "TorchServe re-queued this request while stopping a worker, which had answered it. Retry the request.",
    {"Retry-After": "1"},
)

_EMPTIED = Failure(
    503,
    "DuplicateRequest",
    "TorchServe 0.9 re-queued this request while stopping a worker, and has lost its content. Retry the request.",
    {"Retry-After": "1"},
)


class AnsweredRequests:
    """The ids of the most recently answered requests, in a mapped file.

    Args:
        directory: Returns the file's directory, which is private to this user; makes it if necessary.

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
        """Open a new file if this one was deleted, so that workers that start later share it.

        Raises:
            OSError: The new file cannot be made; the old one remains in use.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), self._file):
                return
        self._open()

    def note(self, torchserve_id: str, how: bytes) -> None:
        """Note that a request is answered, or its stream begun; before TorchServe receives it."""
        place, name = _slot(torchserve_id)
        self._memory[place : place + _SLOT_BYTES] = name + how

    def find(self, torchserve_id: str) -> bytes:
        """Return `ANSWERED` or `STREAMED`; empty if the request was not noted, or too many were since."""
        place, name = _slot(torchserve_id)
        found = self._memory[place : place + _SLOT_BYTES]
        return found[-1:] if found.startswith(name) else b""


class DuplicateRequests:
    """Refuses requests that another worker has answered.

    Args:
        answered: The requests that all workers have answered; None: nothing is noted or refused.
        closed: Returns whether TorchServe has closed its connection to this worker, whose answers are then lost.
    """

    def __init__(self, answered: AnsweredRequests | None = None, closed: Callable[[], bool] = bool) -> None:
        self._answered = answered
        self._closed = closed
        self._check_at = 0.0

    @classmethod
    def of_worker(cls, closed: Callable[[], bool] | None) -> DuplicateRequests:
        """Share the file with this user's other workers.

        Without TorchServe there are no duplicates: `closed` is None. Where the file cannot be made, a warning is logged
        and nothing is refused: a full disk must not stop the model.
        """
        if closed is None:
            return cls()
        try:
            return cls(AnsweredRequests(), closed)
        except OSError as error:
            _logger.warning("duplicate requests of TorchServe cannot be recognised: %s", error)
            return cls()

    def unanswered(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items that nobody has answered; the others get their failure.

        Raises:
            Exception: TorchServe's, which fails the batch, when a stream has answered one of the requests. Only that
                closes the stream's connection (RestJob.responseInference); the other requests of the batch fail too.
        """
        if self._answered is None:
            return items
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_EVERY_S
            with contextlib.suppress(OSError):  # a full disk
                self._answered.follow()
        new, streamed = [], False
        for item in items:
            how = self._answered.find(item.request.torchserve_id)
            if how:
                item.failure = failure_for(item, _REFUSED)
                streamed |= how == STREAMED
                _logger.warning("request %s was already answered by another worker", item.request.full_id)
            elif _is_emptied(item):
                item.failure = _EMPTIED
            else:
                new.append(item)
        if streamed:
            raise_to_torchserve(_REFUSED)
        return new

    def note_stream(self, item: Item) -> None:
        """Note that the first chunk of an answer is about to be sent."""
        if self._answered is not None and not self._closed():
            self._answered.note(item.request.torchserve_id, STREAMED)

    def note_answers(self, items: Sequence[Item]) -> None:
        """Note which items are about to be answered. A failure is not noted: it closes the client's connection."""
        if self._answered is None or self._closed():
            return
        for item in items:
            if item.failure is None and item.reply.status < 400 and not item.sent:
                self._answered.note(item.request.torchserve_id, ANSWERED)


def _is_emptied(item: Item) -> bool:
    """Return whether a request comes without content and headers, as TorchServe 0.9 passes on one that it re-queued.

    It sends the content of a request once (ModelRequestEncoder.encodeRequest); later versions send it each time.
    """
    return not item.entry and not item.properties and () < torchserve_version() < (0, 10)


def _slot(torchserve_id: str) -> tuple[int, bytes]:
    name = blake2b(torchserve_id.encode(), digest_size=_SLOT_BYTES - 1).digest()
    return int.from_bytes(name[:4], "little") % _SLOTS * _SLOT_BYTES, name
