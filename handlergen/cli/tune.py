"""`handlergen tune`: which settings a model wants."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click

from handlergen.cli.options import json_option, setting_options


@click.command("tune")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A typical request: a file that is posted as a client would.",
)
@click.option(
    "--target-p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Keep 99 of 100 requests below this when they come at random; else as many requests/s as possible.",
)
@click.option("--gpu", type=int, help="Predict on this GPU instead of the CPU.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="Length of each load.",
)
@click.option("--apply", "applies", is_flag=True, help="Write the settings into handlergen.yaml.")
@json_option
@setting_options("name", "form", "call", "weights", "weights_format", "batch", "config")
def command(
    *,
    source: Path,
    sample: Path,
    target_p99_ms: float | None,
    gpu: int | None,
    seconds: float,
    applies: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Measure SOURCE on a server of its own and recommend workers and batch size, saying why.

    Starts TorchServe on free ports, loads it as `bench` does with one candidate after the other (workers, batch size),
    keeps the better half, measures that again, and so on. Takes a few minutes. Measure on the machine that will serve,
    while it is quiet.

    \b
    Example:
      handlergen tune digits --sample three.png
      handlergen tune digits --sample three.png --target-p99-ms 50 --apply
    """
    from handlergen.performance.tune.apply import apply
    from handlergen.performance.tune.measuring import Subject, lines, plain, tune

    # A terminal that closes or a supervisor that says stop must leave no server behind either.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    given = {name: value for name, value in overrides.items() if value is not None}
    tuned = tune(
        Subject(source, sample, gpu, given, seconds),
        target_p99_ms=target_p99_ms,
        progress=(lambda _text: None) if as_json else (lambda text: click.echo(text, err=True)),
    )
    file = apply(source, tuned.found.settings) if applies else None
    if as_json:
        applied = str(file) if file is not None else None
        click.echo(json.dumps({**plain(tuned), "applied": applied}, indent=2))
        return
    for line in lines(tuned):
        click.echo(line)
    click.echo(f"Wrote {file}" if file is not None else "Write it into handlergen.yaml with --apply.")
