"""`handlergen trace`: convert recorded spans to a file for Perfetto."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli.options import json_option
from handlergen.cli.printing import counted, named, print_json, writable

if TYPE_CHECKING:
    from handlergen.performance.trace import TraceSummary

_STDOUT = Path("-")


@click.command("trace")
@click.argument(
    "directory",
    metavar="[DIR]",
    envvar="HANDLERGEN_TRACE_DIR",
    type=click.Path(path_type=Path),
    required=False,
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("trace.json"),
    show_default=True,
    help="The file to write, compressed if its name ends in .gz; - is stdout.",
)
@click.option("--model", metavar="NAME", help="Only this model's spans.")
@click.option(
    "--last",
    "last_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Only this many seconds at the end.",
)
@click.option(
    "--from",
    "from_s",
    type=float,
    metavar="SECOND",
    help="Only spans after this second of the recording.",
)
@click.option("--to", "to_s", type=float, metavar="SECOND", help="Only spans before this second of the recording.")
@json_option
def command(
    *,
    directory: Path | None,
    output: Path,
    model: str | None,
    last_s: float | None,
    from_s: float | None,
    to_s: float | None,
    as_json: bool,
) -> None:
    """Convert recorded spans to a trace for https://ui.perfetto.dev.

    A server that was started with HANDLERGEN_TRACE_DIR=DIR records when each stage of each request ran. The trace has
    a row per worker and stage, and a row per device with its predictions; arrows connect the preprocess, predict and
    postprocess of each request. DIR defaults to HANDLERGEN_TRACE_DIR.

    \b
    Example:
      HANDLERGEN_TRACE_DIR=spans handlergen serve
      handlergen invoke digits --file three.png
      handlergen trace spans
      handlergen trace spans --last 5 -o trace.json.gz
    """
    from handlergen.performance.trace import Trace, open_output, write_trace

    if directory is None:
        raise click.UsageError("name the directory of the spans: handlergen trace DIR")
    if last_s is not None and (from_s is not None or to_s is not None):
        raise click.UsageError("--last cannot be used together with --from or --to.")
    if from_s is not None and to_s is not None and to_s <= from_s:
        raise click.UsageError("--to must be later than --from.")
    if as_json and output == _STDOUT:
        raise click.UsageError("--json and -o - cannot be combined: both write to stdout")
    trace = Trace(directory, model, last_s, from_s, to_s)
    if output == _STDOUT:
        summary = write_trace(trace, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with named(output), open_output(writable(output)) as file:
            summary = write_trace(trace, file)
    if as_json:
        print_json(_as_json(summary, output))
    else:
        _report(summary, output)


def _report(summary: TraceSummary, output: Path) -> None:
    """Print the summary on stderr, because the trace may go to stdout."""
    name = "trace" if output == _STDOUT else f"{output} ({output.stat().st_size:,} bytes)"
    lines = [
        f"{name}: {counted(summary.requests, 'request')} answered by "
        f"{counted(len(summary.pids), 'process', 'processes')} in {summary.seconds:.3f} s"
    ]
    for device, use in sorted(summary.devices.items()):
        mean_ms = use.total_ns / use.predicts / 1e6
        lines.append(
            f"{device}: {counted(use.predicts, 'predict')}, {counted(use.overlaps, 'overlap')}, "
            f"busy {100 * use.busy:.1f} % of the time, {mean_ms:.3g} ms each"
        )
        if use.overlaps:
            lines.append("  predictions overlap only with the settings `lock: model` and `lock: none`")
    if summary.torn:
        lines.append(f"left out: {counted(summary.torn, 'incomplete line')} of killed workers")
    if summary.backwards:
        lines.append(f"left out: {counted(summary.backwards, 'span')} that end before they start")
    if output != _STDOUT:
        lines.append("open it at https://ui.perfetto.dev (nothing is uploaded)")
    for line in lines:
        click.echo(line, err=True)


def _as_json(summary: TraceSummary, output: Path) -> dict[str, Any]:
    return {
        "file": str(output),
        "requests": summary.requests,
        "spans": summary.spans,
        "seconds": summary.seconds,
        "processes": sorted(summary.pids),
        "devices": {
            device: {
                "predicts": use.predicts,
                "overlaps": use.overlaps,
                "busy_s": use.busy * summary.seconds,
                "busy_share": use.busy,
            }
            for device, use in sorted(summary.devices.items())
        },
        "torn_lines": summary.torn,
        "backward_spans": summary.backwards,
    }
