"""`handlergen logs`: show what the workers print, without TorchServe's own lines, or one request's lines."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import click

from handlergen.cli import options
from handlergen.cli.printing import print_json
from handlergen.errors import HandlergenError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@click.command("logs")
@click.argument("request_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Show only what is printed from now on, until Ctrl-C.")
@click.option(
    "--level",
    type=click.Choice(("debug", "info", "warning", "error"), case_sensitive=False),
    default="debug",
    help="Only this level and above: stderr is warning, a traceback error.  [default: all]",
)
@click.option("--model", metavar="NAME", help="Only this model: NAME, or NAME_VERSION.")
@options.config()
@options.json
def command(
    *, request_id: str | None, follow: bool, level: str, model: str | None, config: Path, as_json: bool
) -> None:
    """Show the model log: what workers and predictor processes print. With ID, only that request's lines.

    ID is the client's `x-request-id`, or TorchServe's, from an error's `request_id` or the answer's headers. A request
    that failed with 500 or above has its traceback there, and a hook's own lines if they contain `request.id`. With ID,
    rotated files are searched, too. Works without a running server.

    \b
    Example:
      handlergen logs --level error
      handlergen logs 3f0c8a9e-51d2-4d0a-9a51-6f3c1f0f7c11
      handlergen logs --follow --model digits --json
    """
    from handlergen.project.settings import shown
    from handlergen.server.logs import LogFilter, ModelLog

    wanted = LogFilter(request_id, level.lower(), model)
    log = ModelLog.of(config)
    events = log.follow() if follow else log.events(rotated=request_id is not None)
    if follow and not log.is_running():
        click.echo(f"no server of `handlergen serve` runs on {shown(config)}; following {shown(log.path)}", err=True)
    found = 0
    for event in events:
        if not wanted.wants(event):
            continue
        found += 1
        if as_json:
            print_json(asdict(event), indent=None)
            continue
        # Requests may have put the terminal's control sequences into the log.
        text = _CONTROL.sub(lambda each: repr(each[0])[1:-1], event.text)
        click.echo(" ".join(filter(None, (event.time, f"{event.level.upper():<7}", event.source, event.model, text))))
    if request_id is not None and not found:
        raise HandlergenError(
            f"{shown(log.path)} and its rotated files have no line about request {request_id}",
            hint="a request leaves lines when it fails with 500 or above, or when a hook logs its request.id",
        )
