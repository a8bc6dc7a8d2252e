"""Files that other processes may remove, or put others in place of, at any time."""

from __future__ import annotations

import os
from pathlib import Path


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
