"""`--output`: refused before the work is done, not after it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from handlergen.errors import HandlergenError


def writable(path: Path) -> Path:
    """The path itself, if a file can be written there.

    Raises:
        HandlergenError: It cannot.
    """
    if not path.parent.is_dir():
        raise HandlergenError(f"cannot write {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise HandlergenError(
            f"cannot write {path}: it is a directory", hint=f"name a file in it: {path / 'answer.json'}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise HandlergenError(f"cannot write {path}: permission denied")
    return path


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an OSError of writing there the file's name, which the system gives only to one of opening it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
