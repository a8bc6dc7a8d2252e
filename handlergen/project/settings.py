"""Every setting of a model: its default, help text and check; settings are read from file < environment < flags.

The flags, the environment variables and the starter `handlergen.yaml` are made from the fields of `Settings`. Server
settings (ports, authorization, the model store) are in `handlergen.server.properties`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from handlergen.errors import Problem
from handlergen.project import setting_kinds as kinds
from handlergen.project.names import check_model_name, check_version
from handlergen.project.setting_kinds import Kind
from handlergen.project.yaml_source import YamlSource, read_yaml
from handlergen.runtime.contract import RuntimeSettings
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS

EXECUTABLE_FORMATS = ("torchscript", "exported", "onnx")
"""Weights formats that include the computation, so that a module needs no `predict` of its own."""

SETTINGS_FILE = "handlergen.yaml"
AUTO_FILES = "auto"
"""The entry of `extra_files` that stands for the files that the source names."""
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


def _setting(default: Any, help: str, kind: Kind, *, group: str = "", example: str = "") -> Any:
    """Define a field of `Settings`; see `SettingInfo` for the arguments."""
    metadata = {"help": help, "kind": kind, "group": group, "example": example}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """One model's settings. Paths are relative to the project's root. Each field's help text says what it means."""

    name: str = _setting(
        "",
        "Name of the model and of its archive; clients call /predictions/NAME. Default: the name of the source file "
        "or directory.",
        kinds.text("a model name", check=check_model_name),
        group="The model",
        example="digits",
    )
    version: str = _setting(
        "1.0",
        "Version of the model, as listed by TorchServe.",
        kinds.text('a version such as "1.0"', check=check_version),
    )
    form: str | None = _setting(
        None,
        "How the module is written. Default: recognised by reading the source.",
        kinds.choice(*FORMS),
        example=DEFAULT_FORM,
    )
    source: str | None = _setting(
        None,
        "The .py file or package that has the hooks. Default: the only .py file beside this one, else model.py.",
        kinds.path(),
        example="digits.py",
    )
    call: str = _setting(
        "auto",
        "How a module that has predict but no preprocess receives a JSON object: positional (one argument) or "
        "keywords (its keys are the arguments). auto: keywords when predict takes several plain parameters.",
        kinds.choice("auto", "positional", "keywords"),
    )
    weights: str | None = _setting(
        None,
        "Weights file; the archive keeps its path relative to the source.",
        kinds.path(),
        group="Packed files",
        example="digits.pt",
    )
    weights_format: str | None = _setting(
        None,
        "Format of the weights file. Default: detected from the file. pickle (form: module) loads a whole pickled "
        "module, which runs any code in the file: use it only for files that you created yourself.",
        kinds.choice(*EXECUTABLE_FORMATS, "safetensors", "state_dict", "pickle", "other"),
        example="state_dict",
    )
    extra_files: tuple[str, ...] = _setting(
        (),
        "Files and directories to pack, or auto: what the source names; each keeps its path relative to the source.",
        kinds.strings("a list of paths", "PATH"),
        example="[labels.json, models/]",
    )
    follow_links: bool = _setting(
        False,
        "Pack what links out of the project lead to, under the link's name. Without it, such a link is an error.",
        kinds.switch(),
        example="true",
    )
    packages: tuple[str, ...] = _setting(
        (),
        "Directories of Python packages to pack; the module imports each by its directory's name.",
        kinds.strings("a list of paths", "PATH"),
        example="[../common/textutils]",
    )
    requirements: tuple[str, ...] = _setting(
        (),
        "Packages that pip must install for the model, or a requirements file (a name that ends in .txt). TorchServe "
        "installs them only with install_py_dep_per_model=true in config.properties, which `handlergen config` writes "
        "if an archive in the model store has requirements.",
        kinds.requirements(),
        example="[pillow>=10]",
    )
    model_args: tuple[Any, ...] = _setting(
        (),
        "Positional arguments of the model's class (form: module).",
        kinds.values(),
        group="Arguments of the module",
        example="[64, 10]",
    )
    model_kwargs: Mapping[str, Any] = _setting(
        {},
        "Keyword arguments of the model's class (form: module).",
        kinds.mapping(),
        example="{hidden: 64}",
    )
    config: Mapping[str, Any] = _setting(
        {},
        "Your own values; hooks read them from context.config.",
        kinds.mapping(),
        example="{threshold: 0.5}",
    )
    secrets: tuple[str, ...] = _setting(
        (),
        "Names of the server's environment variables that hooks read from context.secrets. Only names: values are "
        "never packed.",
        kinds.strings("a list of names"),
        example="[HF_TOKEN]",
    )
    batch: str = _setting(
        "auto",
        "What predict receives when TorchServe delivers several requests at once: each (one call per request), "
        "collate (one collated batch) or list (a list in, a list of the same length out). auto: the default of the "
        "form; each for functions.",
        kinds.choice("auto", "each", "collate", "list"),
        group="Workers, devices and batches",
    )
    batch_size: int = _setting(
        1,
        "Maximum number of requests that TorchServe sends a worker at once. 1: no request waits for another. If "
        "predict takes batches: the batch size that it gains from, divided by the number of workers if there is a "
        "predictor process.",
        kinds.whole(least=1, most=65536),
    )
    max_batch_delay_ms: int = _setting(
        1,
        "How long TorchServe waits for a batch to fill, in milliseconds. A busy device fills batches anyway, and an "
        "idle one gains nothing by waiting: hence 1, the minimum (TorchServe reads 0 as its default of 100).",
        kinds.whole(least=1),
    )
    workers_per_device: int = _setting(
        4,
        "Workers on each device: while one predicts, the others preprocess and postprocess. 4 keep a device busy if "
        "the other two stages take as long as predict. Each has a copy of the model unless there is a predictor "
        "process; if the copies do not fit, write predictor: process, or use fewer workers.",
        kinds.whole(least=1, most=256),
    )
    devices: str | tuple[int, ...] = _setting(
        "auto",
        "auto (every GPU, else the CPU), cpu, or a list of GPU indices such as [0, 1].",
        kinds.devices(),
    )
    predictor: str = _setting(
        "auto",
        "Which process has the model: worker (each worker has its own copy), process (one process per device has the "
        "only copy, and predicts for all workers of that device) or auto (process, but worker for a flow, and for a "
        "module without load and weights).",
        kinds.choice("auto", "process", "worker"),
    )
    stages: str = _setting(
        "auto",
        "Where preprocess and postprocess run if there is a predictor process: worker, or predictor (in threads "
        "beside the model, slower because they share its interpreter). auto: in the workers, unless they use "
        "something that load creates; handlergen check shows what.",
        kinds.choice("auto", "worker", "predictor"),
    )
    max_batch: int = _setting(
        32,
        "Maximum number of requests, of several workers, in one predict (batch: collate or list, with a predictor "
        "process). There are never more than workers_per_device x batch_size.",
        kinds.whole(least=1, most=65536),
    )
    linger_ms: float = _setting(
        0.0,
        "How long an idle device waits for more requests after the first, in milliseconds (with a predictor process). "
        "0: not at all; a busy device fills its batches anyway.",
        kinds.milliseconds(),
    )
    lock: str = _setting(
        "device",
        "device: one predict at a time on each physical device, across all models and servers of this user. model: "
        "one at a time for this model only. none: no lock.",
        kinds.choice("device", "model", "none"),
        group="Time limits and queues",
    )
    lock_timeout_s: float = _setting(
        60.0,
        "How long a request may wait for the device before it gets 503 with Retry-After. The default is half of "
        "response_timeout_s, which leaves the other half for the three stages.",
        kinds.seconds(),
    )
    predict_timeout_s: float | None = _setting(
        None,
        "Time limit of one predict. The other limits are checked against it. A predictor process that exceeds it is "
        "killed and restarted; a worker that predicts itself cannot be interrupted, so that only response_timeout_s "
        "ends it. If predict streams: the time limit from one chunk to the next, after which the stream is ended.",
        kinds.seconds(),
        example="2",
    )
    response_timeout_s: int = _setting(
        120,
        "TorchServe kills a worker that has not answered after this many seconds, and its whole batch fails. Must "
        "exceed preprocess + workers on the device x predict + postprocess.",
        kinds.whole(least=1),
    )
    startup_timeout_s: int = _setting(
        300,
        "How long a worker may take to start and load. Workers of one device load one after another, so that this "
        "limit is for all of them together; TorchServe's default of 120 s is short for large weights.",
        kinds.whole(least=1),
    )
    examples: tuple[Any, ...] = _setting(
        (),
        "Requests and their right answers, as mappings such as {name: three, file: three.png, answer: {digit: 3}}; "
        "those in the directory examples/ need no entry here.",
        kinds.values(),
        group="Examples",
        example="[{json: [1, 2], answer: 3}]",
    )
    examples_at_start: str = _setting(
        "check",
        "What each worker does with the archive's examples before it is READY. check: asks them, and does not start if "
        "an answer is wrong. warm: only asks them. off.",
        kinds.choice("check", "warm", "off"),
    )
    queue_size: int = _setting(
        100,
        "Requests that may wait in TorchServe for a worker; more get 503 at once. 100 is TorchServe's default.",
        kinds.whole(least=1),
    )
    nan: str = _setting(
        "null",
        "NaN and infinities in an answer, which JSON cannot express: null (written as null) or error (a 500).",
        kinds.choice("null", "error"),
        group="Answers and the archive",
    )
    max_response_bytes: int = _setting(
        6_553_500,
        "Maximum size of an answer; a longer one is a 500 for its request. TorchServe closes the worker's connection "
        "above its own max_response_size, so keep this at or below that (6553500 unless configured).",
        kinds.whole(least=1),
    )
    compression: str = _setting(
        "stored",
        "Compression of the archive: stored or deflated. Weights hardly shrink; deflating 512 MB takes ten seconds.",
        kinds.choice("stored", "deflated"),
    )


@dataclass(frozen=True)
class SettingInfo:
    """One setting, as flags and the starter file show it.

    Attributes:
        group: The heading above this setting in the starter file, if it is the first of a group.
        example: YAML text that the starter file shows instead of the default.
    """

    name: str
    default: Any
    help: str
    kind: Kind
    group: str
    example: str

    @property
    def flag(self) -> str:
        """Return `--workers-per-device`; for a list the singular: `--extra-file`."""
        name = self.name.removesuffix("s") if self.kind.repeatable else self.name
        return "--" + name.replace("_", "-")


SETTINGS: Mapping[str, SettingInfo] = {
    item.name: SettingInfo(name=item.name, default=getattr(Settings(), item.name), **item.metadata)
    for item in fields(Settings)
}
"""By name, in the order of the fields."""


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

    def put(key: str, value: Any, file: str, line: int = 0, *, as_text: bool = False) -> None:
        setting = SETTINGS.get(key)
        if setting is None:
            problems.append(Problem(file, line, f"there is no setting `{key}`", _nearest(key)))
        elif value is not None:  # `weights:` without a value is the default, as in the starter file
            try:
                value = setting.kind.parse(value) if as_text else value
                values[key] = setting.kind.convert(value)
            except ValueError as error:
                problems.append(Problem(file, line, *_refusal(setting, value, str(error))))

    written = read_yaml(path, shown=shown(path), as_written=("version", "name")) if path is not None else None
    for source in filter(None, (defaults, written)):
        problems += source.problems
        for key, value in source.values.items():
            put(key, value, source.file, source.lines.get(key, 0))
    for variable, raw in environ.items():
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        # Other programs may use the prefix: only a name that looks misspelt is refused.
        if difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.85):
            put(key, raw, f"environment variable {variable}", as_text=True)
    for key, value in overrides.items():
        put(key, value, f"option {SETTINGS[key].flag if key in SETTINGS else key}")
    return Settings(**values), problems


def to_runtime(settings: Settings) -> RuntimeSettings:
    """Return the part of the settings that the archive carries.

    Args:
        settings: The settings of a `Project`: name filled in, `batch`, `predictor` and `stages` resolved, paths
            normalised.
    """
    values = {item.name: getattr(settings, item.name) for item in fields(RuntimeSettings) if item.name in SETTINGS}
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


def _refusal(setting: SettingInfo, value: Any, reason: str) -> tuple[str, str]:
    """Return message and fix for a value that the setting's kind does not accept."""
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
