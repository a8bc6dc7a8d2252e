"""Redaction for the log and clients: secrets are replaced, tracebacks cut to the user's frames."""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

_SHORTEST = 6
"""Characters. A shorter value is no secret, and may be part of any word."""

_names: dict[str, str] = {}
"""Secret -> name; one table for the process, like the environment that has the values."""
_pattern: re.Pattern[str] | None = None


def hide(secrets: Mapping[str, str]) -> None:
    """Replace these values, given by name, with `[secret NAME]` from now on, however they are quoted."""
    global _pattern  # noqa: PLW0603
    for name, value in secrets.items():
        lines = [value, *value.splitlines()] if "\n" in value else [value]  # a traceback indents each line
        for text in lines:
            for written in (text, quote(text, safe=""), quote(text), quote_plus(text), repr(text)[1:-1]):
                if len(text.strip()) >= _SHORTEST:
                    _names.setdefault(written, name)
                    _names.setdefault(json.dumps(text)[1:-1], name)
    longest_first = sorted(_names, key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def without_secrets(text: str) -> str:
    """Return a text with every secret replaced by its name."""
    if _pattern is None:
        return text
    return _pattern.sub(lambda found: f"[secret {_names[found[0]]}]", text)


class WithoutSecrets(logging.Filter):
    """Removes secrets from a logger's records, including tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _pattern is not None:
            record.msg, record.args = without_secrets(record.getMessage()), None
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                record.exc_text = without_secrets(record.exc_text)
        return True


_RUNTIME = os.path.realpath(Path(__file__).parents[1]) + os.sep
_PACKAGE = __name__.partition(".")[0]
_HANDLER = "handlergen_handler.py"
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def user_traceback(error: BaseException, *, user_root: str) -> str:
    """Return the traceback of an exception, its causes and contexts, each cut to the frames of the user's files.

    If no frame of the whole chain is the user's, nothing is cut: all frames are needed to find the fault. Secrets are
    replaced. The text ends in a line break.

    Args:
        error: Any exception, also an exception group or a SyntaxError.
        user_root: The directory of the user's files: the model directory, or the project's root.
    """
    try:
        report = traceback.TracebackException.from_exception(error)
        every = list(_chain(report))
        own = [[frame for frame in each.stack if _is_own(frame.filename, user_root)] for each in every]
        if any(own):
            for each, frames in zip(every, own):
                each.stack = traceback.StackSummary.from_list(frames)
        elif len(every) == 1 and type(error).__module__.partition(".")[0] == _PACKAGE:
            # The runtime's own error: its message is enough.
            return without_secrets("".join(report.format_exception_only()))
        return without_secrets("".join(report.format()))
    except Exception as trouble:
        # An exception class may make its own formatting fail; the log line must still appear.
        return f"{type(error).__name__} (its traceback cannot be shown: {type(trouble).__name__})\n"


def _chain(report: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting, seen = [report], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        shown = current.__cause__
        if shown is None and not current.__suppress_context__:
            shown = current.__context__
        nested = getattr(current, "exceptions", None) or ()  # exception groups, Python 3.11
        waiting += [each for each in (shown, *nested) if each is not None]


def _is_own(filename: str, user_root: str) -> bool:
    """Return whether a file is the user's: under the root, and neither runtime, handler nor installed package."""
    if filename.startswith("<"):  # no file: `<frozen importlib._bootstrap>`
        return False
    root = os.path.realpath(user_root) + os.sep
    real = os.path.realpath(filename)
    if not real.startswith(root) or real.startswith(_RUNTIME):
        return False
    inside = os.sep + real[len(root) :]
    return inside != os.sep + _HANDLER and not any(part in inside for part in _INSTALLED)
