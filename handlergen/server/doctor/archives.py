"""Checks of the model store: archives that TorchServe refuses, and model settings that it reads differently."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from handlergen.archives.mar import open_mar
from handlergen.errors import HandlergenError, ServerError
from handlergen.project.names import MODEL_CONFIG_FILE
from handlergen.project.settings import shown
from handlergen.server.configuration import archive_command
from handlergen.server.doctor.situation import Finding, Situation, counted, error, note, ok, warning
from handlergen.server.lifecycle import log_directory
from handlergen.server.model_store import (
    StoredArchive,
    archive_files,
    configuration_warnings,
    read_archive,
    selected,
)
from handlergen.server.remembered import last_server
from handlergen.server.starting_models import starting_models

_LARGEST_CONFIG = 1 << 20

#: Model settings for which the archive's own file wins over config.properties (tried with TorchServe 0.12.0).
_ARCHIVE_WINS = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")


def store(situation: Situation) -> Iterator[Finding]:
    """Check that the store exists and contains the models to load."""
    if not situation.settings.model_store:
        yield error("model_store is not set", "TorchServe does not start without it.", "model_store=model-store")
        return
    if not situation.store.is_dir():
        yield (note if situation.text is None else error)(
            f"there is no model store at {situation.store}",
            "TorchServe does not start without it.",
            f"{archive_command(situation.store)}   # creates the store with the first archive",
        )
        return
    try:
        found = selected(situation.store, situation.settings.load_models)
    except ServerError as wrong:
        yield error(wrong.message, "TorchServe would register a model whose workers die.", wrong.hint or "")
        return
    if found:
        yield ok(f"{counted(len(found), 'model')} in {situation.store}")
    else:
        yield note(
            f"nothing is loaded from {situation.store} (load_models={situation.settings.load_models})",
            "A server without models answers no predictions.",
            archive_command(situation.store),
        )


def versions(situation: Situation) -> Iterator[Finding]:
    """Check that each model with several archives has a default version, chosen on the last server."""
    if not (situation.settings.model_store and situation.store.is_dir()):
        return
    last = last_server(situation.config, log_directory(situation.directory, situation.environ))
    try:
        undecided = starting_models(situation.config, situation.settings, last).undecided
    except ServerError:  # a finding of `store`
        return
    for each in undecided:
        yield warning(
            str(each),
            f"Requests that name no version go to the highest one, {each.chosen}, when the server starts.",
            f"{situation.command('update')} {each.model} FILE   # the archive whose version becomes the default\n"
            f"rm {shlex.quote(shown(situation.store))}/FILE   # the archive that is not needed",
        )


def archives(situation: Situation) -> Iterator[Finding]:
    """Check each archive: its model settings, and whether it fits the configuration."""
    if not situation.settings.model_store:
        return
    for path in archive_files(situation.store):
        try:
            with open_mar(path):
                pass
            config = model_config(read_archive(path))
        except HandlergenError as wrong:
            yield error(
                wrong.message,
                "TorchServe refuses the archive, or its workers die.",
                wrong.hint or f"rm {path}",
            )
            continue
        yield from _worker_settings(path.name, config, line=f"{{key}}: {{value}}   # in its {MODEL_CONFIG_FILE}")
        if config.get("asyncCommunication") is True:
            yield warning(
                f"{path.name} has asyncCommunication: true",
                "TorchServe 0.12 loses requests with it, and keeps answered requests in memory forever.",
                f"asyncCommunication: false   # in its {MODEL_CONFIG_FILE}",
            )
    if situation.text is not None:  # `serve` gives the same warnings
        for message in configuration_warnings(situation.config, situation.settings):
            yield warning(message, "The model fails, or its workers are killed.")


def models_key(situation: Situation) -> Iterator[Finding]:
    """Check the key `models` of config.properties: its syntax, and settings that an archive overrides."""
    try:
        settings = {
            (model, version): dict(chosen)
            for model, versions in json.loads(dict(situation.settings.other).get("models", "{}")).items()
            for version, chosen in versions.items()
        }
    except (ValueError, TypeError, AttributeError) as wrong:
        yield error(
            f"models: not JSON of the form {{model: {{version: {{setting: value}}}}}} ({wrong})",
            "TorchServe parses it as JSON, after joining lines that end in a backslash.",
            'models={"NAME": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}',
        )
        return
    stored = {(one.name, one.version): one for one in situation.archives} if settings else {}
    for (model, version), chosen in settings.items():
        archive = stored.get((model, version))
        archived = readable_config(archive) if archive else {}
        overridden = _overridden(chosen, archived)
        if overridden and archive:
            values = ", ".join(f"{key}: {archived[key]}" for key in overridden)
            yield warning(
                f"models: {' and '.join(overridden)} of {model} {version} have no effect",
                f"The {MODEL_CONFIG_FILE} of {archive.path.name} overrides them ({values}).",
                f"{situation.command('scale')} {model} --workers N   # or archive it with other settings",
            )
        effective = {key: value for key, value in chosen.items() if key not in overridden}
        yield from _worker_settings(f"models: {model} {version}", effective, line='in its JSON: "{key}": {value}')


def model_config(archive: StoredArchive) -> dict[str, Any]:
    """Return the model configuration in an archive; empty without one. Raises HandlergenError when it is not YAML."""
    try:
        with zipfile.ZipFile(archive.path) as mar:
            info = mar.NameToInfo.get(archive.config_file)
            if info is None or info.file_size > _LARGEST_CONFIG:
                return {}
            config = yaml.safe_load(mar.read(info))
    except (yaml.YAMLError, UnicodeDecodeError, zipfile.BadZipFile) as wrong:
        raise HandlergenError(f"{archive.path}: {archive.config_file} cannot be read: {wrong}") from wrong
    return config if isinstance(config, dict) else {}


def readable_config(archive: StoredArchive) -> dict[str, Any]:
    """Return the model configuration in an archive; empty when it cannot be read."""
    try:
        return model_config(archive)
    except HandlergenError:  # a finding of `archives`
        return {}


def _overridden(chosen: Mapping[str, Any], archived: Mapping[str, Any]) -> list[str]:
    low, high = archived.get("minWorkers"), archived.get("maxWorkers")
    # TorchServe ignores an invalid pair in the archive (ModelServer.initModelStore).
    valid = isinstance(low, int) and isinstance(high, int) and 0 < low <= high
    return [
        key for key in _ARCHIVE_WINS if key in chosen and key in archived and (valid or not key.endswith("Workers"))
    ]


def _worker_settings(where: str, chosen: Mapping[str, Any], *, line: str) -> Iterator[Finding]:
    """Check a model's workers and batch delay; `line` says how a setting is written, with `{key}` and `{value}`."""
    low, high = chosen.get("minWorkers"), chosen.get("maxWorkers")
    if (low is None) != (high is None):
        given, other = ("minWorkers", "maxWorkers") if high is None else ("maxWorkers", "minWorkers")
        value = low if high is None else high
        yield warning(
            f"{where} has {given} {value} without {other}",
            "TorchServe then ignores it and starts one worker per GPU, or per core without GPUs.",
            line.format(key=other, value=value),
        )
    elif isinstance(low, int) and isinstance(high, int) and low > high:
        yield error(
            f"{where} has minWorkers {low} and maxWorkers {high}",
            "TorchServe ignores such a pair and chooses a number itself.",
            line.format(key="maxWorkers", value=low),
        )
    batch, delay = chosen.get("batchSize", 1), chosen.get("maxBatchDelay")
    if delay is not None and isinstance(delay, int | float) and delay <= 0:
        yield (warning if isinstance(batch, int) and batch > 1 else note)(
            f"{where} has maxBatchDelay {delay}",
            "TorchServe uses its default of 100 ms instead: a single request waits that long for others.",
            line.format(key="maxBatchDelay", value=1),
        )
