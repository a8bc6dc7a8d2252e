"""`handlergen tune`: which settings a model wants."""

from __future__ import annotations

import json
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
    help="Length of each of the two measurements.",
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
    """Measure SOURCE's stages here and recommend workers and batch size for it, saying why.

    Its stages are timed alone and in several processes at once, without a server; servers with other settings are
    simulated from that. Measure on the machine that will serve, and while it is quiet.

    \b
    Example:
      handlergen tune digits --sample three.png
      handlergen tune digits --sample three.png --target-p99-ms 50 --apply
    """
    import psutil

    from handlergen.project import open_project
    from handlergen.tuning.apply import apply
    from handlergen.tuning.probe import Subject, measure_alone, measure_beside
    from handlergen.tuning.recommend import recommend
    from handlergen.tuning.summary import lines, plain

    given = {name: value for name, value in overrides.items() if value is not None}
    open_project(source, overrides=given)  # what is wrong with it is told before a process is started
    subject = Subject(source, sample, gpu, given, seconds)
    if not as_json:
        click.echo("measuring one process alone ...", err=True)
    alone = measure_alone(subject)

    def beside(processes: int) -> Any:
        if not as_json:
            click.echo(f"measuring {processes} processes at once ...", err=True)
        return measure_beside(subject, processes)

    found, together = recommend(
        alone,
        available_memory=psutil.virtual_memory().available,
        target_p99_ms=target_p99_ms,
        beside=beside,
    )
    file = apply(source, found.settings) if applies else None
    if as_json:
        applied = str(file) if file is not None else None
        click.echo(json.dumps({**plain(alone, together, found), "applied": applied}, indent=2))
        return
    for line in lines(alone, together, found):
        click.echo(line)
    click.echo(f"Wrote {file}" if file is not None else "Write it into handlergen.yaml with --apply.")
