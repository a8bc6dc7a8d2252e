"""The order in which an archive's files are shown: the user's first, handlergen's runtime last and in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from handlergen.names import HANDLER_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE, RUNTIME_PACKAGE
from handlergen.runtime.contract import CONTRACT_FILE

_Entry = TypeVar("_Entry")
_WRITTEN = (HANDLER_FILE, CONTRACT_FILE, MODEL_CONFIG_FILE, MANIFEST_FILE)


def in_order(entries: Sequence[_Entry], name: Callable[[_Entry], str]) -> tuple[list[_Entry], list[_Entry]]:
    """The files to show first, the user's before those that handlergen writes; and those of the runtime.

    Args:
        name: An entry's path in the archive.
    """
    runtime = [entry for entry in entries if name(entry).startswith(f"{RUNTIME_PACKAGE}/")]
    others = [entry for entry in entries if not name(entry).startswith(f"{RUNTIME_PACKAGE}/")]
    return sorted(others, key=lambda entry: name(entry) in _WRITTEN), runtime


def runtime_line(count: int) -> str:
    """What stands for the runtime's files where they are not listed."""
    return f"{RUNTIME_PACKAGE}/ ({count} files, listed with --all)"
