"""Settings of a model: read (file < environment < flags), checked one by one, and checked against one another.

The fields, with their defaults, help texts and checks, are in `handlergen.project.setting_fields`.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

from handlergen.errors import Problem
from handlergen.project.setting_fields import EXECUTABLE_FORMATS, SETTINGS, SettingInfo, Settings
from handlergen.project.yaml_source import YamlSource, read_yaml
from handlergen.runtime.contract import RuntimeSettings
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS, FormRow

__all__ = [
    "ENVIRONMENT_PREFIX",
    "EXECUTABLE_FORMATS",
    "SETTINGS",
    "SETTINGS_FILE",
    "SettingInfo",
    "Settings",
    "archive_path",
    "contradictions",
    "read_settings",
    "shown",
    "to_runtime",
]

SETTINGS_FILE = "handlergen.yaml"
"""Name of a project's settings file."""

ENVIRONMENT_PREFIX = "HANDLERGEN_"
"""`HANDLERGEN_BATCH_SIZE=8` sets `batch_size`."""

# Variables with the prefix that are not settings: the runtime and other parts of handlergen read them.
_OTHER_VARIABLES = ("HANDLERGEN_TRACE_DIR", "HANDLERGEN_STATE_DIR")

_TYPES_IN_WORDS = {
    str: "a string",
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def read_settings(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    defaults: YamlSource | None = None,
) -> tuple[Settings, list[Problem]]:
    """Load settings from a file, the environment and flags; each overrides those before it.

    Args:
        path: A `handlergen.yaml`; None if there is none.
        environ: The environment, e.g. `os.environ`; `HANDLERGEN_<KEY>` sets a key.
        overrides: Python values by setting name; None values are skipped (a flag that was not used).
        defaults: Settings from another file (a Truss's `config.yaml`), which all others override.

    Returns:
        The settings, and every problem: unknown keys (with the nearest valid name), wrong types (key, value and
        expected type), unreadable YAML. A wrong value leaves the default in place.

    Raises:
        OSError: The file cannot be read.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    written = read_yaml(path, shown=shown(path), as_written=("version", "name")) if path is not None else None
    for source in filter(None, (defaults, written)):
        problems += source.problems
        for key, value in source.values.items():
            _set(values, problems, key, value, file=source.file, line=source.lines.get(key, 0))
    for variable, raw in environ.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _OTHER_VARIABLES:
            _set_from_variable(values, problems, variable, raw)
    for key, value in overrides.items():
        if value is not None:
            flag = SETTINGS[key].flag if key in SETTINGS else key
            _set(values, problems, key, value, file=f"option {flag}", line=0)
    return Settings(**values), problems


def to_runtime(settings: Settings) -> RuntimeSettings:
    """Return the part of the settings that the archive carries.

    Args:
        settings: The settings of a `Project`: name filled in, `batch`, `predictor` and `stages` resolved, paths
            normalised.
    """
    names = [item.name for item in fields(RuntimeSettings) if item.name in SETTINGS]
    values = {name: getattr(settings, name) for name in names}
    values["weights"] = archive_path(settings.weights) if settings.weights else None
    return RuntimeSettings(**values)


def archive_path(path: str) -> str:
    """Return the path in the archive of a file in a `Project`'s settings: its path in the project, POSIX-style.

    A file outside the project has an absolute path in the settings; in the archive it is in the root.
    """
    place = PurePosixPath(Path(path).as_posix())
    return place.name if Path(path).is_absolute() else str(place)


def shown(path: Path) -> str:
    """Return a path for messages: relative to the current directory if it is below it."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    try:
        relative = absolute.relative_to(Path.cwd())
    except (ValueError, OSError):
        return str(absolute)
    return str(relative)


def _set(values: dict[str, Any], problems: list[Problem], key: str, value: Any, *, file: str, line: int) -> None:
    setting = SETTINGS.get(key)
    if setting is None:
        problems.append(Problem(file, line, f"there is no setting `{key}`", _nearest(key)))
    elif value is None:
        return  # `weights:` without a value is the default, as in the starter file
    else:
        try:
            values[key] = setting.kind.convert(value)
        except ValueError as error:
            problems.append(Problem(file, line, *_refusal(setting, value, error)))


def _set_from_variable(values: dict[str, Any], problems: list[Problem], variable: str, raw: str) -> None:
    key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    file = f"environment variable {variable}"
    setting = SETTINGS.get(key)
    if setting is None:
        # Other programs may use the prefix: only a name that looks misspelt is refused.
        if difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.85):
            problems.append(Problem(file, 0, f"there is no setting `{key}`", _nearest(key)))
        return
    try:
        value = setting.kind.parse(raw)
    except ValueError as error:
        problems.append(Problem(file, 0, *_refusal(setting, raw, error)))
        return
    _set(values, problems, key, value, file=file, line=0)


def _refusal(setting: SettingInfo, value: Any, error: ValueError) -> tuple[str, str]:
    """Return message and fix for a value that the setting's kind does not accept."""
    reason = str(error)
    if reason.startswith("invalid literal") or reason.startswith("could not convert"):
        reason = ""  # from int() or float(): the message below is clearer
    if reason:
        return f"`{setting.name}`: {reason}", f"Expected {setting.kind.wanted}."
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    kind = _TYPES_IN_WORDS.get(type(value), f"a {type(value).__name__}")
    return f"`{setting.name}` is {text}, {kind}; expected {setting.kind.wanted}", ""


def _nearest(key: str) -> str:
    flat = {name.replace("_", ""): name for name in SETTINGS}
    simple = key.lower().replace("-", "").replace("_", "").replace(" ", "")
    near = difflib.get_close_matches(simple, flat, n=1, cutoff=0.6)
    return f"Did you mean `{flat[near[0]]}`?" if near else f"The settings are: {', '.join(SETTINGS)}."


def contradictions(
    settings: Settings, *, weights_bytes: int | None = None, device_bytes: int | None = None
) -> list[str]:
    """Return a warning for each setting that conflicts with others or has no effect with them.

    These are not errors, because each value alone is allowed. Each warning says what to write instead.

    Args:
        settings: Resolved or not; `batch: auto` counts as `each`, `predictor: auto` as `worker`.
        weights_bytes: Size of the weights file, if there is one.
        device_bytes: Memory of the smallest device (for the CPU, of the whole machine), if it is known.
    """
    return [
        *_times(settings),
        *_batches(settings),
        *_predictor(settings),
        *_memory(settings, weights_bytes, device_bytes),
    ]


def _times(settings: Settings) -> list[str]:
    found = []
    limit = settings.response_timeout_s
    locked = settings.lock != "none"
    if locked and settings.lock_timeout_s >= limit:
        found.append(
            f"lock_timeout_s ({settings.lock_timeout_s:g}) is not below response_timeout_s ({limit}): "
            f"TorchServe kills a worker that waits for the device before its request can get 503. "
            f"Write lock_timeout_s: {limit / 2:g}."
        )
    elif locked and settings.lock_timeout_s > 0.8 * limit:
        found.append(
            f"lock_timeout_s ({settings.lock_timeout_s:g}) leaves {limit - settings.lock_timeout_s:g} s of "
            f"response_timeout_s ({limit}) for preprocess, predict and postprocess. "
            f"Write lock_timeout_s: {limit / 2:g}."
        )
    predict = settings.predict_timeout_s
    if predict is None:
        return found
    if predict >= limit:
        found.append(
            f"predict_timeout_s ({predict:g}) is not below response_timeout_s ({limit}): "
            f"TorchServe kills the worker first. Raise response_timeout_s."
        )
        return found
    calls = settings.batch_size if settings.batch in ("each", "auto") else 1
    workers = settings.workers_per_device if locked or _process(settings) else 1
    what = "workers on a device"
    # One predict takes the requests of several workers.
    if _process(settings) and settings.batch in ("collate", "list"):
        workers, what = math.ceil(workers * settings.batch_size / settings.max_batch), "batches"
    queue = workers * calls * predict
    if queue >= limit:
        each = f" x {calls} requests of a batch, one after another" if calls > 1 else ""
        found.append(
            f"{workers} {what}{each} x predict_timeout_s ({predict:g}) are {queue:g} s, "
            f"longer than response_timeout_s ({limit}): the last worker is killed while it waits. "
            f"Raise response_timeout_s above {queue:g}, or lower workers_per_device or batch_size."
        )
    return found


def _batches(settings: Settings) -> list[str]:
    found = []
    if settings.batch_size == 1 and settings.max_batch_delay_ms > 1:
        found.append(
            f"max_batch_delay_ms ({settings.max_batch_delay_ms}) has no effect with batch_size: 1. "
            f"Raise batch_size, or remove max_batch_delay_ms."
        )
    # Where collate is the form's default, a lone sample is a batch of one.
    # A predictor process makes batches of several workers' requests.
    alone = settings.batch_size == 1 and not _process(settings)
    if alone and settings.batch in ("collate", "list") and _form(settings).batch == "each":
        found.append(
            f"batch: {settings.batch} with batch_size: 1: predict never receives more than one request. "
            f"Write batch_size: 8, for example."
        )
    if settings.queue_size < settings.batch_size:
        found.append(
            f"queue_size ({settings.queue_size}) is below batch_size ({settings.batch_size}): "
            f"no batch can fill. Write queue_size: {max(100, 4 * settings.batch_size)}."
        )
    return found


def _predictor(settings: Settings) -> list[str]:
    """Check the settings that only a predictor process reads."""
    changed = [name for name in ("max_batch", "linger_ms") if getattr(settings, name) != SETTINGS[name].default]
    alone = ""
    if not _process(settings):
        alone, instead = "predictor: worker", "Write predictor: process"
    elif settings.batch in ("each", "auto"):
        alone, instead = "batch: each: predict takes one request", "Write batch: collate or list"
    if alone:
        return [
            f"{name} ({getattr(settings, name):g}) has no effect with {alone}. {instead}, or remove {name}."
            for name in changed
        ]
    if settings.linger_ms and settings.max_batch == 1:
        return [
            f"linger_ms ({settings.linger_ms:g}) has no effect with max_batch: 1: there is nothing to wait for. "
            f"Remove it."
        ]
    if settings.max_batch < settings.batch_size:
        return [
            f"max_batch ({settings.max_batch}) is below batch_size ({settings.batch_size}): each batch from "
            f"TorchServe is split. Write max_batch: {settings.batch_size}."
        ]
    under_way = settings.workers_per_device * settings.batch_size
    if "max_batch" in changed and settings.max_batch > under_way:
        fitting = math.ceil(settings.max_batch / settings.workers_per_device)
        return [
            f"max_batch ({settings.max_batch}) is never reached: {settings.workers_per_device} workers with "
            f"{settings.batch_size} request{'s' if settings.batch_size > 1 else ''} each bring {under_way}. "
            f"Write batch_size: {fitting}, or more workers."
        ]
    return []


def _memory(settings: Settings, weights_bytes: int | None, device_bytes: int | None) -> list[str]:
    if not weights_bytes or not device_bytes:
        return []
    if _process(settings):
        if weights_bytes <= device_bytes:
            return []
        return [
            f"the weights are {_gib(weights_bytes)}, and the device has {_gib(device_bytes)}. "
            f"A smaller model or a larger device is needed."
        ]
    copies = settings.workers_per_device
    if copies * weights_bytes <= device_bytes:
        return []
    fitting = max(1, device_bytes // weights_bytes)
    one_copy = "" if _form(settings).several_models else "predictor: process for one copy, or "
    change = "A smaller model or a larger device is needed." if fitting >= copies else ""
    return [
        f"{copies} workers on a device have {copies} copies of the weights, "
        f"{_gib(copies * weights_bytes)} in total; the device has {_gib(device_bytes)}. "
        + (change or f"Write {one_copy}workers_per_device: {fitting} at most.")
    ]


def _form(settings: Settings) -> FormRow:
    return FORMS[settings.form or DEFAULT_FORM]


def _process(settings: Settings) -> bool:
    return settings.predictor == "process"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
