"""Files that other processes may remove, or put others in place of, at any time."""

from __future__ import annotations

import os
from pathlib import Path


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name.

    Raises:
        OSError: That cannot be seen.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
