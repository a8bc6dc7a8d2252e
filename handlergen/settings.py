"""Settings of a model: file < environment < flags, checked, with every problem reported at once.

`Settings` and each field's default, help and check stand in `handlergen.setting_fields`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from handlergen.errors import ContractError, Problem
from handlergen.runtime.contract import RuntimeSettings
from handlergen.setting_checks import contradictions
from handlergen.setting_fields import EXECUTABLE_FORMATS, FORMS, SETTINGS, SettingInfo, Settings
from handlergen.starter_yaml import starter_yaml
from handlergen.yaml_source import read_yaml

__all__ = [
    "ENVIRONMENT_PREFIX",
    "EXECUTABLE_FORMATS",
    "FORMS",
    "SETTINGS",
    "SETTINGS_FILE",
    "SettingInfo",
    "Settings",
    "SettingsBeneath",
    "archive_path",
    "contradictions",
    "load_settings",
    "read_settings",
    "shown",
    "starter_yaml",
    "to_runtime",
]

SETTINGS_FILE = "handlergen.yaml"
"""Name of a project's settings file."""

ENVIRONMENT_PREFIX = "HANDLERGEN_"
"""`HANDLERGEN_BATCH_SIZE=8` sets `batch_size`."""

# Variables with the prefix that are no settings: the runtime's, and those of other parts of handlergen.
_OTHER_VARIABLES = ("HANDLERGEN_TRACE_DIR", "HANDLERGEN_STATE_DIR")

_KINDS_IN_WORDS = {
    str: "a string",
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def load_settings(
    path: Path | None, *, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from a file, then the environment, then flags; the later win.

    Args:
        path: A `handlergen.yaml`; None when there is none.
        environ: The environment, e.g. `os.environ`; `HANDLERGEN_<KEY>` sets a key.
        overrides: By setting name, as Python values; None values are skipped (a flag that was not given).

    Raises:
        ContractError: With every problem: unknown keys (and the nearest valid name), wrong types (key, value
            and type wanted), unreadable YAML.
        OSError: The file cannot be read.
    """
    settings, problems = read_settings(path, environ=environ, overrides=overrides or {})
    if problems:
        raise ContractError(sorted(problems))
    return settings


@dataclass(frozen=True)
class SettingsBeneath:
    """Settings that another file makes (a Truss's `config.yaml`); `handlergen.yaml` and all else win over them.

    Attributes:
        file: Its name for messages.
        values: By setting.
        lines: Line of each, 1-based.
    """

    file: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_settings(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    beneath: SettingsBeneath | None = None,
) -> tuple[Settings, list[Problem]]:
    """`load_settings` that returns its problems; a refused value leaves the setting at its default."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    if beneath is not None:
        for key, value in beneath.values.items():
            _take(values, problems, key, value, file=beneath.file, line=beneath.lines.get(key, 0))
    if path is not None:
        source = read_yaml(path, shown=shown(path), as_written=("version", "name"))
        problems += source.problems
        for key, value in source.values.items():
            _take(values, problems, key, value, file=source.file, line=source.lines.get(key, 0))
    for variable, raw in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _OTHER_VARIABLES:
            _take_variable(values, problems, variable, raw)
    for key, value in overrides.items():
        if value is not None:
            flag = SETTINGS[key].flag if key in SETTINGS else key
            _take(values, problems, key, value, file=f"option {flag}", line=0)
    return Settings(**values), problems


def to_runtime(settings: Settings) -> RuntimeSettings:
    """The part of the settings that travels in the archive.

    Args:
        settings: Of a `Project`, that is: name filled, `batch`, `predictor` and `stages` resolved, paths
            normalised.
    """
    return RuntimeSettings(
        name=settings.name,
        version=settings.version,
        batch=settings.batch,
        lock=settings.lock,
        lock_timeout_s=settings.lock_timeout_s,
        nan=settings.nan,
        max_response_bytes=settings.max_response_bytes,
        weights=archive_path(settings.weights) if settings.weights else None,
        weights_format=settings.weights_format,
        config=settings.config,
        secrets=settings.secrets,
        model_args=settings.model_args,
        model_kwargs=settings.model_kwargs,
        predict_timeout_s=settings.predict_timeout_s,
        predictor=settings.predictor,
        stages=settings.stages,
        max_batch=settings.max_batch,
        linger_ms=settings.linger_ms,
    )


def archive_path(path: str) -> str:
    """Where a file of a `Project`'s settings lies in the archive: its place in the project, POSIX-style.

    A file outside the project has an absolute path there and lands in the archive's root under its own name.
    """
    place = PurePosixPath(Path(path).as_posix())
    return place.name if Path(path).is_absolute() else str(place)


def shown(path: Path) -> str:
    """A path for messages: relative to the current directory when it lies below it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    try:
        relative = absolute.relative_to(Path.cwd())
    except (ValueError, OSError):
        return str(absolute)
    return str(relative)


def _take(
    values: dict[str, Any], problems: list[Problem], key: str, value: Any, *, file: str, line: int
) -> None:
    setting = SETTINGS.get(key)
    if setting is None:
        problems.append(Problem(file, line, f"there is no setting `{key}`", _nearest(key)))
    elif value is None:
        return  # `weights:` with nothing behind it is the default, as in the starter file
    else:
        try:
            values[key] = setting.kind.convert(value)
        except ValueError as error:
            problems.append(Problem(file, line, *_refusal(setting, value, error)))


def _take_variable(values: dict[str, Any], problems: list[Problem], variable: str, raw: str) -> None:
    key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    file = f"environment variable {variable}"
    setting = SETTINGS.get(key)
    if setting is None:
        # Others may use the prefix for their own ends: only what looks like a slip is refused.
        if difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.85):
            problems.append(Problem(file, 0, f"there is no setting `{key}`", _nearest(key)))
        return
    try:
        value = setting.kind.parse(raw)
    except ValueError as error:
        problems.append(Problem(file, 0, *_refusal(setting, raw, error)))
        return
    _take(values, problems, key, value, file=file, line=0)


def _refusal(setting: SettingInfo, value: Any, error: ValueError) -> tuple[str, str]:
    """Message and fix for a value that the setting's kind does not take."""
    reason = str(error)
    if reason.startswith("invalid literal") or reason.startswith("could not convert"):
        reason = ""  # int() and float() on text: our own words are clearer
    if reason:
        return f"`{setting.name}`: {reason}", f"Wanted: {setting.kind.wanted}."
    given = str(value).lower() if isinstance(value, bool) else repr(value)
    given = given if len(given) <= 60 else given[:57] + "..."
    kind = _KINDS_IN_WORDS.get(type(value), f"a {type(value).__name__}")
    return f"`{setting.name}` is {given}, {kind}; wanted: {setting.kind.wanted}", ""


def _nearest(key: str) -> str:
    flat = {name.replace("_", ""): name for name in SETTINGS}
    simple = key.lower().replace("-", "").replace("_", "").replace(" ", "")
    near = difflib.get_close_matches(simple, flat, n=1, cutoff=0.6)
    return f"Did you mean `{flat[near[0]]}`?" if near else f"The settings are: {', '.join(SETTINGS)}."
