"""Commands that messages tell the user to run, as they must be typed where the user is."""

from __future__ import annotations

import shlex
from pathlib import Path

from handlergen.settings import shown

DEFAULT_CONFIG = "config.properties"
DEFAULT_STORE = "model-store"


def handlergen_command(verb: str, config: Path) -> str:
    """`handlergen VERB` for the server on this configuration: with `-c` unless it is the default one here."""
    path = shown(config)
    return f"handlergen {verb}" + ("" if path == DEFAULT_CONFIG else f" -c {shlex.quote(path)}")


def archive_command(store: Path) -> str:
    """The command that puts an archive into this model store."""
    path = shown(store)
    return "handlergen archive SOURCE" + (
        "" if path == DEFAULT_STORE else f" --model-store {shlex.quote(path)}"
    )
