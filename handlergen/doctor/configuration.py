"""Traps in config.properties: what TorchServe misreads, ignores or stumbles over."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

from handlergen.doctor.finding import Finding, error, note, ok, warning
from handlergen.doctor.situation import Situation, trailing_blanks
from handlergen.errors import HandlergenError
from handlergen.properties import check, unknown_keys
from handlergen.settings import shown

_NAMED_FILES = (
    ("log_config", "vmargs", "the log configuration"),
    ("metrics_config", "metrics_config", "metrics"),
)


def file(situation: Situation) -> Iterator[Finding]:
    """Whether there is a configuration at all."""
    if situation.text is None:
        yield note(
            f"there is no {situation.config.name} in {situation.directory}",
            "What follows is checked against handlergen's defaults, which `serve` writes.",
            f"handlergen config -o {shlex.quote(shown(situation.config))}",
        )
    else:
        yield ok(str(situation.config))


def syntax(situation: Situation) -> Iterator[Finding]:
    """Lines that mean something else than they seem to."""
    name = situation.config.name
    if situation.problem:
        yield error(
            situation.problem,
            "TorchServe does not start on it, or takes it for something else. The other checks leave the line out.",
            "handlergen config --help   # the settings, and what they may be",
        )
    for entry in situation.entries:
        shown = f"{entry.key}={entry.value.rstrip()}"
        if trailing_blanks(entry):
            yield error(
                f"{name}:{entry.line}: the value of {entry.key} ends in blanks: {entry.value!r}",
                "Java takes them as part of the value: a number aborts the start, true is read as false.",
                shown,
            )
        if " #" in entry.value or "\t#" in entry.value:
            yield warning(
                f"{name}:{entry.line}: what looks like a comment is part of the value: {entry.value!r}",
                "Comments stand on lines of their own.",
                f"{entry.key}={entry.value.partition('#')[0].rstrip()}",
            )
    for key, times in Counter(entry.key for entry in situation.entries).items():
        if times > 1:
            lines = [str(entry.line) for entry in situation.entries if entry.key == key]
            last = [entry.value for entry in situation.entries if entry.key == key][-1]
            yield warning(
                f"{name}: {key} stands there {times} times, in lines {', '.join(lines)}",
                f"Only the last one counts: {last.rstrip()!r}.",
                f"keep one line {key}=…",
            )


def unknown(situation: Situation) -> Iterator[Finding]:
    """Keys that nobody reads."""
    for message in unknown_keys(situation.settings):
        yield warning(
            message, "A line that does nothing was meant to do something.", "correct or remove the line"
        )


def values(situation: Situation) -> Iterator[Finding]:
    """Values that can be read and still cannot work: ports twice, sizes out of range."""
    try:
        check(situation.settings)
    except HandlergenError as wrong:
        for line in wrong.message.splitlines():
            yield error(line, "TorchServe does not start on it.", "handlergen config --help")


def models(situation: Situation) -> Iterator[Finding]:
    """The key `models`: JSON that sets workers and batches of models beside what their archives say."""
    try:
        settings = model_settings(situation)
    except (ValueError, TypeError, AttributeError) as wrong:
        yield error(
            f"models: not JSON of the form {{model: {{version: {{setting: value}}}}}} ({wrong})",
            "TorchServe reads it with a JSON parser, after backslashes at the ends of lines are joined.",
            'models={"NAME": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}',
        )
        return
    for (model, version), chosen in settings.items():
        yield from worker_traps(f"models: {model} {version}", chosen, line='in its JSON: "{key}": {value}')


def model_settings(situation: Situation) -> dict[tuple[str, str], dict[str, Any]]:
    """(Model, version) -> what the key `models` says of it. Raises ValueError, TypeError, AttributeError."""
    text = dict(situation.settings.other).get("models", "{}")
    return {
        (model, version): dict(chosen)
        for model, versions in json.loads(text).items()
        for version, chosen in versions.items()
    }


def worker_traps(where: str, chosen: dict[str, Any], *, line: str) -> Iterator[Finding]:
    """What a model's settings for TorchServe can get wrong, in the key `models` or in an archive.

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


def named_files(situation: Situation) -> Iterator[Finding]:
    """Files that the configuration names."""
    for field, key, purpose in _NAMED_FILES:
        named = getattr(situation.settings, field)
        named = named.removeprefix("file://")
        if situation.text is not None and named and not (situation.directory / named).is_file():
            yield warning(
                f"{key} names {named}, which is not there",
                f"TorchServe falls back to {purpose} of its own, or does not start.",
                "handlergen config -o NEW/config.properties   # writes one beside it, to copy",
            )


def environment(situation: Situation) -> Iterator[Finding]:
    """Variables that take the place of what the file says."""
    named = situation.environ.get("TS_CONFIG_FILE")
    if named and (situation.directory / named).resolve() != situation.config:
        yield warning(
            f"TS_CONFIG_FILE={named}",
            f"Plain `torchserve` reads that file instead of {situation.config.name}, whatever --ts-config says; "
            "`handlergen serve` does not.",
            "unset TS_CONFIG_FILE",
        )
    other = dict(situation.settings.other)
    if other.get("enable_envvars_config", "").lower() == "true":
        set_now = sorted(
            name for name in situation.environ if name.startswith("TS_") and name != "TS_CONFIG_FILE"
        )
        yield note(
            "enable_envvars_config=true: variables TS_… win over this file"
            + (f"; set now: {', '.join(set_now)}" if set_now else ""),
            "handlergen reads the file alone: it may look for the server elsewhere.",
            "enable_envvars_config=false",
        )
