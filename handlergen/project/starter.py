"""Starter projects, which `check` accepts and `archive` packs as they are, and a commented handlergen.yaml."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from handlergen.errors import HandlergenError
from handlergen.project.names import propose
from handlergen.project.settings import SETTINGS, SETTINGS_FILE
from handlergen.project.templates import template_dir
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS

_WIDTH = 96


def create_starter(directory: Path, *, form: str = DEFAULT_FORM) -> tuple[str, tuple[Path, ...]]:
    """Write a starter project, made from `templates/starters/FORM`.

    Args:
        directory: Created if it does not exist; it may hold files with other names.
        form: A form of the form table.

    Returns:
        The model's name (the directory's, made valid) and the files written.

    Raises:
        HandlergenError: A file exists already (then nothing is written), or the directory cannot be created.
    """
    if form not in FORMS:
        raise HandlergenError(f"there is no form {form!r}", hint=f"The forms are: {', '.join(FORMS)}.")
    starter = template_dir() / "starters" / form
    files = [path for path in sorted(starter.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    texts = {path.relative_to(starter).as_posix(): path.read_text(encoding="utf-8") for path in files}
    name = propose(directory.resolve().name)
    module = next(file for file in texts if file.endswith(".py"))
    package = FORMS[form].package
    requirements = {"requirements": (package,)} if package else {}
    texts[SETTINGS_FILE] = starter_yaml({"name": name, "source": module, **requirements})
    return name, _write(directory, texts)


def create_settings(directory: Path, source: Path | None, *, form: str | None = None) -> tuple[str, tuple[Path, ...]]:
    """Write a `handlergen.yaml` for a module that exists.

    Args:
        source: A `.py` file or package in `directory`, or `directory` itself; None: a Truss directory, whose own
            configuration names its module.
        form: The module's form; None: recognised by reading it.

    Returns:
        The model's name (the module's, made valid) and the file written.

    Raises:
        HandlergenError: As `create_starter`.
    """
    place = directory.resolve()
    if source is None:
        values = {}
    else:
        own = place if source.stem == "model" else source.resolve()
        relative = source.resolve().relative_to(place).as_posix()
        values = {"name": propose(own.stem if own.is_file() else own.name), "source": relative}
    values |= {"form": form} if form else {}
    name = values.get("name") or propose(place.name)
    return name, _write(directory, {SETTINGS_FILE: starter_yaml(values)})


def _write(directory: Path, texts: Mapping[str, str]) -> tuple[Path, ...]:
    """Write new files into a directory, and return them; raise HandlergenError if one exists."""
    if directory.exists() and not directory.is_dir():
        raise HandlergenError(f"{directory} is a file", hint="Name a directory; it may be new.")
    existing = [file for file in texts if (directory / file).exists() or (directory / file).is_symlink()]
    if existing:
        raise HandlergenError(
            f"{directory} already has {', '.join(existing)}; nothing was written",
            hint="Name another directory, or move these files away.",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (directory / file).parent.mkdir(exist_ok=True)
            with (directory / file).open("x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        raise HandlergenError(
            f"{error.filename or directory} cannot be written: {error.strerror}",
            hint="Name a directory that you may write to.",
        ) from error
    return tuple(directory / file for file in texts)


def starter_yaml(values: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the text of a `handlergen.yaml` that explains every setting.

    Args:
        values: Settings to write out; all others are comments that show their defaults.

    Returns:
        YAML that `read_settings` reads back as `values`.
    """
    lines = [
        "# Settings of this model. A line that is commented out shows the default, or else an example.",
        "# An environment variable overrides this file (HANDLERGEN_BATCH_SIZE=8), a flag overrides both "
        "(--batch-size 8).",
    ]
    for setting in SETTINGS.values():
        if setting.group:
            lines += ["", f"# ---- {setting.group} ".ljust(_WIDTH, "-")]
        lines += ["", *(f"# {line}" for line in textwrap.wrap(setting.help, _WIDTH))]
        if setting.name in values:
            lines.append(f"{setting.name}: {_yaml(values[setting.name])}")
        else:
            shown = setting.example or ("" if setting.default is None else _yaml(setting.default))
            lines.append(f"# {setting.name}: {shown}".rstrip())
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """Return a value in YAML's flow style, on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
