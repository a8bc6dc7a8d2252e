"""`handlergen export`: what other systems and other clients want of a model or a server."""

from __future__ import annotations

from pathlib import Path

import click

from handlergen.cli import options
from handlergen.server.configuration import DEFAULT_CONFIG


@click.group("export")
def command() -> None:
    """Write what other systems and other clients want of a model or a server.

    \b
    Example:
      handlergen export grpc -o clients/grpc
    """


@command.command("grpc")
@click.option(
    "-o", "--output", type=options.DIRECTORY, required=True, help="Directory to write to; created if missing."
)
@options.config("The server's configuration, for the address in client.py.")
@click.option("--force", is_flag=True, help="Overwrite files with different contents.")
def grpc(*, output: Path, config: Path, force: bool) -> None:
    """Write the gRPC service definitions and a client in Python.

    The .proto files are those of the installed TorchServe, with their licence; any language's gRPC compiler reads them.

    \b
    Example:
      handlergen export grpc -o clients/grpc
      pip install grpcio-tools
      TOKEN=... python clients/grpc/client.py digits '[1, 2]'
    """
    from handlergen.project.settings import shown
    from handlergen.server.properties import ServerSettings, read_properties
    from handlergen.server.service_definitions import write_service_definitions

    given = config.exists() or config != Path(DEFAULT_CONFIG)
    for path in write_service_definitions(output, read_properties(config) if given else ServerSettings(), force=force):
        click.echo(f"wrote {shown(path)}")
