"""`--output`: refused before the work is done, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from handlergen.errors import HandlergenError


def writable(path: Path) -> Path:
    """The path itself, if a file can be written there.

    Raises:
        HandlergenError: It cannot.
    """
    if not path.parent.is_dir():
        raise HandlergenError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise HandlergenError(f"cannot write {path}: permission denied")
    return path
