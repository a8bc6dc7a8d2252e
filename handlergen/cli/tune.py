"""`handlergen tune`: measure which settings suit a model."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from handlergen.cli.errors import interrupted_by
from handlergen.cli.options import gpu_option, json_option, setting_options
from handlergen.cli.printing import print_json


@click.command("tune")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--sample",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A file with a typical request; it is sent as `invoke --file` sends it.",
)
@click.option(
    "--target-p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Keep the 99th percentile of the latency below this.  [default: maximise the throughput]",
)
@gpu_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="Length of each measurement.",
)
@click.option("--apply", "applies", is_flag=True, help="Write the settings to handlergen.yaml.")
@json_option
@setting_options("name", "form", "call", "weights", "weights_format", "batch", "config")
@interrupted_by(signal.SIGTERM, signal.SIGHUP)
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
    """Measure SOURCE on a temporary server; recommend workers and batch size, with reasons.

    tune starts TorchServe on free ports and loads it as `bench` does, with each candidate (workers, batch size) in
    turn; it measures the better half again until one is left. This takes a few minutes. Run it on the machine that
    will serve the model, while nothing else runs there.

    \b
    Example:
      handlergen tune digits --sample three.png
      handlergen tune digits --sample three.png --target-p99-ms 50 --apply
    """
    from handlergen.performance.tune.apply import apply
    from handlergen.performance.tune.measuring import Subject, lines, plain, tune

    given = {name: value for name, value in overrides.items() if value is not None}
    tuned = tune(
        Subject(source, sample, gpu, given, seconds),
        target_p99_ms=target_p99_ms,
        progress=(lambda _text: None) if as_json else (lambda text: click.echo(text, err=True)),
    )
    file = apply(source, tuned.found.settings) if applies else None
    if as_json:
        applied = str(file) if file is not None else None
        print_json({**plain(tuned), "applied": applied})
        return
    for line in lines(tuned):
        click.echo(line)
    click.echo(f"Wrote {file}" if file is not None else "--apply writes the settings to handlergen.yaml.")
