"""The key `models` of config.properties: JSON that sets workers and batches of models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from handlergen.doctor.archives import readable_archives
from handlergen.doctor.finding import Finding, error, warning
from handlergen.doctor.situation import Situation
from handlergen.doctor.worker_traps import worker_traps
from handlergen.names import MODEL_CONFIG_FILE

#: What an archive's own file wins over (tried with TorchServe 0.12.0).
_OVERRULED = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")


def models(situation: Situation) -> Iterator[Finding]:
    """What it gets wrong, and what it says in vain because the model's archive says it, too."""
    try:
        settings = _settings(situation)
    except (ValueError, TypeError, AttributeError) as wrong:
        yield error(
            f"models: not JSON of the form {{model: {{version: {{setting: value}}}}}} ({wrong})",
            "TorchServe reads it with a JSON parser, after backslashes at the ends of lines are joined.",
            'models={"NAME": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}',
        )
        return
    archives = {(one.name, one.version): one for one in readable_archives(situation)} if settings else {}
    for (model, version), chosen in settings.items():
        archive = archives.get((model, version))
        vain = _vain(chosen, archive.config) if archive is not None else []
        if vain and archive is not None:
            said = ", ".join(f"{key}: {archive.config[key]}" for key in vain)
            yield warning(
                f"models: {model} {version} sets {' and '.join(vain)} in vain",
                f"What {archive.path.name} says in its {MODEL_CONFIG_FILE} wins ({said}).",
                f"{situation.command('scale')} {model} --workers N   # or archive it with other settings",
            )
        counts = {key: value for key, value in chosen.items() if key not in vain}
        yield from worker_traps(f"models: {model} {version}", counts, line='in its JSON: "{key}": {value}')


def _settings(situation: Situation) -> dict[tuple[str, str], dict[str, Any]]:
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
