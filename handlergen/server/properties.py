"""Settings of a server and the `config.properties` they become: every default, TorchServe's key for it and its reason.

Facts about TorchServe 0.12.0 come from `ConfigManager.java` and `ts/model_server.py` and were tried.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from handlergen.errors import HandlergenError
from handlergen.server.property_text import Property, edited, format_entry, parse_entries, read_text

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_SECOND_MIN = 1 / 60
_LONGEST_TOKEN_MIN = 5_256_000
_LOG_OPTION = "-Dlog4j.configurationFile="

NO_URL = "(?!)"
"""A regular expression that matches nothing, for `allowed_urls`: no URL is allowed."""

CPU_METRICS = "ts/metrics/metric_collector.py --gpu 0"
"""TorchServe's system metrics without the GPU part, which imports nvgpu and pynvml, which pip does not install."""


def _setting(section: str, default: Any, why: str, *, key: str = "") -> Any:
    """Return a field of `ServerSettings`; `key` is TorchServe's name for it where that differs."""
    return field(default=default, metadata={"key": key, "why": why, "section": section})


@dataclass(frozen=True)
class ServerSettings:
    """The contents of `config.properties`, with handlergen's defaults.

    Paths are relative to the directory that TorchServe is started in, which is the file's directory. Sizes are in
    bytes.

    Attributes:
        vm_args: Options of the Java virtual machine besides the log configuration.
        other: Keys that handlergen has no setting for, with their values unchanged.
    """

    inference_address: str = _setting(
        "Addresses",
        "http://127.0.0.1:8080",
        "Predictions over REST. 127.0.0.1: only programs on this machine can connect.",
    )
    management_address: str = _setting(
        "Addresses",
        "http://127.0.0.1:8081",
        "Describing and scaling models over REST. Keep it on 127.0.0.1 even when predictions are not.",
    )
    metrics_address: str = _setting("Addresses", "http://127.0.0.1:8082", "Prometheus reads GET /metrics here.")
    grpc_inference_address: str = _setting("Addresses", "127.0.0.1", "Predictions over gRPC: host.")
    grpc_inference_port: int = _setting("Addresses", 7070, "Predictions over gRPC: port.")
    grpc_management_address: str = _setting("Addresses", "127.0.0.1", "Management over gRPC: host.")
    grpc_management_port: int = _setting("Addresses", 7071, "Management over gRPC: port.")
    certificate_file: str = _setting(
        "TLS",
        "",
        "The server's certificate (PEM), followed by those between it and the authority that signed it. Used by "
        "every https address, and by gRPC with enable_grpc_ssl. TorchServe speaks TLS 1.2; it reads this at start.",
    )
    private_key_file: str = _setting(
        "TLS", "", "Its key: RSA, PKCS#8, not encrypted. Nobody but the server's user should be able to read it."
    )
    grpc_tls: bool = _setting(
        "TLS", False, "Both gRPC addresses use TLS; TorchServe cannot encrypt one of them only.", key="enable_grpc_ssl"
    )
    ca_file: str = _setting(
        "TLS",
        "",
        "For handlergen's own commands, which verify the server's certificate: the authorities that may have signed it "
        "(PEM). Without it: SSL_CERT_FILE, else the system's authorities. TorchServe ignores this key.",
        key="handlergen_ca_file",
    )
    tls_name: str = _setting(
        "TLS",
        "",
        "For handlergen's own commands: the name that the certificate must have, whatever address they connect to. "
        "Without it: the address's host. TorchServe ignores this key.",
        key="handlergen_tls_name",
    )
    model_store: str = _setting(
        "Models", "model-store", "Directory with the .mar files, relative to the directory TorchServe is started in."
    )
    load_models: str = _setting("Models", "all", "Models loaded at start: every archive in the store.")
    install_requirements: bool = _setting(
        "Models",
        False,
        "Install an archive's requirements.txt when the model is loaded; otherwise the file is ignored. "
        "TorchServe runs pip, so this needs a package index and archives that you trust.",
        key="install_py_dep_per_model",
    )
    disable_token_authorization: bool = _setting(
        "Access",
        False,
        "Every call must carry a token from key_file.json, which TorchServe writes at start into its "
        "working directory. Set to true only for local experiments.",
    )
    token_expiration_min: float = _setting(
        "Access",
        60.0,
        "Minutes until a token expires. handlergen renews it; `handlergen token` prints a valid one for other clients.",
    )
    model_api: bool = _setting(
        "Access",
        False,
        "Registering and unregistering models at run time. When off, the server serves the models in the store. "
        "Scaling and describing work either way.",
        key="enable_model_api",
    )
    allowed_urls: str = _setting(
        "Access",
        NO_URL,
        "Regular expressions of URLs that models may be downloaded from. The default matches nothing, so only "
        "archives in the store can be loaded. TorchServe's own default allows every URL.",
    )
    job_queue_size: int = _setting(
        "Limits", 100, "Queued requests per model; further requests get 503. An archive's jobQueueSize overrides it."
    )
    max_request_size: int = _setting("Limits", 6_553_500, "Largest request body in bytes; larger requests are refused.")
    max_response_size: int = _setting(
        "Limits",
        6_553_500,
        "Largest response in bytes. TorchServe kills a worker that sends more; handlergen's runtime "
        "answers 500 for that request instead (setting max_response_bytes, which must not be larger).",
    )
    metrics_mode: str = _setting("Metrics and logs", "prometheus", "GET /metrics is empty in any other mode.")
    metrics_config: str = _setting(
        "Metrics and logs", "metrics.yaml", "The metrics to report; TorchServe silently drops all others."
    )
    system_metrics_cmd: str = _setting(
        "Metrics and logs",
        CPU_METRICS,
        "Measures CPU, memory and disk, and each worker's memory, once a minute. '--gpu 0' skips the GPU part, "
        "which imports nvgpu and pynvml and logs a traceback every minute if they are not installed.",
    )
    log_config: str = _setting(
        "Metrics and logs",
        "log4j2.xml",
        "Log configuration. TorchServe's own logs several lines per request, which costs up to half the "
        "throughput. Model output and tracebacks are still logged.",
        key="vmargs",
    )
    vm_args: str = ""
    other: tuple[tuple[str, str], ...] = ()

    @property
    def token_authorization(self) -> bool:
        """Whether every call must carry a token."""
        return not self.disable_token_authorization

    @property
    def https(self) -> bool:
        """Whether any REST address uses TLS."""
        return any(
            address.startswith("https:")
            for address in (self.inference_address, self.management_address, self.metrics_address)
        )

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Return host and port of every socket that the server listens on, by its purpose."""
        return {
            "inference": host_and_port(self.inference_address),
            "management": host_and_port(self.management_address),
            "metrics": host_and_port(self.metrics_address),
            "gRPC inference": (self.grpc_inference_address, self.grpc_inference_port),
            "gRPC management": (self.grpc_management_address, self.grpc_management_port),
        }


def host_and_port(address: str) -> tuple[str, int]:
    """Return host and port of an address. Raises ValueError unless it has the form `http(s)://host:port`."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is not of the form http://host:port")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{address!r} has no valid port (1 to 65535)") from None
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return parts.hostname, port


#: TorchServe's key -> the field of `ServerSettings`.
_FIELDS = {item.metadata["key"] or item.name: item for item in fields(ServerSettings) if item.metadata}


@dataclass(frozen=True)
class ExplainedLine:
    """One line of the file with its reason."""

    section: str
    key: str
    value: str
    why: str
    is_default: bool


def server_settings(
    base: ServerSettings | None = None,
    *,
    host: str | None = None,
    inference_port: int | None = None,
    management_port: int | None = None,
    metrics_port: int | None = None,
    metrics_host: str | None = None,
    token_authorization: bool | None = None,
    certificate_file: str | None = None,
    **others: Any,
) -> ServerSettings:
    """Return settings built from ports and hosts. Management and metrics listen on 127.0.0.1 by default.

    Args:
        base: Has the values of all settings that are not given; None: the defaults.
        host: Host name or IPv4 address that predictions (REST and gRPC) listen on.
        metrics_host: The same for metrics, which need no token.
        certificate_file: Makes every address use TLS, gRPC's too; `private_key_file` is then needed as well.
        others: Any field of `ServerSettings`.

    Raises:
        HandlergenError: Two sockets share a port, or a value is invalid.
    """
    base = base or ServerSettings()
    for given in (host, metrics_host):
        if given is not None:
            _check_host(given)
    if host is not None:
        others["grpc_inference_address"] = host
    if token_authorization is not None:
        others["disable_token_authorization"] = not token_authorization
    if certificate_file is not None:
        others |= {"certificate_file": certificate_file, "grpc_tls": bool(certificate_file)}
    for name, new_host, port in (
        ("inference_address", host, inference_port),
        ("management_address", None, management_port),
        ("metrics_address", metrics_host, metrics_port),
    ):
        if new_host is not None or port is not None or certificate_file is not None:
            address = getattr(base, name)
            old_host, old_port = host_and_port(address)
            scheme = urlsplit(address).scheme
            if certificate_file is not None:
                scheme = "https" if certificate_file else "http"
            others[name] = f"{scheme}://{new_host or old_host}:{old_port if port is None else port}"
    settings = replace(base, **others)
    check(settings)
    return settings


def _check_host(host: str) -> None:
    """Raise HandlergenError unless `host` is a host name or an IPv4 address."""
    hint = "127.0.0.1 accepts connections from this machine only, 0.0.0.0 from every network"
    if "/" in host:
        raise HandlergenError(f"{host!r} is a URL; give a host without http:// and port", hint=hint)
    if ":" in host:
        # TorchServe's address pattern allows no colon in a host (ConfigManager.java, ADDRESS_PATTERN).
        raise HandlergenError(
            f"{host!r}: TorchServe does not support IPv6 addresses; set a port with its own option",
            hint=hint,
        )
    if host.replace(".", "").isdigit() or not _HOST_NAME.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise HandlergenError(f"{host!r} is neither a host name nor an IPv4 address", hint=hint) from None


def check(settings: ServerSettings) -> None:
    """Raise HandlergenError for settings that TorchServe cannot start with: every problem, one a line."""
    wrong = []
    purposes: dict[int, str] = {}
    try:
        addresses = settings.addresses()
    except ValueError as error:
        raise HandlergenError(str(error)) from error
    for purpose, (_host, port) in addresses.items():
        if not 0 < port < 65536:
            wrong.append(f"{purpose}: {port} is not a valid port (1 to 65535)")
        elif port in purposes:
            wrong.append(f"{purpose} and {purposes[port]} share port {port}")
        purposes.setdefault(port, purpose)
    if any(blank in settings.log_config for blank in " \t"):
        # TorchServe's launcher splits vmargs at whitespace, quoted or not.
        wrong.append(f"the path of the log configuration must not contain whitespace: {settings.log_config!r}")
    if not _SECOND_MIN <= settings.token_expiration_min <= _LONGEST_TOKEN_MIN:
        wrong.append(f"token_expiration_min must be between 1/60 (a second) and {_LONGEST_TOKEN_MIN:,} (10 years)")
    files = settings.certificate_file and settings.private_key_file
    if not files and (settings.certificate_file or settings.private_key_file):
        wrong.append("a certificate needs its key, and a key its certificate: certificate_file, private_key_file")
    # REST also reads a Java keystore; gRPC does not (ModelServer.startGRPCServer).
    elif not files and (settings.grpc_tls or (settings.https and "keystore" not in dict(settings.other))):
        wrong.append("TLS needs certificate_file and private_key_file")
    for name in ("job_queue_size", "max_request_size", "max_response_size"):
        if not 0 < getattr(settings, name) < 2**31:
            wrong.append(f"{name} must be between 1 and {2**31 - 1}")
    try:
        list(_entries(settings))
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise HandlergenError("\n".join(wrong), hint="handlergen config --help lists the options")


def render_properties(settings: ServerSettings) -> str:
    """Return the commented text of a `config.properties`, independent of the machine. Raises like `check`."""
    check(settings)
    lines = [
        "# TorchServe's configuration, written by `handlergen config`; `handlergen config --show` explains it.",
        "# Start the server in this directory: torchserve --start --ts-config config.properties --ncs",
        "# Put comments on separate lines; trailing whitespace becomes part of a value.",
    ]
    for section, group in groupby(_entries(settings), key=itemgetter(0)):
        lines += ["", f"# {section}", *(line for _, line in group)]
    return "\n".join(lines) + "\n"


def changes(old: ServerSettings, new: ServerSettings) -> dict[str, tuple[str, str]]:
    """Return the old and the new value of each key of the file whose value differs; "" stands for no entry."""
    before, after = ({line.key: line.value for line in explain(each)} for each in (old, new))
    keys = [*after, *(before.keys() - after.keys())]
    pairs = {key: (before.get(key, ""), after.get(key, "")) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def change_properties(text: str, settings: ServerSettings) -> str:
    """Return the text of a `config.properties` with these settings; lines whose value stays, and comments, are kept.

    Raises:
        HandlergenError: The text or the settings are invalid.
    """
    check(settings)
    values = {key: new for key, (_, new) in changes(parse_properties(text), settings).items()}
    changed = edited(text, {key: new if new or key == "allowed_urls" else None for key, new in values.items()})
    if changes(parse_properties(changed), settings):
        raise HandlergenError("the file cannot be changed by a command", hint=f"set {', '.join(values)} by hand")
    return changed


def parse_properties(text: str, *, file: str = "config.properties") -> ServerSettings:
    """Parse the text of a `config.properties`; a missing key has TorchServe's own default.

    Raises:
        HandlergenError: Names every value that TorchServe would refuse or misread, with file and line.
    """
    settings, wrong = valid_settings(parse_entries(text))
    if wrong:
        raise HandlergenError("\n".join(f"{file}:{problem}" for problem in wrong))
    return settings


def valid_settings(entries: Iterable[Property]) -> tuple[ServerSettings, list[str]]:
    """Return the settings of the valid entries, and `LINE: KEY: what is wrong` for each of the others."""
    found: dict[str, Any] = dict(_TORCHSERVE_DEFAULTS)
    other: dict[str, str] = {}
    wrong = []
    for entry in entries:
        item = _FIELDS.get(entry.key)
        try:
            if entry.problem:
                raise ValueError(entry.problem)
            if item is None:
                other[entry.key] = entry.value
            elif entry.key == "vmargs":
                words = entry.value.split()
                logs = [word.removeprefix(_LOG_OPTION) for word in words if word.startswith(_LOG_OPTION)]
                found["log_config"] = logs[-1] if logs else ""
                found["vm_args"] = " ".join(word for word in words if not word.startswith(_LOG_OPTION))
            else:
                found[item.name] = _typed(entry, type(item.default))
        except ValueError as error:
            wrong.append(f"{entry.line}: {entry.key}: {error}")
    return ServerSettings(**found, other=tuple(other.items())), wrong


def read_properties(path: Path) -> ServerSettings:
    """Return the settings in a file. Raises HandlergenError when it is missing, unreadable or invalid."""
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
    """Return every line of the file with its reason, in the order of the file."""
    lines = []
    for key, item in _FIELDS.items():
        value = getattr(settings, item.name)
        text = _text(value)
        if key == "vmargs":
            text = " ".join(filter(None, [text and _LOG_OPTION + text, settings.vm_args]))
        lines.append(ExplainedLine(item.metadata["section"], key, text, item.metadata["why"], value == item.default))
    lines += [ExplainedLine("Other", key, value, "Not written by handlergen.", False) for key, value in settings.other]
    return lines


def unknown_keys(settings: ServerSettings) -> Iterator[str]:
    """Yield a warning for each key that TorchServe does not know and therefore ignores."""
    known = _FIELDS.keys() | _TORCHSERVE_KEYS
    for key, _value in settings.other:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            yield f"TorchServe ignores the unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _entries(settings: ServerSettings) -> Iterator[tuple[str, str]]:
    """Yield (section, line) pairs of the file. Raises ValueError for a value that cannot be written."""
    for line in explain(settings):
        if line.value or line.key == "allowed_urls":
            yield line.section, format_entry(line.key, line.value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _typed(entry: Property, kind: type) -> Any:
    """Convert an entry's value. Raises ValueError where TorchServe would abort or misread it."""
    value = entry.value
    # The launcher strips the values that it reads; Java keeps trailing whitespace and aborts on "=1 ".
    if value != value.rstrip() and entry.key != "model_store":
        raise ValueError(f"the value {value!r} has trailing whitespace, which TorchServe treats as part of it")
    value = value.rstrip()
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() == "true"
    if entry.key in ("inference_address", "management_address", "metrics_address"):
        host_and_port(value)
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None


#: TorchServe's defaults for missing keys, where they differ from handlergen's (ConfigManager.java).
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
