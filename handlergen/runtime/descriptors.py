"""Sockets and files: whether the other end has closed, and which of them a forked child must not keep.

A child of `os.fork` or of a multiprocessing pool inherits every descriptor. It would keep connections and locks alive
when its parent is killed: workers would wait for answers from a socket that nobody reads, and no other process could
become the predictor process.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref

_GONE = select.POLLHUP | getattr(select, "POLLRDHUP", 0)

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_descriptors: dict[int, tuple[int, int]] = {}
"""Descriptor -> device and inode of its file. A descriptor that was closed otherwise than by `close` soon names
another file, which a child may need."""


def hung_up(descriptor: int) -> bool:
    """Return whether the other end of a connection has closed it."""
    poll = select.poll()
    poll.register(descriptor, _GONE)
    return bool(poll.poll(0))


def closed_in_children(connection: socket.socket) -> None:
    """Close a socket in every process that is forked off this one."""
    _sockets.add(connection)


def descriptor_closed_in_children(descriptor: int) -> None:
    """Close a descriptor in every process that is forked off this one; until `close`."""
    _descriptors[descriptor] = _file(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor that `descriptor_closed_in_children` has registered."""
    _descriptors.pop(descriptor, None)
    os.close(descriptor)


def _file(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _close_all() -> None:
    # `detach` instead of `close`: a file object of the socket would keep it open.
    for connection in list(_sockets):
        descriptor = connection.detach()
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    for descriptor, file in _descriptors.items():
        with contextlib.suppress(OSError):
            if _file(descriptor) == file:
                os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_all)
