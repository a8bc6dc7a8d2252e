"""What the checks look at, a situation, and what they return, findings."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.server.configuration import handlergen_command
from handlergen.server.launching import ServerState, read_state
from handlergen.server.properties import ServerSettings, parse_properties
from handlergen.server.property_text import (
    LAUNCHER_KEYS,
    Entry,
    format_entry,
    line_not_utf8,
    parse_entries,
    read_text,
)


class Severity(IntEnum):
    """How bad it is: `note` needs nothing done, `warning` may hurt, `error` keeps the server from working."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What is so.
        why: Why it matters; empty when all is well.
        fix: A command, or a line of a file; empty when nothing need be done.
    """

    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


def ok(what: str) -> Finding:
    return Finding(Severity.OK, what)


def note(what: str, why: str = "", fix: str = "") -> Finding:
    return Finding(Severity.NOTE, what, why, fix)


def warning(what: str, why: str, fix: str = "") -> Finding:
    return Finding(Severity.WARNING, what, why, fix)


def error(what: str, why: str, fix: str = "") -> Finding:
    return Finding(Severity.ERROR, what, why, fix)


@dataclass(frozen=True)
class Situation:
    """Where a server runs, or shall run.

    Attributes:
        config: Its config.properties, absolute.
        text: What the file says; None when there is none.
        environ: The environment it would be started in.
        temp_dirs: Where TorchServe leaves sockets and its pid file when it is started without handlergen.
    """

    config: Path
    text: str | None
    environ: Mapping[str, str]
    temp_dirs: tuple[Path, ...]

    @property
    def directory(self) -> Path:
        """What the configuration's paths are relative to."""
        return self.config.parent

    @cached_property
    def entries(self) -> list[Entry]:
        """The file's lines as TorchServe reads them; where it refuses the file, those that are sound by themselves."""
        text = self.text or ""
        try:
            return parse_entries(text)
        except ValueError:
            found = []
            for number, line in enumerate(text.splitlines(), start=1):
                with contextlib.suppress(ValueError):
                    found += [replace(entry, line=number) for entry in parse_entries(line)]
            return found

    @cached_property
    def problem(self) -> str:
        """Why the file means nothing to TorchServe, trailing blanks apart; empty when it does."""
        try:
            self._parsed()
        except HandlergenError as found:
            return found.message
        return ""

    @cached_property
    def foreign_line(self) -> int:
        """The first line with a byte that is not UTF-8; 0 when there is none."""
        return line_not_utf8(self.config) if self.text is not None else 0

    @cached_property
    def settings(self) -> ServerSettings:
        """What the file means, without trailing blanks and lines that mean nothing; without a file the defaults."""
        try:
            return self._parsed()
        except HandlergenError:
            return parse_properties("\n".join(self._sound_lines()))

    @property
    def store(self) -> Path:
        """The model store."""
        return self.directory / self.settings.model_store

    @property
    def logs(self) -> Path:
        """Where TorchServe logs (ConfigManager.java)."""
        return self.directory / self.environ.get("LOG_LOCATION", "logs")

    @cached_property
    def state(self) -> ServerState | None:
        """What `serve` wrote down about the server on this configuration."""
        return read_state(self.config)

    @property
    def running(self) -> ServerState | None:
        """The server that `serve` started on this configuration, if it runs."""
        return self.state if self.state is not None and self.state.running() else None

    def command(self, verb: str) -> str:
        """`handlergen VERB` for this configuration, as it must be typed here."""
        return handlergen_command(verb, self.config)

    @property
    def restart(self) -> str:
        return f"{self.command('stop')} && {self.command('serve')}"

    def _sound_lines(self) -> Iterator[str]:
        """The entries that can be read each by itself, without trailing blanks."""
        for entry in self.entries:
            try:
                line = format_entry(entry.key, entry.value.rstrip())
                parse_properties(line)
            except (HandlergenError, ValueError):
                continue
            yield line

    def _parsed(self) -> ServerSettings:
        if self.text is None:
            return ServerSettings()
        lines = "\n".join(line.rstrip(" \t\f") for line in self.text.splitlines())
        return parse_properties(lines, file=self.config.name)


def look_around(config: Path, environ: Mapping[str, str] | None = None) -> Situation:
    """The situation of a configuration that may or may not exist.

    Raises:
        HandlergenError: The file is there and cannot be read.
    """
    environ = os.environ if environ is None else environ
    config = config.resolve()
    try:
        text = read_text(config) if config.exists() else None
    except OSError as error:
        raise HandlergenError(f"{config} cannot be read: {error}") from error
    named = [tempfile.gettempdir(), environ.get("TEMP"), "/tmp"]  # noqa: S108 - only looked at
    temp_dirs = dict.fromkeys(Path(name).resolve() for name in named if name)
    return Situation(config, text, environ, tuple(path for path in temp_dirs if path.is_dir()))


def trailing_blanks(entry: Entry) -> bool:
    """Whether Java takes blanks at the end of this line for a part of the value."""
    return entry.key not in LAUNCHER_KEYS and entry.value != entry.value.rstrip()
