"""`Situation`, the input of a check, and `Finding`, its output."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, partial
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.server.configuration import handlergen_command
from handlergen.server.launching import ServerState, read_state
from handlergen.server.model_store import StoredArchive, readable_archives
from handlergen.server.properties import ServerSettings, valid_settings
from handlergen.server.property_text import Property, parse_entries, read_text


class Severity(IntEnum):
    """How bad a finding is: a note needs no action, an error keeps the server from working."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        what: What was found.
        why: Why it matters; empty when nothing is wrong.
        fix: A command, or a line of a file; empty when no action is needed.
    """

    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


ok = partial(Finding, Severity.OK)
note = partial(Finding, Severity.NOTE)
warning = partial(Finding, Severity.WARNING)
error = partial(Finding, Severity.ERROR)


@dataclass(frozen=True)
class Situation:
    """The place where a server runs or would run.

    Attributes:
        config: Absolute path of config.properties.
        text: The file's contents; None without the file.
        environ: The environment that the server would be started in.
        temp_dirs: Directories in which TorchServe leaves sockets and its pid file without handlergen.
    """

    config: Path
    text: str | None
    environ: Mapping[str, str]
    temp_dirs: tuple[Path, ...]

    @property
    def directory(self) -> Path:
        """The directory that the configuration's paths are relative to."""
        return self.config.parent

    @cached_property
    def entries(self) -> list[Property]:
        """The file's entries as TorchServe reads them, with trailing whitespace."""
        return parse_entries(self.text or "")

    @cached_property
    def parsed(self) -> tuple[ServerSettings, list[str]]:
        """The settings in the file (without one, the defaults), and the problems of the entries that they leave out."""
        if self.text is None:
            return ServerSettings(), []
        return valid_settings(replace(entry, value=entry.value.rstrip()) for entry in self.entries)

    @property
    def settings(self) -> ServerSettings:
        """The settings in the file; see `parsed`."""
        return self.parsed[0]

    @cached_property
    def archives(self) -> list[StoredArchive]:
        """The readable archives in the store."""
        return readable_archives(self.store) if self.settings.model_store else []

    @property
    def store(self) -> Path:
        """The model store."""
        return self.directory / self.settings.model_store

    @cached_property
    def state(self) -> ServerState | None:
        """The state that `serve` recorded for this configuration."""
        return read_state(self.config)

    @property
    def running(self) -> ServerState | None:
        """The server that `serve` started on this configuration, if it is running."""
        return self.state if self.state is not None and self.state.running() else None

    def command(self, verb: str) -> str:
        """Return the command `handlergen VERB` for this configuration."""
        return handlergen_command(verb, self.config)

    @property
    def restart(self) -> str:
        """The command that restarts the server."""
        return f"{self.command('stop')} && {self.command('serve')}"


def look_around(config: Path, environ: Mapping[str, str] | None = None) -> Situation:
    """Return the situation of a configuration, which need not exist. Raises HandlergenError if it cannot be read."""
    environ = os.environ if environ is None else environ
    config = config.resolve()
    try:
        text = read_text(config) if config.exists() else None
    except OSError as wrong:
        raise HandlergenError(f"{config} cannot be read: {wrong}") from wrong
    named = [tempfile.gettempdir(), environ.get("TEMP"), "/tmp"]  # noqa: S108 - only read
    temp_dirs = dict.fromkeys(Path(name).resolve() for name in named if name)
    return Situation(config, text, environ, tuple(path for path in temp_dirs if path.is_dir()))


def counted(number: int, noun: str) -> str:
    """Return `1 worker` or `2 workers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
