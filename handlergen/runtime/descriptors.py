"""Descriptors and files: closed in forked children, removed or replaced by other processes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref
from pathlib import Path

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


def reserve(descriptor: int, size: int) -> None:
    """Give a file that is to be mapped its size in bytes, and the room; what it has is kept.

    Where a mapped file has no block of its own yet and the disk is full, writing there kills the process (SIGBUS).

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif (missing := size - os.fstat(descriptor).st_size) > 0:
        os.pwrite(descriptor, bytes(missing), size - missing)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name.

    Raises:
        OSError: That cannot be seen.
    """
    return has_name(os.fstat(descriptor), path)


def has_name(file: os.stat_result, path: Path) -> bool:
    """The same, of a file that was looked at while it was open.

    Raises:
        OSError: That cannot be seen.
    """
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False
