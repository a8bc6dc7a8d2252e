"""`handlergen scale`: set the number of workers of a model."""

from __future__ import annotations

from pathlib import Path

import click

from handlergen.cli.options import (
    config_option,
    connected,
    json_option,
    key_file_option,
    timeout_option,
)
from handlergen.cli.printing import counted, per_device, print_json, warn
from handlergen.cli.requests import advised


@click.command("scale")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=0), required=True, help="Number of workers.")
@click.option("--version", default=None, help="The model's version.  [default: the default version]")
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

    Reports the number of workers on each device. The change lasts until the server stops; at the next start the
    archive's number applies again.

    \b
    Example:
      handlergen scale digits --workers 4
    """
    with connected(config, key_file) as client, advised(client, config, name):
        status = client.scale(name, workers, version=version, timeout=timeout)
    if as_json:
        report = {"model": status.name, "workers": status.ready_workers, "placement": status.placement}
        print_json(report, indent=None)
        return
    devices = f" ({per_device(status.placement)})" if status.placement else ""
    click.echo(f"{status.name}: {counted(status.ready_workers, 'worker')} READY{devices}")
    counts = set(status.placement.values())
    if len(counts) > 1 and max(counts) - min(counts) > 1:
        warn(
            "the workers are distributed unevenly, because TorchServe does not restart its device counter after "
            "scaling down. Restart the server to distribute them evenly."
        )
