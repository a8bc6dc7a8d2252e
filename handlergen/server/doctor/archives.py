"""The model store: archives that TorchServe would refuse, and settings of models that it would read otherwise."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from handlergen.archives.mar import open_mar, read_manifest
from handlergen.errors import HandlergenError, ServerError
from handlergen.project.names import MODEL_CONFIG_FILE
from handlergen.runtime.contract import CONTRACT_FILE
from handlergen.server.configuration import archive_command, configuration_warnings
from handlergen.server.doctor.situation import Finding, Situation, error, note, ok, warning
from handlergen.server.readiness import expected_models

_LARGEST_CONFIG = 1 << 20

#: What an archive's own file wins over (tried with TorchServe 0.12.0).
_OVERRULED = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")


@dataclass(frozen=True)
class Archive:
    """What is needed of an archive here; nothing is unpacked.

    Attributes:
        name, version: Of the model.
        size: Bytes of its files, unpacked.
        config: Its model-config.yaml.
        shares_model: The workers have no copies: one process a device holds the model.
    """

    path: Path
    name: str
    version: str
    size: int
    config: dict[str, Any] = field(default_factory=dict)
    shares_model: bool = False


def store(situation: Situation) -> Iterator[Finding]:
    """The store, and whether what shall be loaded lies in it."""
    named = situation.settings.model_store
    if not named:
        yield error(
            "model_store is not set",
            "TorchServe does not start without it.",
            "model_store=model-store",
        )
        return
    if not situation.store.is_dir():
        yield (note if situation.text is None else error)(
            f"there is no model store at {situation.store}",
            "TorchServe does not start without it.",
            f"{archive_command(situation.store)}   # makes it, with the first archive",
        )
        return
    try:
        found = expected_models(situation.store, situation.settings.load_models)
    except ServerError as wrong:
        yield error(wrong.message, "TorchServe would register a model whose workers die.", wrong.hint or "")
        return
    if found:
        yield ok(f"{len(found)} model{'' if len(found) == 1 else 's'} in {situation.store}")
    else:
        yield note(
            f"nothing is loaded from {situation.store} (load_models={situation.settings.load_models})",
            "A server without models answers no predictions.",
            archive_command(situation.store),
        )


def archives(situation: Situation) -> Iterator[Finding]:
    """Each archive's own settings for TorchServe."""
    for path in mar_files(situation):
        try:
            archive = read_archive(path)
        except HandlergenError as wrong:
            yield error(
                wrong.message, "TorchServe refuses it, or its workers die.", wrong.hint or f"rm {path}"
            )
            continue
        yield from _worker_traps(
            path.name, archive.config, line=f"{{key}}: {{value}}   # in its {MODEL_CONFIG_FILE}"
        )
        if archive.config.get("asyncCommunication") is True:
            yield warning(
                f"{path.name} has asyncCommunication: true",
                "TorchServe 0.12 loses requests with it, and never lets go of those it has answered.",
                f"asyncCommunication: false   # in its {MODEL_CONFIG_FILE}",
            )


def fit(situation: Situation) -> Iterator[Finding]:
    """What `serve` warns of, too: requirements nobody installs, answers larger than the server takes."""
    if situation.text is not None and situation.store.is_dir():
        for message in configuration_warnings(situation.config, situation.settings):
            yield warning(message, "The model fails, or its workers are killed.")


def models_key(situation: Situation) -> Iterator[Finding]:
    """The key `models` of config.properties: what is wrong in it, and what a model's archive overrides."""
    try:
        settings = _models_key(situation)
    except (ValueError, TypeError, AttributeError) as wrong:
        yield error(
            f"models: not JSON of the form {{model: {{version: {{setting: value}}}}}} ({wrong})",
            "TorchServe reads it with a JSON parser, after backslashes at the ends of lines are joined.",
            'models={"NAME": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}',
        )
        return
    stored = {(one.name, one.version): one for one in readable_archives(situation)} if settings else {}
    for (model, version), chosen in settings.items():
        archive = stored.get((model, version))
        vain = _vain(chosen, archive.config) if archive is not None else []
        if vain and archive is not None:
            said = ", ".join(f"{key}: {archive.config[key]}" for key in vain)
            yield warning(
                f"models: {model} {version} sets {' and '.join(vain)} in vain",
                f"What {archive.path.name} says in its {MODEL_CONFIG_FILE} wins ({said}).",
                f"{situation.command('scale')} {model} --workers N   # or archive it with other settings",
            )
        counts = {key: value for key, value in chosen.items() if key not in vain}
        yield from _worker_traps(f"models: {model} {version}", counts, line='in its JSON: "{key}": {value}')


def mar_files(situation: Situation) -> list[Path]:
    return sorted(situation.store.glob("*.mar")) if situation.settings.model_store else []


def read_archive(path: Path) -> Archive:
    """Raises HandlergenError when it is none."""
    manifest, names = read_manifest(path)
    said = manifest.get("model")
    model = said if isinstance(said, dict) else {}
    named = str(model.get("modelName", path.stem)), str(model.get("modelVersion", "1.0"))
    file = str(model.get("configFile") or MODEL_CONFIG_FILE)
    with open_mar(path) as opened:
        size = sum(info.file_size for info in opened.infolist())
        if file not in names or opened.getinfo(file).file_size > _LARGEST_CONFIG:
            return Archive(path, *named, size)
        try:
            config = yaml.safe_load(opened.read(file))
        except (yaml.YAMLError, UnicodeDecodeError, zipfile.BadZipFile) as wrong:
            raise HandlergenError(f"{path}: {file} cannot be read: {wrong}") from wrong
        shares = CONTRACT_FILE in names and _shares_model(opened.read(CONTRACT_FILE))
    return Archive(path, *named, size, config if isinstance(config, dict) else {}, shares)


def _shares_model(bundle: bytes) -> bool:
    try:
        return bool(json.loads(bundle)["settings"]["predictor"] == "process")
    except (ValueError, KeyError, TypeError):
        return False


def readable_archives(situation: Situation) -> list[Archive]:
    """Those of the store that can be read; the others are a finding of their own."""
    found = []
    for path in mar_files(situation):
        with contextlib.suppress(HandlergenError):
            found.append(read_archive(path))
    return found


def _models_key(situation: Situation) -> dict[tuple[str, str], dict[str, Any]]:
    """(Model, version) -> what is said of it. Raises ValueError, TypeError, AttributeError."""
    text = dict(situation.settings.other).get("models", "{}")
    return {
        (model, version): dict(chosen)
        for model, versions in json.loads(text).items()
        for version, chosen in versions.items()
    }


def _vain(chosen: Mapping[str, Any], archived: Mapping[str, Any]) -> list[str]:
    low, high = archived.get("minWorkers"), archived.get("maxWorkers")
    # A pair that is none falls through (ModelServer.initModelStore).
    sound = isinstance(low, int) and isinstance(high, int) and 0 < low <= high
    return [
        key
        for key in _OVERRULED
        if key in chosen and key in archived and (sound or not key.endswith("Workers"))
    ]


def _worker_traps(where: str, chosen: Mapping[str, Any], *, line: str) -> Iterator[Finding]:
    """Numbers of workers that do not fit together, a batch delay that is none.

    Args:
        where: Put before what is found.
        chosen: minWorkers, maxWorkers, batchSize, maxBatchDelay, ...
        line: How a setting is written there, with `{key}` and `{value}`.
    """
    low, high = chosen.get("minWorkers"), chosen.get("maxWorkers")
    if (low is None) != (high is None):
        given, other = ("minWorkers", "maxWorkers") if high is None else ("maxWorkers", "minWorkers")
        value = low if high is None else high
        yield warning(
            f"{where} has {given} {value} without {other}",
            "TorchServe then takes the number of GPUs, or else of cores, instead of what was meant.",
            line.format(key=other, value=value),
        )
    elif isinstance(low, int) and isinstance(high, int) and low > high:
        yield error(
            f"{where} has minWorkers {low} and maxWorkers {high}",
            "TorchServe does not take such a pair, and chooses a number itself.",
            line.format(key="maxWorkers", value=low),
        )
    batch, delay = chosen.get("batchSize", 1), chosen.get("maxBatchDelay")
    if delay is not None and isinstance(delay, int | float) and delay <= 0:
        yield (warning if isinstance(batch, int) and batch > 1 else note)(
            f"{where} has maxBatchDelay {delay}",
            "TorchServe reads it as its default, 100 ms: a request that is alone waits that long for others.",
            line.format(key="maxBatchDelay", value=1),
        )
