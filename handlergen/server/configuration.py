"""Write a server's configuration files; commands of handlergen for a server."""

from __future__ import annotations

import os
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.templates import template_dir
from handlergen.server.properties import (
    ServerSettings,
    change_properties,
    changes,
    read_properties,
    render_properties,
)
from handlergen.server.property_text import read_text

DEFAULT_CONFIG = "config.properties"
DEFAULT_STORE = "model-store"

_OWN_FILES = {"log_config": "log4j2.xml", "metrics_config": "metrics.yaml"}


def handlergen_command(verb: str, config: Path) -> str:
    """Return the command `handlergen VERB` for a server, with `-c` unless its configuration is the default."""
    path = shown(config)
    return f"handlergen {verb}" + ("" if path == DEFAULT_CONFIG else f" -c {shlex.quote(path)}")


def change_command(option: str, config: Path) -> str:
    """Return the command that changes a setting in a server's configuration."""
    path = shown(config)
    return f"handlergen config {option} --force" + ("" if path == DEFAULT_CONFIG else f" -o {shlex.quote(path)}")


def archive_command(store: Path) -> str:
    """Return the command that adds an archive to this model store."""
    path = shown(store)
    return "handlergen archive SOURCE" + ("" if path == DEFAULT_STORE else f" --model-store {shlex.quote(path)}")


def configuration_texts(path: Path, settings: ServerSettings) -> dict[Path, tuple[str, str]]:
    """Return the old and the new text of each file that `settings` need, as far as they differ.

    An existing `path` keeps its comments and the lines whose value stays. The log and metrics configuration that the
    settings name are created if they do not exist.

    Raises:
        HandlergenError: `path` or the settings are invalid.
    """
    texts = {path: ("", render_properties(settings))}
    if path.exists():
        read_properties(path)  # names the file in its errors
        before = read_text(path)
        texts[path] = (before, change_properties(before, settings))
    for field, template in _OWN_FILES.items():
        target = path.parent / getattr(settings, field)
        # A file with another name is the user's own, and an existing file may have been edited: keep both.
        if target.name == template and not target.exists():
            texts[target] = ("", (template_dir() / template).read_text("utf-8"))
    return {target: (before, after) for target, (before, after) in texts.items() if before != after}


def write_configuration(path: Path, settings: ServerSettings, *, force: bool = False) -> list[Path]:
    """Write the files of `configuration_texts`; return what was written.

    Raises:
        HandlergenError: `path` exists with other settings, and `force` is false; or the settings are invalid.
    """
    texts = configuration_texts(path, settings)
    if path in texts and path.exists() and not force:
        new = changes(read_properties(path), settings).items()
        told = ", ".join(f"{key}={before or '(none)'} would become {after or '(none)'}" for key, (before, after) in new)
        raise HandlergenError(
            f"{path} exists with different contents: {told}",
            hint="--force changes these settings and no other line, --diff only shows that; -o writes another file",
        )
    for target, (_, text) in texts.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_content(target, text.encode())
        except OSError as error:
            raise HandlergenError(f"{target} cannot be written: {error}") from error
    return list(texts)


def replace_content(path: Path, content: bytes) -> None:
    """Replace a file's content atomically: no reader sees half of it, even if this process is killed.

    A symbolic link stays a link; its target is replaced.

    Raises:
        OSError: The file cannot be written; its old content is unchanged.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def relative_to_config(store: Path, config: Path) -> str:
    """Return a path relative to the configuration's directory, in which TorchServe runs; an absolute one unchanged."""
    if store.is_absolute():
        return str(store)
    return Path(os.path.relpath(store, config.resolve().parent)).as_posix()
