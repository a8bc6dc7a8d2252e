"""A file's name where JSON was wanted: the most common slip in a request."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

HOW_TO_QUOTE = """quote JSON for the shell: '{"x": 1}'; a text keeps quotes of its own: '"text"'"""


def refuse_file_name(text: str) -> None:
    """Refuse text that is no JSON, but the name of a file that exists.

    Raises:
        click.UsageError: Says how to send the file.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        if _is_file(text.removeprefix("@")):
            path = shlex.quote(text.removeprefix("@"))
            raise click.UsageError(
                f"{text} is no JSON but the name of a file. To send what it holds: --file {path}"
            ) from None


def instead_of(text: str) -> str:
    """The option that was probably meant by an argument that a command does not take."""
    if _is_file(text.removeprefix("@")):
        return f"--file {shlex.quote(text.removeprefix('@'))}"
    return f"--data {shlex.quote(text)}"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, a zero byte
        return False
