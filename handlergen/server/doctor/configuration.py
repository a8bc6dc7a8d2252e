"""config.properties: what TorchServe misreads, ignores or stumbles over; who can use the server; its ports."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.templates import template_dir
from handlergen.server.configuration import exposures
from handlergen.server.doctor.files import is_plain_server
from handlergen.server.doctor.situation import Finding, Situation, error, note, ok, trailing_blanks, warning
from handlergen.server.ports import command_of, listeners, taken
from handlergen.server.properties import check, unknown_keys

_FREE_A_PORT = "stop that program, or choose another port: handlergen config --help"


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
    if situation.foreign_line:
        yield error(
            f"{name}:{situation.foreign_line}: there is a byte that is not UTF-8",
            "TorchServe's launcher ends with a traceback; Java would take the file for ISO-8859-1.",
            "write letters outside ASCII as \\uXXXX",
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


def named_files(situation: Situation) -> Iterator[Finding]:
    """Files that the configuration names; what happens without them was tried with TorchServe 0.12.0."""
    if situation.text is None:
        return
    write = "handlergen config -o NEW/config.properties   # writes one beside it, to copy"
    logs = situation.settings.log_config.removeprefix("file://")
    if logs and not (situation.directory / logs).is_file():
        yield warning(
            f"vmargs names {logs}, which is not there",
            "TorchServe logs as it does by default: several lines per request, which cost up to half the throughput.",
            write,
        )
    metrics = situation.settings.metrics_config
    if metrics and not (situation.directory / metrics).is_file():
        yield error(
            f"metrics_config names {metrics}, which is not there",
            "Every worker dies when it starts.",
            write,
        )


def undeclared_metrics(situation: Situation) -> Iterator[Finding]:
    """A metrics file that was written before handlergen had these metrics, or by somebody else."""
    named = situation.settings.metrics_config
    if situation.text is None or not named:
        return
    try:
        text = (situation.directory / named).read_text("utf-8", "replace")
    except OSError:
        return
    names = re.findall(r"name: (handlergen_\w+)", (template_dir() / "metrics.yaml").read_text("utf-8"))
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    if missing:
        yield note(
            f"{named} does not declare {', '.join(missing)}",
            "TorchServe drops metrics that are not declared: GET /metrics is without them.",
            "handlergen config -o NEW/config.properties   # writes one beside it, to copy the lines from",
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


def opened(situation: Situation) -> Iterator[Finding]:
    """What `serve` warns of, too."""
    found = exposures(situation.settings)
    for one in found:
        yield (error if one.severe else warning)(one.what, one.why, one.fix)
    if not found:
        yield ok(
            "only this machine reaches the server, with tokens, and only the store's archives are loaded"
        )


def ports(situation: Situation) -> Iterator[Finding]:
    """Each address, against who listens."""
    held = listeners()
    running = situation.running
    addresses = situation.settings.addresses()
    free, own, stock = [], [], set()
    for purpose, (host, port) in addresses.items():
        problem = taken({purpose: (host, port)})
        holder = held.get(port)
        if running is not None and holder == running.pid:
            own.append(port)
        elif running is not None:
            yield warning(
                f"the running server (pid {running.pid}) does not listen on port {port} ({purpose})",
                "The configuration was changed after it had been started, or somebody else holds the port.",
                situation.restart,
            )
        elif holder is not None and is_plain_server(holder, situation.directory):
            stock.add(holder)
        elif problem:
            who = f", by {command_of(holder)}" if holder is not None and port in held else ""
            text = problem[0] if "in use" not in problem[0] else f"port {port} ({purpose}) is in use{who}"
            yield error(text, "The server cannot start.", _FREE_A_PORT)
        else:
            free.append(port)
    if own and running is not None:
        yield ok(f"ports {_listed(own)}: the running server (pid {running.pid})")
    for pid in sorted(stock):
        yield note(
            f"a TorchServe that `handlergen serve` did not start (pid {pid}) runs here and holds these ports",
            "`handlergen status`, `invoke` and `scale` work with it; `serve` is refused, `stop` does not know it.",
            "torchserve --stop",
        )
    if free:
        yield ok(f"ports {_listed(free)} are free")


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
