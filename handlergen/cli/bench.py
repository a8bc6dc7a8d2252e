"""`handlergen bench`, `tune` and `trace`: load tests, recommended settings, recorded spans for Perfetto."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.errors import interrupted_by
from handlergen.cli.printing import counted, named, print_json, writable
from handlergen.cli.requests import field_of, headers_of
from handlergen.errors import NoServer

if TYPE_CHECKING:
    from handlergen.performance.trace import TraceSummary

_STDOUT = Path("-")


@click.command("bench")
@click.argument("name")
@click.option("--data", multiple=True, metavar="JSON", help="A request as JSON. May be repeated: requests take turns.")
@click.option(
    "--file",
    "files",
    type=options.EXISTING_FILE,
    multiple=True,
    help="A request as a file. May be repeated: requests take turns.",
)
@click.option(
    "--inputs",
    metavar="PATH",
    help="Many requests, sent in turn: JSONL, CSV, .npy, a directory or a glob, as for `map`.",
)
@options.multipart
@click.option(
    "--clients",
    type=click.IntRange(min=1, max=4096),
    help="Closed loop: this many clients; each sends its next request after an answer.  [default: 16]",
)
@click.option(
    "--rate",
    type=options.POSITIVE,
    help="Open loop: this many requests a second, whether or not earlier ones were answered.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["random", "even"]),
    default="random",
    show_default=True,
    help="With --rate: random intervals, as with independent users, or even ones.",
)
@click.option("--duration", type=options.POSITIVE, default=10.0, show_default=True, help="Seconds to measure.")
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Seconds of load before that.",
)
@options.timeout(30.0, "Seconds after which a request counts as failed.")
@click.option("--grpc", "over_grpc", is_flag=True, help="Use gRPC instead of REST.")
@options.version
@click.option(
    "--trace",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The server's span directory.  [default: found for a server on this machine]",
)
@click.option("--report", type=options.FILE, help="Write an HTML file with the distributions and the timeline.")
@options.server
def command(
    *,
    name: str,
    data: tuple[str, ...],
    files: tuple[Path, ...],
    inputs: str | None,
    fields: tuple[str, ...],
    content_type: str | None,
    headers: tuple[str, ...],
    clients: int | None,
    rate: float | None,
    arrivals: str,
    duration: float,
    warmup: float,
    timeout: float,
    over_grpc: bool,
    version: str | None,
    trace: Path | None,
    report: Path | None,
    config: Path,
    key_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Load-test model NAME of a running server: show its throughput, its latency and what limits them.

    For a server that was started with `serve --trace DIR`, the report adds the device's utilization, the waiting
    times for the device and the highest possible throughput. A closed loop (--clients) measures what the server can
    do; an open loop (--rate) measures how long users wait at that rate, from the time their request was due.

    \b
    Examples:
      handlergen serve --trace spans
      handlergen bench digits --file three.png
      handlergen bench digits --inputs held-out/ --clients 32 --report bench.html
      handlergen bench digits --file three.png --rate 50 --duration 60 --json
    """
    if clients is not None and rate is not None:
        raise click.UsageError("--clients (closed loop) and --rate (open loop) cannot be combined")
    if sum(map(bool, (data, files, inputs, fields))) != 1:
        raise click.UsageError("give exactly one of --data, --file, --inputs and --field")
    if over_grpc and (headers or content_type):
        raise click.UsageError("--header and --content-type have no effect over gRPC, which has no headers")
    if report is not None:
        writable(report)
    from handlergen.performance.bench.measure import LoadPlan, measure, of_fields, of_file, of_input, of_json_text
    from handlergen.performance.bench.report import lines, page, plain
    from handlergen.performance.bench.traffic import Closed, Open

    if data:
        samples = [of_json_text(text) for text in data]
    elif files:
        samples = [of_file(path, content_type) for path in files]
    elif inputs:
        samples = of_input(inputs, content_type=content_type)
    else:
        samples = [of_fields(dict(field_of(text) for text in fields))]
    plan = LoadPlan(
        pace=Closed(clients or 16) if rate is None else Open(rate, even=arrivals == "even"),
        seconds=duration,
        warmup_s=warmup,
        over_grpc=over_grpc,
        version=version,
        headers=headers_of(headers),
        longest_answer_s=timeout,
    )
    with options.connected(config, key_file, ca) as client:
        if not as_json:
            click.echo(f"sending load to {name} for {warmup + duration:g} s ...", err=True)
        measurement = measure(client, name, samples, plan, trace_dir=trace)
    if report is not None:
        report.write_text(page(measurement), encoding="utf-8")
    if as_json:
        print_json(plain(measurement))
        return
    click.echo("\n".join(lines(measurement)))
    if report is not None:
        click.echo(f"Report: {report}")


@click.command("tune")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--sample",
    type=options.EXISTING_FILE,
    required=True,
    help="A file with a typical request; it is sent as `invoke --file` sends it.",
)
@click.option(
    "--target-p99-ms",
    type=options.POSITIVE,
    help="Keep the 99th percentile of the latency below this.  [default: maximise the throughput]",
)
@options.gpu
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="Length of each measurement.",
)
@click.option("--apply", "applies", is_flag=True, help="Write the settings to handlergen.yaml.")
@options.json
@options.settings("name", "form", "call", "weights", "weights_format", "batch", "config")
@interrupted_by(signal.SIGTERM, signal.SIGHUP)
def tune(
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
    from handlergen.performance.tune.measuring import Subject, lines, plain
    from handlergen.performance.tune.measuring import tune as measure

    given = {name: value for name, value in overrides.items() if value is not None}
    tuned = measure(
        Subject(source, sample, gpu, given, seconds),
        target_p99_ms=target_p99_ms,
        progress=(lambda _text: None) if as_json else (lambda text: click.echo(text, err=True)),
    )
    file = apply(source, tuned.found.settings) if applies else None
    if as_json:
        applied = str(file) if file is not None else None
        print_json({**plain(tuned), "applied": applied})
        return
    click.echo("\n".join(lines(tuned)))
    click.echo(f"Wrote {file}" if file is not None else "--apply writes the settings to handlergen.yaml.")


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
    type=options.FILE,
    default=Path("trace.json"),
    show_default=True,
    help="The file to write, compressed if its name ends in .gz; - is stdout.",
)
@click.option("--model", metavar="NAME", help="Only this model's spans.")
@click.option("--last", "last_s", type=options.POSITIVE, metavar="SECONDS", help="Only this many seconds at the end.")
@click.option("--from", "from_s", type=float, metavar="SECOND", help="Only spans after this second of the recording.")
@click.option("--to", "to_s", type=float, metavar="SECOND", help="Only spans before this second of the recording.")
@options.server
def trace(
    *,
    directory: Path | None,
    output: Path,
    model: str | None,
    last_s: float | None,
    from_s: float | None,
    to_s: float | None,
    config: Path,
    key_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Convert recorded spans to a trace for https://ui.perfetto.dev.

    A server that was started with `serve --trace DIR` records when each stage of each request ran. The trace has a row
    per worker and stage, and a row per device with its predictions; arrows connect the preprocess, predict and
    postprocess of each request. DIR defaults to HANDLERGEN_TRACE_DIR, else to that of the running server.

    \b
    Example:
      handlergen serve --trace spans
      handlergen invoke digits --file three.png
      handlergen trace
      handlergen trace spans --last 5 -o trace.json.gz
    """
    from handlergen.performance.trace import Trace, open_output, write_trace

    if last_s is not None and (from_s is not None or to_s is not None):
        raise click.UsageError("--last cannot be used together with --from or --to.")
    if from_s is not None and to_s is not None and to_s <= from_s:
        raise click.UsageError("--to must be later than --from.")
    if as_json and output == _STDOUT:
        raise click.UsageError("--json and -o - cannot be combined: both write to stdout")
    chosen = Trace(directory or _directory_of_server(config, key_file, ca, model), model, last_s, from_s, to_s)
    if output == _STDOUT:
        summary = write_trace(chosen, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with named(output), open_output(writable(output)) as file:
            summary = write_trace(chosen, file)
    if as_json:
        print_json(_trace_as_json(summary, output))
    else:
        _report_trace(summary, output)


def _directory_of_server(config: Path, key_file: Path | None, ca: Path | None, model: str | None) -> Path:
    from handlergen.performance.bench.measure import trace_directory

    try:
        with options.connected(config, key_file, ca) as client:
            return trace_directory(client, model)
    except NoServer as error:
        error.hint = f"`handlergen trace DIR` needs no running server; {error.hint}"
        raise


def _report_trace(summary: TraceSummary, output: Path) -> None:
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
    click.echo("\n".join(lines), err=True)


def _trace_as_json(summary: TraceSummary, output: Path) -> dict[str, Any]:
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
