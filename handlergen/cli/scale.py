"""`handlergen scale`: set the number of workers of a model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from handlergen.cli.request_advice import advised
from handlergen.cli.serving_options import (
    config_option,
    connected,
    json_option,
    key_file_option,
    timeout_option,
)
from handlergen.cli.wording import counted


@click.command("scale")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=0), required=True, help="How many there shall be.")
@click.option("--version", default=None, help="A version of the model other than the default one.")
@timeout_option(300.0, "Seconds to wait for READY.")
@config_option
@key_file_option
@json_option
def command(
    *,
    name: str,
    workers: int,
    version: str | None,
    timeout: float,
    config: Path,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Set the number of workers of model NAME and wait until they are READY.

    Reports how many there are on each device. Lasts until the server stops: an archive's own number holds
    again at the next start.

    \b
    Example:
      handlergen scale digits --workers 4
    """
    with connected(config, key_file) as client, advised(client, config, name):
        status = client.scale(name, workers, version=version, timeout=timeout)
    if as_json:
        report = {"model": status.name, "workers": status.ready_workers, "placement": status.placement}
        click.echo(json.dumps(report))
        return
    where = ", ".join(f"{count} on {device}" for device, count in status.placement.items())
    click.echo(
        f"{status.name}: {counted(status.ready_workers, 'worker')} READY" + (f" ({where})" if where else "")
    )
    counts = set(status.placement.values())
    if len(counts) > 1 and max(counts) - min(counts) > 1:
        click.echo(
            "Warning: the workers are spread unevenly; TorchServe counts devices on after scaling down. "
            "Restarting the server spreads them anew.",
            err=True,
        )
