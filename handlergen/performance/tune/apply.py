"""Write settings into a `handlergen.yaml`, keeping its comments and order."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.inspection.project import open_project
from handlergen.project.settings import SETTINGS_FILE
from handlergen.project.truss import is_truss
from handlergen.server.configuration import replace_content


def apply(source: Path, settings: Mapping[str, int]) -> Path:
    """Write settings into the settings file of a source, which is created if necessary; return its path.

    Raises:
        HandlergenError: The file cannot be written, or does not decide these settings; it is left unchanged.
    """
    file = _settings_file(source)
    before = file.read_bytes() if file.exists() else None
    if before is None:
        before_text = "" if source.absolute() == file.parent else f"source: {source.absolute().name}\n"
        mark = b""
    else:
        mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
        try:
            before_text = before.removeprefix(mark).decode("utf-8")
        except UnicodeDecodeError as error:
            raise HandlergenError(f"{file} is not UTF-8", hint="save it as UTF-8") from error
    changed = mark + with_settings(before_text, settings).encode()
    problem = ""
    try:
        replace_content(file, changed)
        found = open_project(source).settings
        differs = [name for name, value in settings.items() if getattr(found, name) != value]
        if differs:
            problem = f"{file} does not determine {', '.join(differs)} of {source}"
    except OSError as error:
        raise HandlergenError(f"{file} cannot be written: {error.strerror}") from error
    except HandlergenError as error:
        problem = f"{file} could not be read with the new settings: {error.message}"
    if problem:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            replace_content(file, before)
        raise HandlergenError(
            problem,
            hint="an environment variable may override it, or it has another `source:`; write the settings by hand",
        )
    return file


def _settings_file(source: Path) -> Path:
    """Return the path of a source's settings file, which need not exist."""
    path = source.absolute()
    if path.is_dir() and ((path / SETTINGS_FILE).exists() or is_truss(path)):
        return path / SETTINGS_FILE
    return path.with_name(SETTINGS_FILE)


def with_settings(text: str, settings: Mapping[str, int]) -> str:
    """Return a YAML mapping with these values at the top level.

    A line that sets a value is changed, and keeps its comment; a setting that is commented out (`# batch_size: 1`, as
    `handlergen init` writes) is replaced; a missing setting is appended. A value that is not written on one line raises
    HandlergenError.
    """
    ending = "\r\n" if "\r\n" in text else "\n"
    for name, value in settings.items():
        line = f"{name}: {value}"
        text, changed = re.subn(
            rf"^{name}[ \t]*:[ \t]+[^\s#]+(?=[ \t]*(?:#.*)?\r?$)", line, text, count=1, flags=re.MULTILINE
        )
        if not changed and not _sets(text, name):
            text, changed = re.subn(rf"^#[ \t]?{name}:[^\r\n]*(?=\r?$)", line, text, count=1, flags=re.MULTILINE)
        if not changed and not _sets(text, name):
            text = f"{text.rstrip()}{ending}{line}{ending}" if text.strip() else f"{line}{ending}"
            changed = 1
        if not changed:
            raise HandlergenError(
                f"the setting {name} is written in {SETTINGS_FILE} in a way that this command cannot change",
                hint=f"write it on one line: {line}",
            )
    return text


def _sets(text: str, name: str) -> bool:
    """Return whether the text has this setting."""
    return re.search(rf"""^["']?{name}["']?[ \t]*:""", text, flags=re.MULTILINE) is not None
