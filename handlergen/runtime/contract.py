"""The contract of a user's module and the settings that the runtime reads.

Inspection writes them, the archive has them as `handlergen.json`, the runtime reads them. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

CONTRACT_FILE = "handlergen.json"
"""Name of the contract file in the archive's root."""

#: Parameters that any hook may ask for by name (contract, section 1).
NAMED_PARAMETERS = ("context", "model", "device", "request")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a hook and what is passed to it.

    Attributes:
        name: As written in the source.
        source: What the runtime passes: `data`, `files`, `inputs`, `outputs`, `input_data`, `http_request` (the
            model-class form's `Request`), `metadata` (of the request), one of `NAMED_PARAMETERS`, or `key` (the JSON
            object's value under `name`, `call: keywords`).
        keyword_only: Passed by keyword, not by position.
        required: False when the parameter has a default.
    """

    name: str
    source: str
    keyword_only: bool = False
    required: bool = True


@dataclass(frozen=True)
class Hook:
    """One function of the user's module (or method of the user's class) that the runtime calls.

    Attributes:
        name: The attribute to call.
        line: Line of its `def` in the source file, 1-based; 0 when it has none.
        kind: `sync`, `async`, `generator` or `async_generator`.
        parameters: In the order of the source.
    """

    name: str
    line: int = 0
    kind: str = "sync"
    parameters: tuple[Parameter, ...] = ()

    @property
    def is_async(self) -> bool:
        return self.kind == "async"

    @property
    def streams(self) -> bool:
        return self.kind in ("generator", "async_generator")


@dataclass(frozen=True)
class Contract:
    """What inspection found in a user's module: how the runtime calls it.

    Attributes:
        form: As in the table of forms: `functions`, say.
        module: Import name of the user's module inside the archive.
        hooks: By role: `setup`, `load`, `preprocess`, `predict`, `postprocess`, `explain`, `is_healthy`.
        class_name: The user's class, for the forms that have one.
        call: `positional` or `keywords`: how a predict-only module receives a JSON object.
        details: What only this form needs (plain JSON values).
    """

    form: str
    module: str
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    class_name: str | None = None
    call: str = "positional"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuntimeSettings:
    """The settings that the runtime reads, and the archive therefore has. Seconds and bytes.

    `handlergen.project.settings` has the defaults; an archive has every value.

    Attributes:
        name: The archive's; in a worker, the one that the model is registered under with TorchServe.
        predictor: `worker` (a copy of the model in each) or `process` (one a device, which the workers share).
        stages: Where preprocess and postprocess run with a predictor process: `worker` or `predictor`.
        max_batch: The most requests in one predict of the predictor process.
        linger_ms: How long the predictor process waits for further requests of a batch, in milliseconds.
        examples_at_start: What each worker does with the archive's examples before it is ready: `check` asks them and
            fails if an answer is wrong, `warm` only asks them, `off`.
    """

    name: str
    version: str
    batch: str
    lock: str
    lock_timeout_s: float
    nan: str
    max_response_bytes: int
    weights: str | None
    weights_format: str | None
    config: Mapping[str, Any]
    secrets: tuple[str, ...]
    model_args: tuple[Any, ...]
    model_kwargs: Mapping[str, Any]
    predict_timeout_s: float | None = None
    predictor: str = "worker"
    stages: str = "worker"
    max_batch: int = 32
    linger_ms: float = 0.0
    examples_at_start: str = "check"


@dataclass(frozen=True)
class Bundle:
    """`handlergen.json`: the contract and the runtime's settings, with the version that wrote them."""

    handlergen: str
    contract: Contract
    settings: RuntimeSettings

    def to_json(self) -> str:
        """Return the file's text, with sorted keys: equal bundles give equal bytes."""
        return json.dumps(_plain(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Bundle:
        """Read `handlergen.json`.

        Raises:
            ValueError: The text is not JSON, or has missing or unknown keys (of another version).
        """
        try:
            raw = json.loads(text)
            contract = dict(raw["contract"])
            hooks = {
                role: Hook(**{**hook, "parameters": tuple(Parameter(**p) for p in hook["parameters"])})
                for role, hook in contract.pop("hooks").items()
            }
            settings = dict(raw["settings"])
            settings.pop("stages_auto", None)  # archives of earlier versions have it
            for name in ("secrets", "model_args"):
                settings[name] = tuple(settings[name])
            return cls(raw["handlergen"], Contract(hooks=hooks, **contract), RuntimeSettings(**settings))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{CONTRACT_FILE} is not one that this runtime reads ({error}); archive the model again"
            ) from error


def _plain(value: Any) -> Any:
    """Return dataclasses and mappings as dicts, and tuples as lists, for json."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
