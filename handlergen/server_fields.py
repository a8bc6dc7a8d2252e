"""The settings of a server: every default, TorchServe's key for it, and why it is what it is.

`handlergen.properties` turns them into `config.properties` and back; other modules import them from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

NO_URL = "(?!)"
"""A regular expression that matches nothing: `allowed_urls` without any allowed URL."""

CPU_METRICS = "ts/metrics/metric_collector.py --gpu 0"
"""TorchServe's system metrics without the part that imports nvgpu and pynvml, which pip does not install."""


def _setting(key: str, default: Any, why: str, *, section: str) -> Any:
    return field(default=default, metadata={"key": key, "why": why, "section": section})


@dataclass(frozen=True)
class ServerSettings:
    """What `config.properties` says, with handlergen's defaults.

    Paths are relative to the directory TorchServe is started in, which is the file's own. Sizes are bytes.

    Attributes:
        other: Keys that handlergen has no setting for, kept as they were read.
    """

    inference_address: str = _setting(
        "inference_address",
        "http://127.0.0.1:8080",
        "Predictions over REST. 127.0.0.1: only programs on this machine can connect.",
        section="Addresses",
    )
    management_address: str = _setting(
        "management_address",
        "http://127.0.0.1:8081",
        "Describing and scaling models over REST. Keep it on 127.0.0.1 even when predictions are not.",
        section="Addresses",
    )
    metrics_address: str = _setting(
        "metrics_address", "http://127.0.0.1:8082", "Prometheus reads GET /metrics here.", section="Addresses"
    )
    grpc_inference_address: str = _setting(
        "grpc_inference_address", "127.0.0.1", "Predictions over gRPC: host.", section="Addresses"
    )
    grpc_inference_port: int = _setting(
        "grpc_inference_port", 7070, "Predictions over gRPC: port.", section="Addresses"
    )
    grpc_management_address: str = _setting(
        "grpc_management_address", "127.0.0.1", "Management over gRPC: host.", section="Addresses"
    )
    grpc_management_port: int = _setting(
        "grpc_management_port", 7071, "Management over gRPC: port.", section="Addresses"
    )
    model_store: str = _setting(
        "model_store",
        "model-store",
        "Directory with the .mar files, relative to the directory TorchServe is started in.",
        section="Models",
    )
    load_models: str = _setting(
        "load_models", "all", "Models loaded at start: every archive in the store.", section="Models"
    )
    install_requirements: bool = _setting(
        "install_py_dep_per_model",
        False,
        "Install an archive's requirements.txt when the model is loaded. Without it that file is inert. "
        "It runs pip, so it needs a package index and trust in the archives.",
        section="Models",
    )
    disable_token_authorization: bool = _setting(
        "disable_token_authorization",
        False,
        "Every call must carry a token from key_file.json, which TorchServe writes at start into its "
        "working directory. Set to true only for local play.",
        section="Access",
    )
    token_expiration_min: float = _setting(
        "token_expiration_min",
        60.0,
        "Minutes until a token expires. handlergen renews it; others ask GET /token with the API key.",
        section="Access",
    )
    model_api: bool = _setting(
        "enable_model_api",
        False,
        "Registering and unregistering models at run time. Off: the models are those in the store. "
        "Scaling and describing work either way.",
        section="Access",
    )
    allowed_urls: str = _setting(
        "allowed_urls",
        NO_URL,
        "Regular expressions of URLs a model may be downloaded from. This one matches nothing, so only "
        "archives in the store can be loaded. TorchServe's own default allows every URL.",
        section="Access",
    )
    job_queue_size: int = _setting(
        "job_queue_size",
        100,
        "Requests that may wait per model; one more is answered 503. An archive's jobQueueSize wins.",
        section="Limits",
    )
    max_request_size: int = _setting(
        "max_request_size",
        6_553_500,
        "Largest request body in bytes; a larger one is refused.",
        section="Limits",
    )
    max_response_size: int = _setting(
        "max_response_size",
        6_553_500,
        "Largest answer in bytes. TorchServe kills the worker that sends more; handlergen's runtime "
        "answers 500 for that request instead (setting max_response_bytes, which must not be larger).",
        section="Limits",
    )
    metrics_mode: str = _setting(
        "metrics_mode", "prometheus", "GET /metrics is empty in any other mode.", section="Metrics and logs"
    )
    metrics_config: str = _setting(
        "metrics_config",
        "metrics.yaml",
        "The metrics that exist; others are dropped in silence.",
        section="Metrics and logs",
    )
    system_metrics_cmd: str = _setting(
        "system_metrics_cmd",
        CPU_METRICS,
        "Once a minute: CPU, memory and disk, and each worker's memory. '--gpu 0' leaves out the GPU part, "
        "which imports nvgpu and pynvml and prints a traceback a minute where they are not installed.",
        section="Metrics and logs",
    )
    log_config: str = _setting(
        "vmargs",
        "log4j2.xml",
        "Log configuration, in place of TorchServe's, whose several lines per request cost up to half the "
        "throughput. What the models print, and tracebacks, are still logged.",
        section="Metrics and logs",
    )
    vm_args: str = field(default="", metadata={"key": None})
    other: tuple[tuple[str, str], ...] = field(default=(), metadata={"key": None})

    @property
    def token_authorization(self) -> bool:
        return not self.disable_token_authorization

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port of every socket the server listens on, by what it is for."""
        return {
            "inference": host_and_port(self.inference_address),
            "management": host_and_port(self.management_address),
            "metrics": host_and_port(self.metrics_address),
            "gRPC inference": (self.grpc_inference_address, self.grpc_inference_port),
            "gRPC management": (self.grpc_management_address, self.grpc_management_port),
        }


def host_and_port(address: str) -> tuple[str, int]:
    """Raises ValueError for an address that is no `http(s)://host:port`."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is not of the form http://host:port")
    default = 443 if parts.scheme == "https" else 80
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{address!r} has no port from 1 to 65535") from None
    return parts.hostname, default if port is None else port
