"""Options and small helpers that config, serve, stop, status, invoke and scale share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handlergen.configuration import DEFAULT_CONFIG, handlergen_command
from handlergen.errors import NoServer

if TYPE_CHECKING:
    from handlergen.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])

_LONGEST_TIMEOUT_S = 1_000_000.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def config_option(function: Function) -> Function:
    """`-c/--config`: which server is meant."""
    return click.option(
        "-c",
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path(DEFAULT_CONFIG),
        show_default=True,
        help="The server's configuration: where it listens, and whose directory it runs in.",
    )(function)


def key_file_option(function: Function) -> Function:
    """`--key-file`: where the tokens are."""
    return click.option(
        "--key-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=None,
        help="TorchServe's key_file.json.  [default: beside the configuration]",
    )(function)


def timeout_option(default: float, help: str, *, zero: bool = False) -> Callable[[Function], Function]:
    """`--timeout`: seconds that the system can wait for; a longer one than the greatest is as good as for ever.

    Args:
        zero: It may be 0: not to wait.
    """
    seconds = click.FloatRange(min=0, max=_LONGEST_TIMEOUT_S, min_open=not zero)
    return click.option("--timeout", type=seconds, default=default, show_default=True, help=help)


@contextmanager
def connected(config: Path, key_file: Path | None, *, timeout: float = 300.0) -> Iterator[Client]:
    """`open_client`, closed at the end; when no server answers, the error says which was meant and how to start it.

    Raises:
        HandlergenError: See `open_client`.
    """
    with open_client(config, key_file, timeout=timeout) as client:
        try:
            yield client
        except NoServer as error:
            if config.exists():
                error.hint = f"start it with `{handlergen_command('serve', config)}`"
            else:
                error.hint = (
                    f"there is no {config} in this directory, so TorchServe's own addresses were tried: change to the "
                    "server's directory, or name its configuration with -c"
                )
            raise


def open_client(config: Path, key_file: Path | None, *, timeout: float = 300.0) -> Client:
    """A client for the server on this configuration; stock addresses when there is no such file.

    Raises:
        HandlergenError: The file is not understood, or was named and is missing.
    """
    from handlergen.client import Client
    from handlergen.properties import ServerSettings

    if config == Path(DEFAULT_CONFIG) and not config.exists():
        # A TorchServe that runs on its defaults, started from this directory.
        return Client(ServerSettings(), key_file=key_file, timeout=timeout)
    return Client.from_config(config, key_file=key_file, timeout=timeout)
