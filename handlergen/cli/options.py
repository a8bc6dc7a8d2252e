"""Options that several verbs share: a flag for each setting, and the options that select a running server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handlergen.errors import NoServer
from handlergen.project.setting_kinds import Kind
from handlergen.project.settings import SETTINGS, SettingInfo
from handlergen.server.configuration import DEFAULT_CONFIG, handlergen_command

if TYPE_CHECKING:
    from handlergen.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])

_LONGEST_TIMEOUT_S = 1_000_000.0  # the system cannot wait for much longer

FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)

json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
gpu = click.option("--gpu", type=int, help="Use this GPU instead of the CPU.")
any_runtime = click.option(
    "--any-runtime",
    is_flag=True,
    help="Run an archive whose runtime was changed, or is unknown, with the installed runtime; a server runs its own.",
)
version = click.option("--version", help="The model's version.  [default: the default version]")


def config(
    help: str = "The server's configuration. TorchServe runs in the directory of this file.",
) -> Callable[[Function], Function]:
    """Return a decorator that adds `-c/--config`, which selects the server."""
    return click.option("-c", "--config", type=FILE, default=Path(DEFAULT_CONFIG), show_default=True, help=help)


def server(function: Function) -> Function:
    """Add `--config`, which selects the server, `--key-file`, `--ca`, and `--json`; see `connected`."""
    key_file = click.option(
        "--key-file",
        type=EXISTING_FILE,
        help="TorchServe's key_file.json.  [default: beside the configuration]",
    )
    ca = click.option(
        "--ca",
        type=EXISTING_FILE,
        help="Certificates (PEM) of the authorities that the server's may be from.  [default: handlergen_ca_file of "
        "the configuration, SSL_CERT_FILE, or the system's]",
    )
    return config()(key_file(ca(json(function))))


def timeout(default: float, help: str, *, zero: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that adds `--timeout`, in seconds; `zero` allows 0 (do not wait)."""
    seconds = click.FloatRange(min=0, max=_LONGEST_TIMEOUT_S, min_open=not zero)
    return click.option("--timeout", type=seconds, default=default, show_default=True, help=help)


def drain(when: str) -> Callable[[Function], Function]:
    """Return a decorator that adds `--drain`, in seconds."""
    seconds = click.FloatRange(min=0, max=_LONGEST_TIMEOUT_S)
    help = f"Seconds that requests under way have at most {when}; 0: end it at once."
    return click.option("--drain", type=seconds, default=30.0, show_default=True, help=help)


def multipart(function: Function) -> Function:
    """Add `--field`, `--content-type` and `--header`, which describe a request body that is not plain JSON."""
    field = click.option(
        "--field",
        "fields",
        multiple=True,
        metavar="NAME=VALUE|NAME=@PATH",
        help="A field or a file of a multipart form. May be repeated.",
    )
    content_type = click.option("--content-type", help="Overrides the type guessed from the file name.")
    header = click.option(
        "--header",
        "headers",
        multiple=True,
        metavar="NAME:VALUE",
        help="An HTTP header. May be repeated. Not over gRPC.",
    )
    return field(content_type(header(function)))


@contextmanager
def connected(config: Path, key_file: Path | None, ca: Path | None, *, timeout: float = 300.0) -> Iterator[Client]:
    """Open a client for the server on this configuration; without the default file, for TorchServe's addresses.

    When no server is listening, the error's hint says how to start it.

    Raises:
        HandlergenError: The configuration is invalid, or missing and not the default one.
    """
    from handlergen.client import Client
    from handlergen.server.properties import ServerSettings

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it prints failed handshakes, which the error reports
    if config.exists() or config != Path(DEFAULT_CONFIG):
        opened = Client.from_config(config, key_file=key_file, ca=ca, timeout=timeout)
        hint = f"start it with `{handlergen_command('serve', config)}`"
    else:
        opened = Client(ServerSettings(), key_file=key_file, ca=ca, timeout=timeout)
        hint = (
            f"there is no {config} in this directory, so TorchServe's default addresses were tried: change to the "
            "server's directory, or select its configuration with -c"
        )
    with opened as client:
        try:
            yield client
        except NoServer as error:
            error.hint = hint
            raise


def settings(*names: str) -> Callable[[Function], Function]:
    """Return a decorator that adds a flag for each of some settings.

    The command receives each value under the setting's name, as a Python value, or None without the flag: declare
    `**overrides` and pass them to `open_project`. A flag overrides the environment and the file.

    Args:
        names: Settings; when empty, all but `source`, which the SOURCE argument sets, and `examples`.
    """

    def decorate(command: Function) -> Function:
        for name in reversed(names or [name for name in SETTINGS if name not in ("source", "examples")]):
            command = _option(SETTINGS[name])(command)
        return command

    return decorate


def _option(setting: SettingInfo) -> Callable[[Function], Function]:
    """Return a setting's flag with the first sentence of its help; `handlergen.yaml` and the docs have all of it."""
    kind = setting.kind
    help = re.split(r"(?<=[.;]) ", setting.help, maxsplit=1)[0].rstrip(".;") + "."
    help += " May be repeated." if kind.repeatable else ""
    help += "" if setting.default in (None, "", (), {}, False) else f"  [default: {setting.default}]"
    return click.option(
        setting.flag,
        *(["--devices"] if setting.name == "devices" else []),  # `--devices cpu` reads better than its singular
        setting.name,
        metavar=kind.metavar or None,
        is_flag=not kind.metavar,
        default=None,
        multiple=kind.repeatable,
        callback=lambda _context, _parameter, value: _value(kind, value),
        help=help,
    )


def _value(kind: Kind, raw: str | tuple[str, ...] | bool | None) -> Any:
    """Convert a flag's text to a value of a setting's kind; join the values of a repeated list flag."""
    if raw is None or raw == () or isinstance(raw, bool):
        return raw or None
    texts = [raw] if isinstance(raw, str) else raw
    try:
        parsed = [kind.parse(text) for text in texts]
        if len(parsed) == 1:
            return kind.convert(parsed[0])
        if all(isinstance(part, list) for part in parsed):
            return kind.convert([item for part in parsed for item in part])
        if all(isinstance(part, dict) for part in parsed):
            return kind.convert({key: item for part in parsed for key, item in part.items()})
        raise ValueError("it cannot be combined with other values")
    except ValueError as error:
        given, reason = " ".join(texts), str(error)
        value = "" if reason.startswith(repr(given)) else repr(given)
        parts = (value, reason, f"expected {kind.wanted}")
        raise click.BadParameter("; ".join(part for part in parts if part)) from error
