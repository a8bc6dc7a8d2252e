"""The text format of `config.properties`, as TorchServe reads it.

Two programs read the file, and they differ. The Java frontend uses `java.util.Properties.load`:
ISO-8859-1 bytes, backslash escapes, trailing whitespace kept as part of the value. The Python launcher
(`ts/model_server.py:load_properties`) reads `model_store`, `vmargs` and `plugins_path` itself, as plain text
without escapes, and passes them to Java on its command line: `LAUNCHER_KEYS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LAUNCHER_KEYS = frozenset({"model_store", "vmargs", "plugins_path"})
"""Keys that TorchServe's launcher reads from the raw text: their values are never escaped."""

_BLANKS = " \t\f"
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.?)")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


@dataclass(frozen=True)
class Property:
    """One `key=value` of the file.

    Attributes:
        value: Unescaped; trailing whitespace is kept, as Java keeps it.
        line, last: 1-based lines on which the entry starts and ends.
        problem: Its malformed `\\uXXXX` escape, for which Java refuses the file; empty without one.
    """

    key: str
    value: str
    line: int
    last: int
    problem: str = ""


def read_text(path: Path) -> str:
    """Return the text of a file: UTF-8, as the launcher reads it, else ISO-8859-1, as Java does. Raises OSError."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("iso-8859-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def line_not_utf8(path: Path) -> int:
    """Return the first line with a byte that is not UTF-8, on which the launcher fails, or 0. Raises OSError."""
    raw = path.read_bytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return raw[: error.start].count(b"\n") + 1
    return 0


def parse_entries(text: str) -> list[Property]:
    """Return the entries of a text from `read_text`, in order, without comments (`#`, `!`) and blank lines."""
    entries = []
    for number, last, logical in _logical_lines(text):
        key, value = _split(logical)
        problem = ""
        try:
            key = _unescape(key)
            value = value if key in LAUNCHER_KEYS else _unescape(value)
        except ValueError as error:
            problem = str(error)
        entries.append(Property(key, value, number, last, problem))
    return entries


def edited(text: str, values: Mapping[str, str | None]) -> str:
    """Return a text from `read_text` with new values; all other lines, comments included, stay.

    Args:
        values: Replaces the last entry of each key, which is the one that counts, or comes at the end; None: no entry.

    Raises:
        ValueError: As `format_entry`.
    """
    lines, missing = text.split("\n"), dict(values)
    for entry in reversed(parse_entries(text)):
        if entry.key in values:
            value = missing.pop(entry.key, None)
            lines[entry.line - 1 : entry.last] = [] if value is None else [format_entry(entry.key, value)]
    added = [format_entry(key, value) for key, value in missing.items() if value is not None]
    return "\n".join(lines) if not added else "\n".join(["\n".join(lines).rstrip("\n"), *added, ""])


def format_entry(key: str, value: str) -> str:
    """Return a line `key=value` that both programs understand.

    Raises:
        ValueError: The value contains a line break; or, for one of `LAUNCHER_KEYS`, a backslash or leading or
            trailing whitespace.
    """
    if "\n" in value or "\r" in value:
        raise ValueError(f"{key} must not contain a line break")
    if key in LAUNCHER_KEYS:
        if "\\" in value or value != value.strip():
            raise ValueError(f"{key} must not contain a backslash, or leading or trailing whitespace: {value!r}")
        return f"{key}={value}"
    escaped = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\f", "\\f")
    if escaped.startswith(" "):
        escaped = "\\" + escaped
    # JSON escapes characters outside ASCII as Java does: \uXXXX for each UTF-16 unit.
    return f"{key}=" + "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in escaped)


def _logical_lines(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (first line, last line, text) with comments removed and `\\`-continued lines joined."""
    pending: tuple[int, str] | None = None
    number = 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.lstrip(_BLANKS)
        if pending is None:
            if not line or line[0] in "#!":
                continue
            pending = (number, line)
        else:
            pending = (pending[0], pending[1] + line)
        backslashes = len(pending[1]) - len(pending[1].rstrip("\\"))
        if backslashes % 2:
            pending = (pending[0], pending[1][:-1])
        else:
            yield pending[0], number, pending[1]
            pending = None
    if pending is not None:
        yield pending[0], number, pending[1]


def _split(line: str) -> tuple[str, str]:
    """Split into key and value at the first unescaped `=`, `:` or whitespace."""
    at = 0
    while at < len(line) and line[at] not in "=:" + _BLANKS:
        at += 2 if line[at] == "\\" else 1
    rest = line[at:].lstrip(_BLANKS)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANKS)
    return line[:at], rest


def _unescape(text: str) -> str:
    """Replace backslash escapes. Raises ValueError for a malformed one."""

    def character(escape: re.Match[str]) -> str:
        escaped = escape[1]
        if escaped == "u":
            raise ValueError(f"malformed \\u escape in {text!r}")
        return chr(int(escaped[1:], 16)) if len(escaped) > 1 else _ESCAPES.get(escaped, escaped)

    # \uXXXX escapes name UTF-16 units; two of them make one character beyond the basic plane.
    return _ESCAPE.sub(character, text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
