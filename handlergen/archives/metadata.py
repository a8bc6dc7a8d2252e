"""The metadata of a `.mar`: manifest, `handlergen.json`, `model-config.yaml`, requirements.

An archive may come from anybody: each value is checked before it is used, as `handlergen archive` checks it before it
writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from handlergen.archives.zip_safety import name_problem
from handlergen.errors import HandlergenError
from handlergen.project import setting_kinds as kinds
from handlergen.project.names import MANIFEST_FILE, check_model_name, check_version
from handlergen.project.settings import SETTINGS
from handlergen.project.yaml_source import DEEPEST, LARGEST_FILE, plain_value
from handlergen.runtime.contract import CONTRACT_FILE, Bundle, Contract, RuntimeSettings
from handlergen.runtime.forms.table import FORMS

LARGEST_TEXT = 16 << 20
"""Maximum size of a manifest or contract, in bytes."""

_DEEPEST = DEEPEST + 6
"""Settings from YAML are nested a few levels deeper in `handlergen.json`."""

_HANDLER = re.compile(r"[\w./-]+(:\w+)?")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_VERSION = re.compile(r"[\w.+!-]{1,100}")
_FILES = ("handler", "modelFile", "serializedFile", "requirementsFile", "configFile")
"""Keys of the manifest that are names of files (archive/model/Manifest.java)."""

#: Settings that the archive has only in resolved form.
_RESOLVED: Mapping[str, kinds.Kind] = {
    "batch": kinds.choice("each", "collate", "list"),
    "predictor": kinds.choice("worker", "process"),
    "stages": kinds.choice("worker", "predictor"),
    "max_batch": kinds.whole(least=1),
}


def manifest_of(text: str) -> dict[str, Any]:
    """Read `MAR-INF/MANIFEST.json`.

    Raises:
        ValueError: It is not a manifest, or a name in it could be used as a path or a command.
    """
    manifest = _mapping(text, MANIFEST_FILE)
    model = manifest.get("model", {})
    if not isinstance(model, dict):
        raise ValueError(f"{MANIFEST_FILE} is not a manifest")
    checks = {"modelName": check_model_name, "modelVersion": check_version, **dict.fromkeys(_FILES, _check_file)}
    for key, check in (*checks.items(), ("handler", _check_handler)):
        value, place = model.get(key), f"{MANIFEST_FILE}: model: {key}"
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{place} is {value!a:.100}, not a string")
        try:
            check(value)
        except (HandlergenError, ValueError) as error:
            raise ValueError(f"{place} {value!a:.100}: {error}") from error
    return manifest


def bundle_of(text: str, names: Collection[str]) -> Bundle:
    """Read `handlergen.json`; `names` are those of the archive's files.

    Raises:
        ValueError: It is not a contract, or has a value that `handlergen archive` does not write.
    """
    _mapping(text, CONTRACT_FILE)
    try:
        bundle = Bundle.from_json(text)
    except AttributeError as error:  # a list where a mapping should be
        message = f"{CONTRACT_FILE} is not readable by this version ({error}); archive the model again"
        raise ValueError(message) from error
    if not isinstance(bundle.handlergen, str) or not _VERSION.fullmatch(bundle.handlergen):
        raise ValueError(f"{CONTRACT_FILE}: {bundle.handlergen!a:.100} is not a version of handlergen")
    _check_contract(bundle.contract, names)
    _check_settings(bundle.settings, names)
    return bundle


def model_config_of(text: str) -> Mapping[str, Any]:
    """Read `model-config.yaml`; empty if it is not a mapping, as for TorchServe.

    Raises:
        ValueError: It is not YAML, or has something that is refused (see `yaml_source`).
    """
    if len(text) > LARGEST_FILE:
        raise ValueError(f"its model configuration has {len(text):,} characters")
    try:
        value = plain_value(text)
    except ValueError as error:
        raise ValueError(f"its model configuration is not YAML ({error})") from error
    return value if isinstance(value, dict) else {}


def requirements_of(text: str) -> tuple[str, ...]:
    """Return the lines of `requirements.txt` without blank ones and comments."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _check_contract(contract: Contract, names: Collection[str]) -> None:
    place = f"{CONTRACT_FILE}: contract"
    if contract.form not in tuple(FORMS):  # a hostile archive may have a list here, which has no hash
        raise ValueError(f"{place}: there is no form {contract.form!a:.100}")
    if contract.call not in ("positional", "keywords"):
        raise ValueError(f"{place}: there is no call {contract.call!a:.100}")
    identifiers: list[Any] = [contract.module, *([] if contract.class_name is None else [contract.class_name])]
    for hook in contract.hooks.values():
        if hook.kind not in ("sync", "async", "generator", "async_generator"):
            raise ValueError(f"{place}: there is no kind {hook.kind!a:.100} of hook")
        identifiers.append(hook.name)
        for parameter in hook.parameters:
            identifiers += [parameter.name, parameter.source]
    for name in identifiers:
        if not isinstance(name, str) or len(name) > 1000 or not _DOTTED.fullmatch(name):
            raise ValueError(f"{place}: {name!a:.100} is not a valid name")
    top = contract.module.partition(".")[0]
    if not any(name == f"{top}.py" or name.startswith(f"{top}/") for name in names):
        raise ValueError(f"{place}: the module {contract.module} is not in the archive")
    if not isinstance(contract.details, dict):
        raise ValueError(f"{place}: its details are not a mapping")
    stages = contract.details.get("stages", [])  # of a flow
    keys = ("type", "file", "shown")
    if not isinstance(stages, list) or any(
        not isinstance(stage, dict) or not all(isinstance(stage.get(key), str) for key in keys) for stage in stages
    ):
        raise ValueError(f"{place}: its stages are not a list of models with type, file and shown")


def _check_settings(settings: RuntimeSettings, names: Collection[str]) -> None:
    place = f"{CONTRACT_FILE}: settings"
    # A setting is nullable if its default is None.
    for key, value in vars(settings).items():
        setting = SETTINGS[key]
        if value is None and setting.default is None:
            continue
        kind = _RESOLVED.get(key, setting.kind)
        try:
            kind.convert(value)
        except (ValueError, TypeError) as error:
            because = f" ({error})" if str(error) else ""
            raise ValueError(f"{place}: {key} is {value!a:.100}; expected {kind.wanted}{because}") from error
    if settings.weights is not None and settings.weights not in names:
        raise ValueError(f"{place}: the weights {settings.weights!a:.100} are not in the archive")


def _check_file(name: str) -> None:
    if (problem := name_problem(name)) is not None:
        raise ValueError(problem)


def _check_handler(name: str) -> None:
    if not _HANDLER.fullmatch(name):
        raise ValueError("is not a handler: expected a file or a name, perhaps with :function")


def _mapping(text: str, file: str) -> dict[str, Any]:
    """Parse a JSON object; refuse duplicate keys, because parsers disagree about which one counts."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is not a JSON object")
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        parts = (part for each in level for part in (each.values() if isinstance(each, dict) else each))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return value
    raise ValueError(f"{file} is nested more than {_DEEPEST} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
