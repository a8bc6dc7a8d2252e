"""`handlergen map`: predict for many inputs without a server."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.printing import counted, few_tracebacks, print_json, stdout_of_its_own, warn
from handlergen.errors import HandlergenError

if TYPE_CHECKING:
    from handlergen.local.offline.engine import Engine
    from handlergen.local.offline.job import Progress, Summary

_FORMATS = ("jsonl", "csv", "npy", "files")
_LINES = (".jsonl", ".ndjson", ".json", ".txt")
_REFRESH_S = 0.2
_TRACEBACKS = 5


@click.command("map")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("input", metavar="INPUT")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="The output: a .jsonl, .csv, .npy or .parquet file, or - for JSON lines on stdout.",
)
@click.option(
    "--format", "input_format", type=click.Choice(_FORMATS), help="Format of INPUT.  [default: from its name]"
)
@click.option("--id-field", metavar="NAME", help="The field that holds a row's id.  [default: the row's number]")
@click.option("--content-type", help="Content type of the input files.  [default: from their names]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Rows to predict and write at a time.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes for decoding and preprocessing; 0 for none.  [default: one per core if that is faster] With "
    "--engine ray: copies of the model.  [default: one per GPU, or per node]",
)
@click.option("--threads", is_flag=True, help="Preprocess in threads instead of processes.")
@click.option("--unordered", is_flag=True, help="Write rows as soon as they are ready, not in the order of the input.")
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    help="Stop with exit status 7 when more rows than this have failed.",
)
@click.option("--overwrite", is_flag=True, help="Start over and overwrite existing output.")
@options.gpu
@options.any_runtime
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run in this process, or on a Ray cluster (needs handlergen[ray]).",
)
@options.json
def command(
    *,
    source: Path,
    input: str,
    output: str,
    input_format: str | None,
    id_field: str | None,
    content_type: str | None,
    workers: int | None,
    threads: bool,
    unordered: bool,
    gpu: int | None,
    any_runtime: bool,
    engine: str,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Predict for many inputs with the model of SOURCE (a source as for `handlergen archive`, or a .mar).

    INPUT is a file of JSON lines, a CSV file with a header, a .npy file, a directory or quoted glob of files, or
    `-` for standard input. Each row gets the answer that a client of the served model would get; a failed row becomes
    an error row. Predictions take turns with those of a server on the same device.

    To resume an interrupted run, repeat the command.

    \b
    Examples:
      handlergen map digits.py rows.jsonl -o answers.jsonl
      handlergen map model-store/digits.mar scans/ -o answers.parquet --batch-size 64
      tail -f rows.jsonl | handlergen map digits.py - -o - --batch-size 1
    """
    from handlergen.local.offline.job import as_json as plain
    from handlergen.local.offline.job import map_to_file
    from handlergen.local.offline.output import can_resume
    from handlergen.local.offline.sources import open_source

    rows = open_source(
        input, format=input_format, id_field=id_field, content_type=content_type, stdin=sys.stdin.buffer, warn=warn
    )
    if as_json and output == "-":
        raise click.UsageError("--json and -o - cannot be combined: both write to stdout")
    if output != "-":
        _check_output(output)
    path = Path(output).absolute()
    try:
        with (
            _progress_line() as progress,
            few_tracebacks(_TRACEBACKS),
            stdout_of_its_own() as stdout,
            _opened(engine, source, gpu=gpu, any_runtime=any_runtime, workers=workers, threads=threads) as answering,
        ):
            summary = map_to_file(
                answering,
                rows,
                stdout if output == "-" else path,
                ordered=not unordered,
                progress=progress,
                **arguments,  # options that are named like its parameters
            )
    except KeyboardInterrupt:
        if output != "-" and can_resume(path):
            click.echo(f"\nThe finished rows are in {output}; repeat the command to resume.", err=True)
        raise
    if as_json:
        print_json(plain(summary), indent=None)
    elif output != "-" or summary.failed:
        click.echo(_sentence(summary, output), err=True)


def _check_output(output: str) -> None:
    """Raise HandlergenError for a directory; warn about a name that suggests another format."""
    from handlergen.local.offline.output import CONVERTERS

    if Path(output).is_dir():
        raise HandlergenError(
            f"{output} is a directory", hint=f"give a file in it, such as {Path(output) / 'answers.jsonl'}"
        )
    suffix = Path(output).suffix.lower()
    if suffix and suffix not in (*CONVERTERS, *_LINES):
        warn(f"{output} will contain JSON lines; other formats: {', '.join(sorted(CONVERTERS))}")


@contextlib.contextmanager
def _opened(
    engine: str, source: Path, *, gpu: int | None, any_runtime: bool, workers: int | None, threads: bool
) -> Iterator[Engine]:
    if engine == "ray":
        if gpu is not None or threads:
            raise click.UsageError(
                "--engine ray places models and processes itself: --gpu and --threads have no effect"
            )
        from handlergen.local.model import open_archive
        from handlergen.local.offline.ray_engine import open_ray_engine

        if source.suffix == ".mar":
            warn(*open_archive(source, any_runtime=any_runtime)[1])
        with open_ray_engine(source, actors=workers, any_runtime=any_runtime) as ray_engine:
            yield ray_engine
        return
    from handlergen.local.model import load
    from handlergen.local.offline.engine import LocalEngine

    with load(source, gpu=gpu, any_runtime=any_runtime) as model, model.surroundings.entered():
        warn(*model.warnings)
        yield LocalEngine(model, workers=workers, threads=threads, warn=warn)


def _sentence(summary: Summary, output: str) -> str:
    new = summary.rows - summary.resumed_rows
    text = f"{counted(new, 'row')} in {summary.seconds:.1f} s ({summary.rows_per_s:.0f} rows/s)"
    if summary.resumed_rows:
        text += f", after {summary.resumed_rows} from the earlier run"
    if summary.failed:
        text += f"; {summary.failed} of them failed" if not summary.resumed_rows else f"; {summary.failed} failed"
    return f"{text}: {output}" if output != "-" else text


@contextlib.contextmanager
def _progress_line() -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows share, rows, rate and time left, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _progress: None
        return
    shown_at = 0.0

    def show(progress: Progress) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= _REFRESH_S:
            shown_at = now
            click.echo(f"\r\x1b[K{_bar_text(progress)}", err=True, nl=False)

    try:
        yield show
    finally:
        click.echo("\r\x1b[K", err=True, nl=False)


def _bar_text(progress: Progress) -> str:
    rate = progress.new_rows / progress.seconds if progress.seconds > 0 else 0.0
    parts = [f"{progress.rows} rows", f"{rate:.0f} rows/s"]
    if progress.failed:
        parts.insert(1, f"{progress.failed} failed")
    share = progress.fraction
    if share is None:
        return ", ".join(parts)
    filled = int(share * 24)
    total = progress.rows / share if share > 0 else 0.0
    if rate > 0 and share < 1:
        parts.append(f"{_duration((total - progress.rows) / rate)} left")
    return f"[{'#' * filled}{'.' * (24 - filled)}] {share:4.0%}  " + ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
