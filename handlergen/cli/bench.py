"""`handlergen bench`: a load test of a running model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlergen.cli.options import connected, multipart_options, server_options, timeout_option, version_option
from handlergen.cli.printing import print_json, writable
from handlergen.cli.requests import field_of, headers_of

if TYPE_CHECKING:
    from handlergen.performance.bench.measure import Sample


@click.command("bench")
@click.argument("name")
@click.option(
    "--data",
    multiple=True,
    metavar="JSON",
    help="A request as JSON. May be repeated: requests take turns.",
)
@click.option(
    "--file",
    "files",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="A request as a file. May be repeated: requests take turns.",
)
@click.option(
    "--inputs",
    metavar="PATH",
    help="Many requests, sent in turn: JSONL, CSV, .npy, a directory or a glob, as for `map`.",
)
@multipart_options
@click.option(
    "--clients",
    type=click.IntRange(min=1, max=4096),
    help="Closed loop: this many clients; each sends its next request after an answer.  [default: 16]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Open loop: this many requests a second, whether or not earlier ones were answered.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["random", "even"]),
    default="random",
    show_default=True,
    help="With --rate: random intervals, as with independent users, or even ones.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to measure.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Seconds of load before that.",
)
@timeout_option(30.0, "Seconds after which a request counts as failed.")
@click.option("--grpc", "over_grpc", is_flag=True, help="Use gRPC instead of REST.")
@version_option
@click.option(
    "--trace",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The server's span directory.  [default: found for a server on this machine]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML file with the distributions and the timeline.",
)
@server_options
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
    from handlergen.performance.bench.measure import LoadPlan, measure
    from handlergen.performance.bench.report import lines, page, plain
    from handlergen.performance.bench.traffic import Closed, Open

    samples = _samples(data, files, inputs, fields, content_type)
    plan = LoadPlan(
        pace=Closed(clients or 16) if rate is None else Open(rate, even=arrivals == "even"),
        seconds=duration,
        warmup_s=warmup,
        over_grpc=over_grpc,
        version=version,
        headers=headers_of(headers),
        longest_answer_s=timeout,
    )
    with connected(config, key_file) as client:
        if not as_json:
            click.echo(f"sending load to {name} for {warmup + duration:g} s ...", err=True)
        measurement = measure(client, name, samples, plan, trace_dir=trace)
    if report is not None:
        report.write_text(page(measurement), encoding="utf-8")
    if as_json:
        print_json(plain(measurement))
        return
    for line in lines(measurement):
        click.echo(line)
    if report is not None:
        click.echo(f"Report: {report}")


def _samples(
    data: tuple[str, ...],
    files: tuple[Path, ...],
    inputs: str | None,
    fields: tuple[str, ...],
    content_type: str | None,
) -> list[Sample]:
    from handlergen.performance.bench.measure import of_fields, of_file, of_input, of_json_text

    if data:
        return [of_json_text(text) for text in data]
    if files:
        return [of_file(path, content_type) for path in files]
    if inputs:
        return of_input(inputs, content_type=content_type)
    return [of_fields(dict(field_of(text) for text in fields))]
