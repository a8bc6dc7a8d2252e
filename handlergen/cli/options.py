"""Options that several verbs share: a flag for each setting, and the options that select a running server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handlergen.errors import NoServer
from handlergen.project.settings import SETTINGS, SettingInfo
from handlergen.server.configuration import DEFAULT_CONFIG, handlergen_command

if TYPE_CHECKING:
    from handlergen.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])

_LONGEST_TIMEOUT_S = 1_000_000.0  # the system cannot wait for much longer

#: Settings without a flag: the SOURCE argument sets this one.
_NOT_FLAGS = ("source",)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
gpu_option = click.option("--gpu", type=int, help="Use this GPU instead of the CPU.")


def config_option(function: Function) -> Function:
    """Add `-c/--config`, which selects the server."""
    return click.option(
        "-c",
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path(DEFAULT_CONFIG),
        show_default=True,
        help="The server's configuration. TorchServe runs in the directory of this file.",
    )(function)


def key_file_option(function: Function) -> Function:
    """Add `--key-file`, the file with the tokens."""
    return click.option(
        "--key-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=None,
        help="TorchServe's key_file.json.  [default: beside the configuration]",
    )(function)


def timeout_option(default: float, help: str, *, zero: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that adds `--timeout`, in seconds.

    Args:
        zero: Whether 0 (do not wait) is allowed.
    """
    seconds = click.FloatRange(min=0, max=_LONGEST_TIMEOUT_S, min_open=not zero)
    return click.option("--timeout", type=seconds, default=default, show_default=True, help=help)


def multipart_options(function: Function) -> Function:
    """Add `--field`, `--content-type` and `--header`, which describe a request body that is not plain JSON."""
    for option in (
        click.option(
            "--header",
            "headers",
            multiple=True,
            metavar="NAME:VALUE",
            help="An HTTP header. May be repeated. Not over gRPC.",
        ),
        click.option("--content-type", help="Overrides the type guessed from the file name."),
        click.option(
            "--field",
            "fields",
            multiple=True,
            metavar="NAME=VALUE|NAME=@PATH",
            help="A field or a file of a multipart form. May be repeated.",
        ),
    ):
        function = option(function)
    return function


version_option = click.option("--version", help="The model's version.  [default: the default version]")


@contextmanager
def connected(config: Path, key_file: Path | None, *, timeout: float = 300.0) -> Iterator[Client]:
    """Open a client for the server on this configuration; without the default file, for TorchServe's addresses.

    When no server is listening, the error's hint says how to start it.

    Raises:
        HandlergenError: The configuration is invalid, or missing and not the default one.
    """
    from handlergen.client import Client
    from handlergen.server.properties import ServerSettings

    stock = config == Path(DEFAULT_CONFIG) and not config.exists()
    opened = (
        Client(ServerSettings(), key_file=key_file, timeout=timeout)
        if stock
        else Client.from_config(config, key_file=key_file, timeout=timeout)
    )
    with opened as client:
        try:
            yield client
        except NoServer as error:
            error.hint = (
                f"there is no {config} in this directory, so TorchServe's default addresses were tried: change to the "
                "server's directory, or select its configuration with -c"
                if stock
                else f"start it with `{handlergen_command('serve', config)}`"
            )
            raise


def setting_options(*names: str) -> Callable[[Function], Function]:
    """Return a decorator that adds a flag for each of some settings, or of all.

    The command receives each value under the setting's name, as a Python value, or None without the flag: declare
    `**overrides` and pass them to `open_project`. A flag overrides the environment and the file.

    Args:
        names: Settings; every setting that has a flag when empty.
    """
    chosen = [SETTINGS[name] for name in names] or [s for s in SETTINGS.values() if s.name not in _NOT_FLAGS]

    def decorate(command: Function) -> Function:
        for setting in reversed(chosen):
            command = _option(setting)(command)
        return command

    return decorate


def _option(setting: SettingInfo) -> Callable[[Function], Function]:
    flags = [setting.flag]
    if setting.name == "devices":
        flags.append("--devices")  # `--devices cpu` reads better than its singular
    return click.option(
        *flags,
        setting.name,
        metavar=setting.kind.metavar,
        multiple=setting.kind.repeatable,
        default=None,
        callback=lambda _context, _parameter, value: _value(setting, value),
        help=_help(setting),
    )


def _value(setting: SettingInfo, raw: str | tuple[str, ...] | None) -> Any:
    """Convert a flag's text to the setting's value; join the values of a repeated list flag.

    Raises:
        click.BadParameter: The text is invalid; the message says what kind of value is expected.
    """
    if raw is None or raw == ():
        return None
    kind = setting.kind
    try:
        if isinstance(raw, str):
            return kind.convert(kind.parse(raw))
        parsed = [kind.parse(part) for part in raw]
        if all(isinstance(part, list) for part in parsed):
            return kind.convert([item for part in parsed for item in part])
        if all(isinstance(part, dict) for part in parsed):
            return kind.convert({key: item for part in parsed for key, item in part.items()})
        if len(parsed) == 1:
            return kind.convert(parsed[0])
        raise ValueError("it cannot be combined with other values")
    except ValueError as error:
        given = raw if isinstance(raw, str) else " ".join(raw)
        reason = "" if type(error) is not ValueError or _pythonic(str(error)) else str(error)
        value = "" if reason.startswith(repr(given)) else repr(given)
        parts = (value, reason, f"expected {kind.wanted}")
        raise click.BadParameter("; ".join(part for part in parts if part)) from error


def _pythonic(message: str) -> bool:
    """Return whether the message is int()'s or float()'s, which is less clear than `kind.wanted`."""
    return message.startswith(("invalid literal", "could not convert"))


def _help(setting: SettingInfo) -> str:
    """Return the first sentence of the setting's help; `handlergen.yaml` and the docs have all of it."""
    first = re.split(r"(?<=[.;]) ", setting.help, maxsplit=1)[0].rstrip(".;")
    default = setting.default
    shown = "" if default in (None, "", (), {}) else f"  [default: {default}]"
    repeat = " May be repeated." if setting.kind.repeatable else ""
    return f"{first}.{repeat}{shown}"
