"""Checks of config.properties: misread values, ignored keys, access from other machines, and ports."""

from __future__ import annotations

import ipaddress
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Iterator

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.templates import template_dir
from handlergen.server.certificates import check_tls
from handlergen.server.doctor.files import is_plain_server
from handlergen.server.doctor.situation import (
    Finding,
    Situation,
    counted,
    error,
    note,
    ok,
    warning,
)
from handlergen.server.ports import command_of, listeners, unavailable
from handlergen.server.properties import NO_URL, ServerSettings, check, host_and_port, unknown_keys
from handlergen.server.property_text import LAUNCHER_KEYS, line_not_utf8

_SOON_DAYS = 30
_FREE_A_PORT = "stop that program, or choose another port: handlergen config --help"
_ANY_URL = "https://example.org/model.mar"
_WRITE_ANOTHER = "handlergen config -o NEW/config.properties   # writes one beside it, to copy from"


def file(situation: Situation) -> Iterator[Finding]:
    """Check that the configuration exists, and for lines that do not mean what they seem to."""
    name = situation.config.name
    if situation.text is None:
        yield note(
            f"there is no {name} in {situation.directory}",
            "The other checks use handlergen's defaults, which `serve` writes.",
            f"handlergen config -o {shlex.quote(shown(situation.config))}",
        )
        return
    yield ok(str(situation.config))
    if problems := situation.parsed[1]:
        yield error(
            "\n".join(f"{name}:{problem}" for problem in problems),
            "TorchServe does not start with this line, or misreads it. The other checks leave it out.",
            "handlergen config --help   # lists the settings and their values",
        )
    if line := line_not_utf8(situation.config):
        yield error(
            f"{name}:{line}: a byte that is not UTF-8",
            "TorchServe's launcher fails with a traceback; Java would read the file as ISO-8859-1.",
            "write characters outside ASCII as \\uXXXX",
        )
    by_key = defaultdict(list)
    for entry in situation.entries:
        by_key[entry.key].append(entry)
        if entry.key not in LAUNCHER_KEYS and entry.value != entry.value.rstrip():
            yield error(
                f"{name}:{entry.line}: the value of {entry.key} has trailing whitespace: {entry.value!r}",
                "Java reads it as part of the value: a number aborts the start, true is read as false.",
                f"{entry.key}={entry.value.rstrip()}",
            )
        if " #" in entry.value or "\t#" in entry.value:
            yield warning(
                f"{name}:{entry.line}: what looks like a comment is part of the value: {entry.value!r}",
                "A comment needs a line of its own.",
                f"{entry.key}={entry.value.partition('#')[0].rstrip()}",
            )
    for key, entries in by_key.items():
        if len(entries) > 1:
            yield warning(
                f"{name}: {key} is set {len(entries)} times, in lines {', '.join(str(e.line) for e in entries)}",
                f"Only the last value counts: {entries[-1].value.rstrip()!r}.",
                f"keep one line {key}=…",
            )


def values(situation: Situation) -> Iterator[Finding]:
    """Check for keys that TorchServe does not know, and for settings that it cannot start with."""
    for message in unknown_keys(situation.settings):
        yield warning(message, "The line has no effect.", "correct or remove the line")
    try:
        check(situation.settings)
    except HandlergenError as wrong:
        for line in wrong.message.splitlines():
            yield error(line, "TorchServe does not start with it.", "handlergen config --help")


def named_files(situation: Situation) -> Iterator[Finding]:
    """Check the files that the configuration names (consequences tried with TorchServe 0.12.0)."""
    if situation.text is None:
        return
    logs = situation.settings.log_config.removeprefix("file://")
    if logs and not (situation.directory / logs).is_file():
        yield warning(
            f"vmargs names {logs}, which does not exist",
            "TorchServe then logs several lines per request, which costs up to half the throughput.",
            _WRITE_ANOTHER,
        )
    named = situation.settings.metrics_config
    metrics = situation.directory / named
    if not named:
        return
    if not metrics.is_file():
        yield error(
            f"metrics_config names {named}, which does not exist", "Every worker dies when it starts.", _WRITE_ANOTHER
        )
        return
    text = metrics.read_text("utf-8", "replace")
    names = re.findall(r"name: (handlergen_\w+)", (template_dir() / "metrics.yaml").read_text("utf-8"))
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    if missing:
        yield note(
            f"{named} does not declare {', '.join(missing)}",
            "TorchServe drops undeclared metrics: GET /metrics lacks them.",
            _WRITE_ANOTHER,
        )


def environment(situation: Situation) -> Iterator[Finding]:
    """Check for environment variables that override the file."""
    named = situation.environ.get("TS_CONFIG_FILE")
    if named and (situation.directory / named).resolve() != situation.config:
        yield warning(
            f"TS_CONFIG_FILE={named}",
            f"`torchserve` reads that file instead of {situation.config.name}, even with --ts-config; "
            "`handlergen serve` does not.",
            "unset TS_CONFIG_FILE",
        )
    if dict(situation.settings.other).get("enable_envvars_config", "").lower() == "true":
        names = sorted(name for name in situation.environ if name.startswith("TS_") and name != "TS_CONFIG_FILE")
        yield note(
            "enable_envvars_config=true: TS_… variables override this file"
            + (f"; set now: {', '.join(names)}" if names else ""),
            "handlergen reads only the file, and may look for the server at the wrong address.",
            "enable_envvars_config=false",
        )


def exposed(situation: Situation) -> Iterator[Finding]:
    """Check for settings that expose the server; `serve` gives the same warnings."""
    found = exposures(situation.settings)
    yield from found
    if not found:
        yield ok("only this machine can connect, with tokens, and only archives of the store are loaded")


def certificate(situation: Situation) -> Iterator[Finding]:
    """Check the certificate that the server and its clients use: its files, its dates, its names, its authority."""
    new = "install a new certificate, and restart the server"
    try:
        found = check_tls(situation.settings, situation.directory)
    except HandlergenError as wrong:
        yield error(wrong.message, "The server does not start, or clients refuse its certificate.", wrong.hint or new)
        return
    if found is None:
        return
    days = int((found.ends - time.time()) / 86_400)
    if days < _SOON_DAYS:
        yield warning(f"the certificate ends in {counted(days, 'day')}", "Clients will refuse it from then on.", new)
    else:
        yield ok(f"TLS: the certificate is valid for {', '.join(found.names)} and {days} more days")
    key = situation.directory / situation.settings.private_key_file
    if key.stat().st_mode & 0o077:
        yield warning(
            f"other users can read {key}", "They can pose as this server.", f"chmod 600 {shlex.quote(str(key))}"
        )


def ports(situation: Situation) -> Iterator[Finding]:
    """Check each port: free, or held by the server itself."""
    held = listeners()
    running = situation.running
    free, own, plain_servers = [], [], set()
    for purpose, (host, port) in situation.settings.addresses().items():
        problem = unavailable({purpose: (host, port)})
        holder = held.get(port)
        if running is not None and holder == running.pid:
            own.append(str(port))
        elif running is not None:
            yield warning(
                f"the running server (pid {running.pid}) does not listen on port {port} ({purpose})",
                "The configuration changed after the start, or another program holds the port.",
                situation.restart,
            )
        elif holder is not None and is_plain_server(holder, situation.directory):
            plain_servers.add(holder)
        elif problem:
            who = f", by {command_of(holder)}" if holder is not None else ""
            text = problem[0] if "in use" not in problem[0] else f"port {port} ({purpose}) is in use{who}"
            yield error(text, "The server cannot start.", _FREE_A_PORT)
        else:
            free.append(str(port))
    if own and running is not None:
        yield ok(f"ports {', '.join(own)}: the running server (pid {running.pid})")
    for pid in sorted(plain_servers):
        yield note(
            f"a TorchServe that `handlergen serve` did not start (pid {pid}) runs here and holds these ports",
            "`handlergen status`, `invoke` and `scale` work with it; `serve` refuses to start, `stop` cannot stop it.",
            "torchserve --stop",
        )
    if free:
        yield ok(f"ports {', '.join(free)} are free")


def exposures(settings: ServerSettings) -> list[Finding]:
    """Return every setting that opens the server to others: an error if they need no token. None by default."""
    return [*_addresses(settings), *_access(settings)]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a host. Any name except localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _addresses(settings: ServerSettings) -> Iterator[Finding]:
    scale = "scale models" + (" and load archives, which run code" if settings.model_api else "")
    for key, purpose, can in (
        ("inference_address", "predictions", "predict"),
        ("grpc_inference_address", "predictions over gRPC", "predict"),
        ("management_address", "management", scale),
        ("grpc_management_address", "management over gRPC", scale),
        ("metrics_address", "metrics", "read the metrics"),
    ):
        address = getattr(settings, key)
        host, fix = address, f"{key}=127.0.0.1"
        if "://" in address:
            host, port = host_and_port(address)
            fix = f"{key}={address.partition('://')[0]}://127.0.0.1:{port}"
        if is_loopback(host):
            continue
        what = f"{purpose} can be reached from other machines ({key}={address})"
        anyone = "Anyone who can connect to this machine"
        if purpose == "metrics":
            yield warning(what, f"{anyone} can {can}: metrics need no token.", fix)
        elif settings.token_authorization:
            tls = settings.grpc_tls if key.startswith("grpc") else address.startswith("https:")
            clear = "" if tls else ", and tokens are sent unencrypted"
            yield warning(what, f"{anyone} and has a token can {can}{clear}.", fix)
        else:
            yield error(what, f"{anyone} can {can}: no token is required.", fix)


def _access(settings: ServerSettings) -> Iterator[Finding]:
    if not settings.token_authorization:
        yield warning(
            "token authorization is off (disable_token_authorization=true)",
            "Every user and program on this machine can predict, scale and describe models.",
            "disable_token_authorization=false",
        )
    if settings.model_api:
        yield (warning if settings.token_authorization else error)(
            "models can be registered at run time (enable_model_api=true)",
            "Anyone who can register an archive can run code as this user"
            + ("." if settings.token_authorization else ", and no token is required."),
            "enable_model_api=false",
        )
    patterns = [part.strip() for part in settings.allowed_urls.split(",") if part.strip()]
    remote = [part for part in patterns if part != NO_URL and not part.lower().startswith("file:")]
    if any(_matches(part, _ANY_URL) for part in patterns):
        remote = ["any URL"]
    if remote:
        yield (error if settings.model_api and not settings.token_authorization else warning)(
            f"models can be downloaded from {', '.join(remote)} (allowed_urls)",
            "A downloaded archive runs code as this user.",
            f"allowed_urls={NO_URL}",
        )


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url) is not None
    except re.error:
        return True  # Java accepts expressions that Python does not: warn to be safe
