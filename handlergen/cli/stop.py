"""`handlergen stop`: end the server that `handlergen serve` started."""

from __future__ import annotations

import json
from pathlib import Path

import click

from handlergen.cli.serving_options import config_option, json_option, timeout_option


@click.command("stop")
@config_option
@timeout_option(30.0, "Seconds before it is killed.", zero=True)
@json_option
def command(*, config: Path, timeout: float, as_json: bool) -> None:
    """Stop the server that `handlergen serve` started on this configuration, workers included.

    Nothing else is touched: a TorchServe that was started by hand is stopped by `torchserve --stop`.

    \b
    Example:
      handlergen stop
      handlergen stop -c other/config.properties
    """
    from handlergen.server import stop

    stopped = stop(config, timeout=timeout)
    if as_json:
        click.echo(json.dumps({"stopped": stopped, "config": str(config)}))
    elif stopped:
        click.echo("stopped")
    else:
        click.echo(f"no server started by `handlergen serve` is running on {config}")
        if not config.exists():
            click.echo(
                f"Hint: there is no {config} here; change to the server's directory, or name its configuration with -c",
                err=True,
            )
