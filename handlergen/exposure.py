"""By what a configuration opens a server to others: one list, for `serve`, `config` and `doctor`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

from handlergen.server_fields import NO_URL, ServerSettings, host_and_port

_ANY_URL = "https://example.org/model.mar"
_LOCAL_URL = re.compile(r"file:", re.IGNORECASE)


@dataclass(frozen=True)
class Exposure:
    """One choice that opens the server.

    Attributes:
        what: The choice.
        why: What others can do by it.
        fix: The line of config.properties that takes it back.
        severe: They can do so without a token, or make the server run code of theirs.
    """

    what: str
    why: str
    fix: str
    severe: bool = False


def exposures(settings: ServerSettings) -> list[Exposure]:
    """Every choice in these settings that lets others use, change or read the server; none with the defaults."""
    return [*_addresses(settings), *_access(settings)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost is taken for one that others reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _addresses(settings: ServerSettings) -> Iterator[Exposure]:
    guarded = settings.token_authorization
    for key, purpose, address in (
        ("inference_address", "predictions", settings.inference_address),
        ("grpc_inference_address", "predictions over gRPC", settings.grpc_inference_address),
        ("management_address", "management", settings.management_address),
        ("grpc_management_address", "management over gRPC", settings.grpc_management_address),
        ("metrics_address", "metrics", settings.metrics_address),
    ):
        url = "://" in address
        host, port = host_and_port(address) if url else (address, 0)
        if is_loopback(host):
            continue
        managing = "management" in purpose
        can = "scale models" + (" and load archives, which run code" if settings.model_api else "")
        can = can if managing else "read the metrics" if purpose == "metrics" else "predict"
        if purpose == "metrics":
            why = f"Whoever reaches this machine can {can}: no token is asked for them."
        elif guarded:
            clear = "" if address.startswith("https:") else ", and tokens travel unencrypted"
            why = f"Whoever reaches this machine and has a token can {can}{clear}."
        else:
            why = f"Whoever reaches this machine can {can}: no token is asked for."
        scheme = address.partition("://")[0]
        own = f"{key}={scheme}://127.0.0.1:{port}" if url else f"{key}=127.0.0.1"
        severe = purpose != "metrics" and not guarded
        yield Exposure(f"{purpose} can be reached from other machines ({key}={address})", why, own, severe)


def _access(settings: ServerSettings) -> Iterator[Exposure]:
    if not settings.token_authorization:
        yield Exposure(
            "token authorization is off (disable_token_authorization=true)",
            "Every user and program of this machine can predict, scale and describe models.",
            "disable_token_authorization=false",
        )
    if settings.model_api:
        yield Exposure(
            "models can be registered at run time (enable_model_api=true)",
            "Who can register an archive can run code as this user"
            + ("." if settings.token_authorization else ", and no token is asked for."),
            "enable_model_api=false",
            severe=not settings.token_authorization,
        )
    patterns = [part.strip() for part in settings.allowed_urls.split(",") if part.strip()]
    remote = [part for part in patterns if part != NO_URL and not _LOCAL_URL.match(part)]
    if any(_matches(part, _ANY_URL) for part in patterns):
        remote = ["any URL"]
    if remote:
        yield Exposure(
            f"models can be downloaded from {', '.join(remote)} (allowed_urls)",
            "A downloaded archive runs code as this user.",
            f"allowed_urls={NO_URL}",
            severe=settings.model_api and not settings.token_authorization,
        )


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url) is not None
    except re.error:
        return True  # Java knows expressions that Python does not; the safe side is to warn
