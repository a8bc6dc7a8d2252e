"""Parts of a request as they are written on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from handlergen.errors import HandlergenError


def field_of(text: str) -> tuple[str, str | Path]:
    """`NAME=VALUE` or `NAME=@PATH`; a path is made absolute."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--field wants NAME=VALUE or NAME=@PATH, not {text!r}")
    if not value.startswith("@"):
        return name, value
    path = Path(value[1:])
    if not path.is_file():
        raise HandlergenError(f"there is no file {path}", hint=f"--field {name}=@PATH sends a file")
    return name, path.absolute()


def headers_of(texts: Iterable[str]) -> dict[str, str]:
    """`NAME:VALUE`, each."""
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not name.strip() or not colon:
            raise click.UsageError(f"--header wants NAME:VALUE, not {text!r}")
        headers[name.strip()] = value.strip()
    return headers
