"""`handlergen token`: print a token for other clients."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from handlergen.cli import options
from handlergen.cli.printing import print_json


@click.command("token")
@click.option("--inference", "kind", flag_value="inference", default=True, help="For predictions.  [default]")
@click.option("--management", "kind", flag_value="management", help="For describing and scaling models.")
@click.option("--header", is_flag=True, help="Print the whole header, for curl -H @-, which keeps it out of `ps`.")
@click.option("--renew", is_flag=True, help="Get a new token; the one before ends at once, also for other clients.")
@options.server
def command(
    *, kind: str, header: bool, renew: bool, config: Path, key_file: Path | None, ca: Path | None, as_json: bool
) -> None:
    """Print a token of the running server for other clients.

    A token that has ended is renewed first. Over gRPC it goes into the metadata `authorization`, as `Bearer TOKEN`.

    \b
    Example:
      handlergen token --header | curl -H @- http://127.0.0.1:8080/ping
    """
    with options.connected(config, key_file, ca, timeout=30) as client:
        token = client.token(kind, renew=renew)
    text = "Authorization: " + token.header()["Authorization"]
    if as_json:
        ends = datetime.fromtimestamp(token.ends, timezone.utc).isoformat().replace("+00:00", "Z")
        print_json({"kind": kind, "token": token.key, "header": text, "ends": ends}, indent=None)
        return
    click.echo(text if header else token.key)
