"""Every setting of a model, with its default, its help text and its check.

The flags, the environment variables and the starter `handlergen.yaml` are made from the fields of `Settings`. Server
settings (ports, authorization, the model store) are in `handlergen.server.properties`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.project import setting_kinds as kinds
from handlergen.project.names import check_model_name, check_version
from handlergen.project.setting_kinds import Kind
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS

EXECUTABLE_FORMATS = ("torchscript", "exported", "onnx")
"""Weights formats that include the computation, so that a module needs no `predict` of its own."""


def _setting(default: Any, help: str, kind: Kind, *, group: str, example: str = "") -> Any:
    """Define a field of `Settings`. `example` is YAML text that the starter file shows instead of the default."""
    metadata = {"help": help, "kind": kind, "group": group, "example": example}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _checked(check: Callable[[str], None], wanted: str) -> Kind:
    """Return the kind of a string that passes a check of `handlergen.project.names`."""
    plain = kinds.text(wanted=wanted)

    def convert(value: Any) -> str:
        converted: str = plain.convert(value)
        try:
            check(converted)
        except HandlergenError as error:
            raise ValueError(error.message) from error
        return converted

    return dataclasses.replace(plain, convert=convert)


_MODEL, _FILES, _PREDICTION, _WORKERS, _TIME, _ANSWERS = (
    "The model",
    "Packed files",
    "Arguments of the module",
    "Workers, devices and batches",
    "Time limits and queues",
    "Answers and the archive",
)


@dataclass(frozen=True)
class Settings:
    """One model's settings. Paths are relative to the project's root. Each field's help text says what it means."""

    name: str = _setting(
        "",
        "Name of the model and of its archive; clients call /predictions/NAME. "
        "Default: the name of the source file or directory.",
        _checked(check_model_name, "a model name"),
        group=_MODEL,
        example="digits",
    )
    version: str = _setting(
        "1.0",
        "Version of the model, as listed by TorchServe.",
        _checked(check_version, 'a version such as "1.0"'),
        group=_MODEL,
    )
    form: str | None = _setting(
        None,
        "How the module is written. Default: recognised by reading the source.",
        kinds.choice(*FORMS),
        group=_MODEL,
        example=DEFAULT_FORM,
    )
    source: str | None = _setting(
        None,
        "The .py file or package that has the hooks. Default: the only .py file beside this one, else model.py.",
        kinds.path(),
        group=_MODEL,
        example="digits.py",
    )
    call: str = _setting(
        "auto",
        "How a module that has predict but no preprocess receives a JSON object: positional (one argument) "
        "or keywords (its keys are the arguments). auto: keywords when predict takes several plain "
        "parameters.",
        kinds.choice("auto", "positional", "keywords"),
        group=_MODEL,
    )
    weights: str | None = _setting(
        None,
        "Weights file; the archive keeps its path relative to the source.",
        kinds.path(),
        group=_FILES,
        example="digits.pt",
    )
    weights_format: str | None = _setting(
        None,
        "Format of the weights file. Default: detected from the file. pickle (form: module) loads a whole pickled "
        "module, which runs any code in the file: use it only for files that you created yourself.",
        kinds.choice(*EXECUTABLE_FORMATS, "safetensors", "state_dict", "pickle", "other"),
        group=_FILES,
        example="state_dict",
    )
    extra_files: tuple[str, ...] = _setting(
        (),
        "Files and directories to pack; each keeps its path relative to the source.",
        kinds.strings(wanted="a list of paths", metavar="PATH"),
        group=_FILES,
        example="[labels.json, models/]",
    )
    packages: tuple[str, ...] = _setting(
        (),
        "Directories of Python packages to pack; the module imports each by its directory's name.",
        kinds.strings(wanted="a list of paths", metavar="PATH"),
        group=_FILES,
        example="[../common/textutils]",
    )
    requirements: tuple[str, ...] = _setting(
        (),
        "Packages that pip must install for the model, or a requirements file (a name that ends in .txt). TorchServe "
        "installs them only with install_py_dep_per_model=true in config.properties, which `handlergen config` "
        "writes if an archive in the model store has requirements.",
        kinds.requirements(),
        group=_FILES,
        example="[pillow>=10]",
    )
    model_args: tuple[Any, ...] = _setting(
        (),
        "Positional arguments of the model's class (form: module).",
        kinds.values(),
        group=_PREDICTION,
        example="[64, 10]",
    )
    model_kwargs: Mapping[str, Any] = _setting(
        {},
        "Keyword arguments of the model's class (form: module).",
        kinds.mapping(),
        group=_PREDICTION,
        example="{hidden: 64}",
    )
    config: Mapping[str, Any] = _setting(
        {},
        "Your own values; hooks read them from context.config.",
        kinds.mapping(),
        group=_PREDICTION,
        example="{threshold: 0.5}",
    )
    secrets: tuple[str, ...] = _setting(
        (),
        "Names of the server's environment variables that hooks read from context.secrets. Only names: values "
        "are never packed.",
        kinds.strings(wanted="a list of names"),
        group=_PREDICTION,
        example="[HF_TOKEN]",
    )
    batch: str = _setting(
        "auto",
        "What predict receives when TorchServe delivers several requests at once: each (one call per request), "
        "collate (one collated batch) or list (a list in, a list of the same length out). auto: the default "
        "of the form; each for functions.",
        kinds.choice("auto", "each", "collate", "list"),
        group=_WORKERS,
    )
    batch_size: int = _setting(
        1,
        "Maximum number of requests that TorchServe sends a worker at once. 1: no request waits for another. If "
        "predict takes batches: the batch size that it gains from, divided by the number of workers if there is a "
        "predictor process.",
        kinds.whole(least=1, most=65536),
        group=_WORKERS,
    )
    max_batch_delay_ms: int = _setting(
        1,
        "How long TorchServe waits for a batch to fill, in milliseconds. A busy device fills batches "
        "anyway, and an idle one gains nothing by waiting: hence 1, the minimum (TorchServe reads 0 as "
        "its default of 100).",
        kinds.whole(least=1),
        group=_WORKERS,
    )
    workers_per_device: int = _setting(
        4,
        "Workers on each device: while one predicts, the others preprocess and postprocess. 4 keep a device "
        "busy if the other two stages take as long as predict. Each has a copy of the model unless there is a "
        "predictor process; if the copies do not fit, write predictor: process, or use fewer workers.",
        kinds.whole(least=1, most=256),
        group=_WORKERS,
    )
    devices: str | tuple[int, ...] = _setting(
        "auto",
        "auto (every GPU, else the CPU), cpu, or a list of GPU indices such as [0, 1].",
        kinds.devices(),
        group=_WORKERS,
    )
    predictor: str = _setting(
        "auto",
        "Which process has the model: worker (each worker has its own copy), process (one process per device "
        "has the only copy, and predicts for all workers of that device) or auto (process, but worker for a "
        "flow, and for a module without load and weights).",
        kinds.choice("auto", "process", "worker"),
        group=_WORKERS,
    )
    stages: str = _setting(
        "auto",
        "Where preprocess and postprocess run if there is a predictor process: worker, or predictor (in threads "
        "beside the model; slower, because they share its interpreter). auto: in the workers, unless they use "
        "something that load creates; handlergen check shows what.",
        kinds.choice("auto", "worker", "predictor"),
        group=_WORKERS,
    )
    max_batch: int = _setting(
        32,
        "Maximum number of requests, of several workers, in one predict (batch: collate or list, with a "
        "predictor process). There are never more than workers_per_device x batch_size.",
        kinds.whole(least=1, most=65536),
        group=_WORKERS,
    )
    linger_ms: float = _setting(
        0.0,
        "How long an idle device waits for more requests after the first, in milliseconds (with a predictor "
        "process). 0: not at all; a busy device fills its batches anyway.",
        kinds.milliseconds(),
        group=_WORKERS,
    )
    lock: str = _setting(
        "device",
        "device: one predict at a time on each physical device, across all models and servers of this user. "
        "model: one at a time for this model only. none: no lock.",
        kinds.choice("device", "model", "none"),
        group=_TIME,
    )
    lock_timeout_s: float = _setting(
        60.0,
        "How long a request may wait for the device before it gets 503 with Retry-After. The default is half of "
        "response_timeout_s, which leaves the other half for the three stages.",
        kinds.seconds(),
        group=_TIME,
    )
    predict_timeout_s: float | None = _setting(
        None,
        "Time limit of one predict. The other limits are checked against it. A predictor process that exceeds it "
        "is killed and restarted; a worker that predicts itself cannot be interrupted, so that only "
        "response_timeout_s ends it. If predict streams: the time limit from one chunk to the next, after which "
        "the stream is ended.",
        kinds.seconds(),
        group=_TIME,
        example="2",
    )
    response_timeout_s: int = _setting(
        120,
        "TorchServe kills a worker that has not answered after this many seconds, and its whole batch fails. "
        "Must exceed preprocess + workers on the device x predict + postprocess.",
        kinds.whole(least=1),
        group=_TIME,
    )
    startup_timeout_s: int = _setting(
        300,
        "How long a worker may take to start and load. Workers of one device load one after another, so that "
        "this limit is for all of them together; TorchServe's default of 120 s is short for large weights.",
        kinds.whole(least=1),
        group=_TIME,
    )
    queue_size: int = _setting(
        100,
        "Requests that may wait in TorchServe for a worker; more get 503 at once. 100 is TorchServe's default.",
        kinds.whole(least=1),
        group=_TIME,
    )
    nan: str = _setting(
        "null",
        "NaN and infinities in an answer, which JSON cannot express: null (written as null) or error (a 500).",
        kinds.choice("null", "error"),
        group=_ANSWERS,
    )
    max_response_bytes: int = _setting(
        6_553_500,
        "Maximum size of an answer; a longer one is a 500 for its request. TorchServe closes the worker's "
        "connection above its own max_response_size, so keep this at or below that (6553500 unless "
        "configured).",
        kinds.whole(least=1),
        group=_ANSWERS,
    )
    compression: str = _setting(
        "stored",
        "Compression of the archive: stored or deflated. Weights hardly shrink; deflating 512 MB takes ten seconds.",
        kinds.choice("stored", "deflated"),
        group=_ANSWERS,
    )


@dataclass(frozen=True)
class SettingInfo:
    """One setting, as flags and the starter file show it."""

    name: str
    default: Any
    help: str
    kind: Kind
    group: str
    example: str

    @property
    def flag(self) -> str:
        """Return `--workers-per-device`; for a list the singular: `--extra-file`."""
        name = self.name
        if self.kind.repeatable and name.endswith("s"):
            name = name.removesuffix("s")
        return "--" + name.replace("_", "-")


def _info() -> dict[str, SettingInfo]:
    blank = Settings()
    return {
        item.name: SettingInfo(name=item.name, default=getattr(blank, item.name), **item.metadata)
        for item in fields(Settings)
    }


SETTINGS: Mapping[str, SettingInfo] = _info()
"""By name, in the order of the fields."""
