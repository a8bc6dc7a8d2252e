"""Descriptors: closed in forked children; files with reserved space, replaced files."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from pathlib import Path

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_descriptors: dict[int, tuple[int, int]] = {}
"""Descriptor -> device and inode of its file. A descriptor that was not closed by `close` may name another file by now,
which a child may need."""


def closed_in_children(connection: socket.socket) -> None:
    """Close a socket in every forked child of this process."""
    _sockets.add(connection)


def descriptor_closed_in_children(descriptor: int) -> None:
    """Close a descriptor in every forked child of this process, until `close`."""
    _descriptors[descriptor] = _file(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor that `descriptor_closed_in_children` has registered; a no-op in a forked child."""
    if _descriptors.pop(descriptor, None) is not None:
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
    """Extend a file that is to be mapped to a size in bytes, and allocate its blocks; its content is kept.

    Writing to a mapped block that is not allocated kills the process when the disk is full (SIGBUS).

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif (missing := size - os.fstat(descriptor).st_size) > 0:
        os.pwrite(descriptor, bytes(missing), size - missing)


def has_name(file: os.stat_result, path: Path) -> bool:
    """Return whether a path still names the file of an earlier `os.fstat`."""
    try:
        return os.path.samestat(path.stat(), file)
    except FileNotFoundError:
        return False
