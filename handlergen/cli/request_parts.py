"""Parts of a request as they are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click

from handlergen.errors import HandlergenError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")  # RFC 9110, 5.5, without what is obsolete there
_OF_THE_BODY = ("content-length", "transfer-encoding")


def field_of(text: str) -> tuple[str, str | Path]:
    """`NAME=VALUE` or `NAME=@PATH`; a path is made absolute."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--field wants NAME=VALUE or NAME=@PATH, not {text!r}")
    if not _is_text(name):
        raise click.UsageError(f"the name of a field must be UTF-8, not {name!r}")
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
        _check_header(name.strip(), value.strip())
    return headers


def _check_header(name: str, value: str) -> None:
    """Raises click.UsageError for what no HTTP request can carry."""
    if not _NAME.fullmatch(name):
        raise click.UsageError(f"--header: {name!r} is no name of a header (RFC 9110, 5.6.2)")
    if not _VALUE.fullmatch(value):
        raise click.UsageError(
            f"--header: the value {value!r} of {name} has what no header carries; ASCII only, so encode it "
            "(percent-encoding, base64) and let the module decode it"
        )
    if name.lower() in _OF_THE_BODY:
        raise click.UsageError(f"--header: {name} follows from what is sent, and cannot be given")


def _is_text(text: str) -> bool:
    """Was it UTF-8 on the command line? (PEP 383)"""
    return not any("\ud800" <= character <= "\udfff" for character in text)
