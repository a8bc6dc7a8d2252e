"""Write a server's configuration files, and report the settings that expose the server to others."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.templates import template_dir
from handlergen.server.properties import (
    NO_URL,
    ServerSettings,
    host_and_port,
    render_properties,
)
from handlergen.server.property_text import read_text

DEFAULT_CONFIG = "config.properties"
DEFAULT_STORE = "model-store"

_OWN_FILES = {"log_config": "log4j2.xml", "metrics_config": "metrics.yaml"}
_ANY_URL = "https://example.org/model.mar"
_LOCAL_URL = re.compile(r"file:", re.IGNORECASE)


def handlergen_command(verb: str, config: Path) -> str:
    """Return the command `handlergen VERB` for a server, with `-c` unless its configuration is the default."""
    path = shown(config)
    return f"handlergen {verb}" + ("" if path == DEFAULT_CONFIG else f" -c {shlex.quote(path)}")


def archive_command(store: Path) -> str:
    """Return the command that adds an archive to this model store."""
    path = shown(store)
    return "handlergen archive SOURCE" + ("" if path == DEFAULT_STORE else f" --model-store {shlex.quote(path)}")


def write_configuration(path: Path, settings: ServerSettings, *, force: bool = False) -> list[Path]:
    """Write `path`, and the log and metrics configuration that it names if they do not exist.

    Returns:
        The files written.

    Raises:
        HandlergenError: `path` exists with other contents, and `force` is false; or the settings are invalid.
    """
    texts = {path: render_properties(settings)}
    for field, template in _OWN_FILES.items():
        target = path.parent / getattr(settings, field)
        text = (template_dir() / template).read_text("utf-8")
        # A file with another name is the user's own, and an existing file may have been edited: keep both.
        if target.name == template and not target.exists():
            texts[target] = text
    if path.exists() and not force and read_text(path) != texts[path]:
        raise HandlergenError(
            f"{path} exists with different contents", hint="--force overwrites it; -o writes another file"
        )
    for target, text in texts.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_content(target, text.encode())
        except OSError as error:
            raise HandlergenError(f"{target} cannot be written: {error}") from error
    return list(texts)


def replace_content(path: Path, content: bytes) -> None:
    """Replace a file's content atomically: no reader sees half of it, even if this process is killed.

    A symbolic link stays a link; its target is replaced.

    Raises:
        OSError: The file cannot be written; its old content is unchanged.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def relative_to_config(store: Path, config: Path) -> str:
    """Return `store` relative to the configuration's directory, in which TorchServe is started.

    Args:
        store: A path relative to this process's working directory; an absolute path is returned unchanged.
    """
    if store.is_absolute():
        return str(store)
    return Path(os.path.relpath(store, config.resolve().parent)).as_posix()


@dataclass(frozen=True)
class Exposure:
    """A setting that exposes the server to others.

    Attributes:
        what: The setting.
        why: What others can do because of it.
        fix: The line of config.properties that closes the server again.
        severe: Others need no token, or can make the server run their code.
    """

    what: str
    why: str
    fix: str
    severe: bool = False


def exposures(settings: ServerSettings) -> list[Exposure]:
    """Return every setting that lets others use, change or read the server; none with the defaults."""
    return [*_addresses(settings), *_access(settings)]


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a host. Any name except localhost counts as reachable."""
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
            why = f"Anyone who can connect to this machine can {can}: metrics need no token."
        elif guarded:
            clear = "" if address.startswith("https:") else ", and tokens are sent unencrypted"
            why = f"Anyone who can connect to this machine and has a token can {can}{clear}."
        else:
            why = f"Anyone who can connect to this machine can {can}: no token is required."
        scheme = address.partition("://")[0]
        own = f"{key}={scheme}://127.0.0.1:{port}" if url else f"{key}=127.0.0.1"
        severe = purpose != "metrics" and not guarded
        yield Exposure(f"{purpose} can be reached from other machines ({key}={address})", why, own, severe)


def _access(settings: ServerSettings) -> Iterator[Exposure]:
    if not settings.token_authorization:
        yield Exposure(
            "token authorization is off (disable_token_authorization=true)",
            "Every user and program on this machine can predict, scale and describe models.",
            "disable_token_authorization=false",
        )
    if settings.model_api:
        yield Exposure(
            "models can be registered at run time (enable_model_api=true)",
            "Anyone who can register an archive can run code as this user"
            + ("." if settings.token_authorization else ", and no token is required."),
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
        return True  # Java accepts expressions that Python does not: warn to be safe
