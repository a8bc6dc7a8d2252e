"""Keeps the values of secrets out of what is written for others: logs, tracebacks, error bodies.

A library that fails often puts what it was called with into its exception's text: the address with the key in it, the
header with the token. What a hook returns, prints or stores is the user's own and is left alone.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

SHORTEST = 6
"""Characters; a shorter value is no secret anybody could keep, and may be part of any word."""

# One table a process, as the environment that the values come from is one.
_names: dict[str, str] = {}
_pattern: re.Pattern[str] | None = None


def hide(secrets: Mapping[str, str]) -> None:
    """Write `[secret NAME]` in place of these values from now on, however they are quoted.

    Args:
        secrets: Values by name.
    """
    global _pattern  # noqa: PLW0603
    for name, value in secrets.items():
        lines = [value, *value.splitlines()] if "\n" in value else [value]  # a traceback indents each line
        for text in lines:
            for written in (text, quote(text, safe=""), quote(text), quote_plus(text), repr(text)[1:-1]):
                if len(text.strip()) >= SHORTEST:
                    _names.setdefault(written, name)
                    _names.setdefault(json.dumps(text)[1:-1], name)
    longest_first = sorted(_names, key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def without_secrets(text: str) -> str:
    """`text` with every hidden value replaced by its name."""
    if _pattern is None:
        return text
    return _pattern.sub(lambda found: f"[secret {_names[found[0]]}]", text)


class WithoutSecrets(logging.Filter):
    """Takes secrets out of a logger's records, their tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _pattern is not None:
            record.msg, record.args = without_secrets(record.getMessage()), None
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                record.exc_text = without_secrets(record.exc_text)
        return True
