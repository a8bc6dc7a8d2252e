"""What a process that user code forks off must not hold: the connections and locks of the one it came from.

A child of `os.fork` or of a multiprocessing pool has them all. It would keep them alive when its parent is killed: the
workers would wait for answers from a socket that nobody reads, and no other process could become the predictor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_descriptors: dict[int, tuple[int, int]] = {}
"""Device and inode of the file that each number stands for: a number that somebody closed otherwise than by `close`
soon stands for another file, of which a child needs to know nothing but which it may need."""


def closed_in_children(connection: socket.socket) -> None:
    """Close a socket in every process that is forked off this one."""
    _sockets.add(connection)


def descriptor_closed_in_children(descriptor: int) -> None:
    """Close a file in every process that is forked off this one; until `close`."""
    _descriptors[descriptor] = _file(descriptor)


def close(descriptor: int) -> None:
    """Close a file of `descriptor_closed_in_children`."""
    _descriptors.pop(descriptor, None)
    os.close(descriptor)


def _file(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _close_all() -> None:
    # `detach`, and not `close`: a file object of the socket would keep it open.
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
