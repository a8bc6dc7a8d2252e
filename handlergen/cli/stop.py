"""`handlergen stop`: stop the server that `handlergen serve` started."""

from __future__ import annotations

from pathlib import Path

import click

from handlergen.cli.options import config_option, json_option, timeout_option
from handlergen.cli.printing import print_json


@click.command("stop")
@config_option
@timeout_option(30.0, "Seconds until the server is killed.", zero=True)
@json_option
def command(*, config: Path, timeout: float, as_json: bool) -> None:
    """Stop the server that `handlergen serve` started on this configuration, including its workers.

    Other servers are not touched: use `torchserve --stop` for a TorchServe that was started by hand.

    \b
    Example:
      handlergen stop
      handlergen stop -c other/config.properties
    """
    from handlergen.server import stop

    stopped = stop(config, timeout=timeout)
    if as_json:
        print_json({"stopped": stopped, "config": str(config)}, indent=None)
    elif stopped:
        click.echo("stopped")
    else:
        click.echo(f"no server started by `handlergen serve` is running on {config}")
        if not config.exists():
            click.echo(
                f"Hint: there is no {config} here: change to the server's directory, or select one with -c",
                err=True,
            )
