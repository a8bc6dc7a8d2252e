"""Server settings and the `config.properties` they become. Pure functions; parse and render round-trip.

Facts about TorchServe 0.12.0 were read in `ConfigManager.java` and `ts/model_server.py` and tried.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.property_text import Entry, format_entry, parse_entries, read_text
from handlergen.server_fields import CPU_METRICS, NO_URL, ServerSettings

__all__ = [
    "CPU_METRICS",
    "NO_URL",
    "ExplainedLine",
    "ServerSettings",
    "check",
    "explain",
    "parse_properties",
    "read_properties",
    "render_properties",
    "server_settings",
    "unknown_keys",
]

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_LOG_OPTION = "-Dlog4j.configurationFile="


@dataclass(frozen=True)
class ExplainedLine:
    """One line of the file and why it is there; `key` is empty for a setting the file leaves out."""

    section: str
    key: str
    value: str
    why: str
    is_default: bool


def server_settings(
    *,
    host: str = "127.0.0.1",
    inference_port: int = 8080,
    management_port: int = 8081,
    metrics_port: int = 8082,
    grpc_inference_port: int = 7070,
    grpc_management_port: int = 7071,
    token_authorization: bool = True,
    **others: Any,
) -> ServerSettings:
    """Settings from ports and a host instead of addresses. The management side stays on 127.0.0.1.

    Args:
        host: Where predictions (REST and gRPC) listen.
        others: Any field of `ServerSettings`.

    Raises:
        HandlergenError: Two sockets share a port, or a value cannot be written.
    """
    _check_host(host)
    local = "127.0.0.1"
    settings = ServerSettings(
        inference_address=f"http://{host}:{inference_port}",
        management_address=f"http://{local}:{management_port}",
        metrics_address=f"http://{local}:{metrics_port}",
        grpc_inference_address=host,
        grpc_inference_port=grpc_inference_port,
        grpc_management_address=local,
        grpc_management_port=grpc_management_port,
        disable_token_authorization=not token_authorization,
        **others,
    )
    check(settings)
    return settings


def _check_host(host: str) -> None:
    """Raises HandlergenError for what is neither a host name nor an IPv4 address."""
    hint = "127.0.0.1 is this machine only, 0.0.0.0 every address that it has"
    if "/" in host:
        raise HandlergenError(f"{host!r} is a URL; a host is wanted, without http:// and port", hint=hint)
    if ":" in host:
        # Its pattern for addresses has no colon in a host (ConfigManager.java, ADDRESS_PATTERN).
        raise HandlergenError(
            f"{host!r}: TorchServe cannot listen on IPv6 addresses, and a port has an option of its own",
            hint=hint,
        )
    numeric = host.replace(".", "").isdigit()
    try:
        valid = bool(ipaddress.IPv4Address(host)) if numeric else bool(_HOST_NAME.fullmatch(host))
    except ValueError:
        valid = False
    if not valid:
        raise HandlergenError(f"{host!r} is no host name and no IPv4 address", hint=hint)


def check(settings: ServerSettings) -> None:
    """Refuse settings that TorchServe would stumble over.

    Raises:
        HandlergenError: With what is wrong; one line each.
    """
    wrong = []
    taken: dict[int, str] = {}
    try:
        addresses = settings.addresses()
    except ValueError as error:
        raise HandlergenError(str(error)) from error
    for purpose, (_host, port) in addresses.items():
        if not 0 < port < 65536:
            wrong.append(f"{purpose}: {port} is no port (1 to 65535)")
        elif port in taken:
            wrong.append(f"{purpose} and {taken[port]} share port {port}")
        taken.setdefault(port, purpose)
    if any(blank in settings.log_config for blank in " \t"):
        # TorchServe's launcher splits vmargs at blanks, whatever the quotes.
        wrong.append(f"the path of the log configuration must not contain blanks: {settings.log_config!r}")
    for name in ("job_queue_size", "max_request_size", "max_response_size"):
        if not 0 < getattr(settings, name) < 2**31:
            wrong.append(f"{name} must lie between 1 and {2**31 - 1}")
    try:
        list(_entries(settings))
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise HandlergenError("\n".join(wrong), hint="handlergen config --help lists the options")


def render_properties(settings: ServerSettings) -> str:
    """`config.properties` for these settings: commented, no trailing blanks, no machine-dependent text.

    Raises:
        HandlergenError: The settings do not make a working file (see `check`).
    """
    check(settings)
    lines = [
        "# TorchServe's configuration, written by `handlergen config`; add --show to have it explained.",
        "# Start it from this directory: torchserve --start --ts-config config.properties --ncs",
        "# Comments stand on lines of their own, and a blank after a value would become part of it.",
    ]
    section = ""
    for item, line in _entries(settings):
        if item != section:
            section = item
            lines += ["", f"# {section}"]
        lines.append(line)
    return "\n".join(lines) + "\n"


def parse_properties(text: str, *, file: str = "config.properties") -> ServerSettings:
    """The settings a `config.properties` means; a key it leaves out has TorchServe's own default.

    Raises:
        HandlergenError: A value TorchServe would refuse or misread, with file and line; all of them at once.
    """
    try:
        entries = parse_entries(text)
    except ValueError as error:
        raise HandlergenError(f"{file}: {error}") from error
    found: dict[str, Any] = dict(_TORCHSERVE_DEFAULTS)
    other: dict[str, str] = {}
    wrong = []
    by_key = {item.metadata["key"]: item for item in fields(ServerSettings) if item.metadata["key"]}
    for entry in entries:
        item = by_key.get(entry.key)
        try:
            if item is None:
                other[entry.key] = entry.value
            elif entry.key == "vmargs":
                found["log_config"], found["vm_args"] = _split_vmargs(entry.value)
            else:
                found[item.name] = _typed(entry, type(item.default))
        except ValueError as error:
            wrong.append(f"{file}:{entry.line}: {entry.key}: {error}")
    if wrong:
        raise HandlergenError("\n".join(wrong))
    settings = ServerSettings(**found, other=tuple(other.items()))
    try:
        settings.addresses()
    except ValueError as error:
        raise HandlergenError(f"{file}: {error}") from error
    return settings


def read_properties(path: Path) -> ServerSettings:
    """The settings in a file.

    Raises:
        HandlergenError: The file is missing, unreadable or means nothing to TorchServe.
    """
    try:
        return parse_properties(read_text(path), file=str(path))
    except FileNotFoundError:
        option = "" if path.name == "config.properties" else f" -o {path}"
        raise HandlergenError(
            f"there is no {path}",
            hint=f"name the server's configuration with -c; `handlergen config{option}` writes one",
        ) from None
    except OSError as error:
        raise HandlergenError(f"{path} cannot be read: {error}") from error


def explain(settings: ServerSettings) -> list[ExplainedLine]:
    """Every line of the file with its reason, in the order of the file."""
    defaults = ServerSettings()
    lines = []
    for item in fields(ServerSettings):
        key = item.metadata["key"]
        if key is None:
            continue
        value = getattr(settings, item.name)
        lines.append(
            ExplainedLine(
                item.metadata["section"],
                key,
                _vmargs(settings) if key == "vmargs" else _text(value),
                item.metadata["why"],
                value == getattr(defaults, item.name),
            )
        )
    lines += [
        ExplainedLine("Other", key, value, "Not written by handlergen.", False)
        for key, value in settings.other
    ]
    return lines


def unknown_keys(settings: ServerSettings) -> Iterable[str]:
    """A warning for each key that neither handlergen nor TorchServe knows, which TorchServe ignores."""
    known = {item.metadata["key"] for item in fields(ServerSettings)} | _TORCHSERVE_KEYS
    for key, _value in settings.other:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(k for k in known if k), n=1)
            yield f"TorchServe ignores the key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _entries(settings: ServerSettings) -> Iterable[tuple[str, str]]:
    """(section, line) pairs of the file. Raises ValueError for a value that cannot be written."""
    for line in explain(settings):
        if line.value or line.key == "allowed_urls":
            yield line.section, format_entry(line.key, line.value)


def _vmargs(settings: ServerSettings) -> str:
    option = f"{_LOG_OPTION}{settings.log_config}" if settings.log_config else ""
    return " ".join(part for part in (option, settings.vm_args) if part)


def _split_vmargs(value: str) -> tuple[str, str]:
    """(path of the log configuration, the other options) of a `vmargs` value."""
    log_config = ""
    rest = []
    for word in value.split():
        if word.startswith(_LOG_OPTION):
            log_config = word.removeprefix(_LOG_OPTION)
        else:
            rest.append(word)
    return log_config, " ".join(rest)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _typed(entry: Entry, kind: type) -> Any:
    """The entry's value as the setting's type. Raises ValueError where TorchServe would abort or misread."""
    value = entry.value
    # The launcher strips what it reads itself; Java keeps trailing blanks and aborts on "=1 ".
    if value != value.rstrip() and entry.key != "model_store":
        raise ValueError(f"the value {value!r} ends in blanks, which TorchServe takes as part of it")
    value = value.rstrip()
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() == "true"
    readers: dict[type, Callable[[str], Any]] = {int: int, float: float}
    try:
        return readers.get(kind, str)(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None


#: What TorchServe assumes for a key that the file leaves out, where that differs from handlergen's default
#: (ConfigManager.java).
_TORCHSERVE_DEFAULTS: dict[str, Any] = {
    "model_store": "",
    "load_models": "",
    "allowed_urls": "file://.*|http(s)?://.*",
    "metrics_mode": "log",
    "metrics_config": "",
    "system_metrics_cmd": "",
    "log_config": "",
}

#: TorchServe's other keys (the TS_* constants of ConfigManager.java).
_TORCHSERVE_KEYS = frozenset(
    """
    debug blacklist_env_vars default_workers_per_model default_response_timeout default_startup_timeout
    unregister_model_timeout number_of_netty_threads netty_client_threads number_of_gpu
    model_metrics_auto_detect disable_system_metrics ipex_enable cpu_launcher_enable cpu_launcher_args
    ipex_gpu_enable async_logging cors_allowed_origin cors_allowed_methods cors_allowed_headers
    decode_input_request keystore keystore_pass keystore_type certificate_file private_key_file
    limit_max_image_pixels default_service_handler service_envelope model_server_home prefer_direct_buffer
    enable_metrics_api grpc_inference_max_connection_age_ms grpc_management_max_connection_age_ms
    grpc_inference_max_connection_age_grace_ms grpc_management_max_connection_age_grace_ms enable_grpc_ssl
    initial_worker_port initial_distribution_port workflow_store cpp_log_config ts_open_inference_protocol
    ts_header_key_sequence_id ts_header_key_sequence_start ts_header_key_sequence_end use_native_io io_ratio
    metric_time_interval enable_envvars_config model_snapshot models version use_env_allowed_urls
    plugins_path
    """.split()  # noqa: SIM905 - a table reads better than sixty quoted strings
)
