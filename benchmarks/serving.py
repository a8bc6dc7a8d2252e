"""What handlergen makes of TorchServe, beside handlers written by hand: busy devices, requests per second.

    python benchmarks/serving.py [--workloads A,B] [--repeats 3] [--seconds 8] [--quiet 0.05] [--json] [--out FILE]

Real servers on loopback, every subject in the same run, their turns interleaved; medians over the repeats, and
ratios of neighbouring turns, so that what else the machine does meanwhile hits both. `--quiet 0.05` takes a turn
again when other processes used more than 5 % of the machine's CPU time meanwhile. Every answer is checked.

    A   wait 10 ms, predict 10 ms, wait 10 ms; 16 clients, 4 workers, batch size 1
    B   burn 8 ms of CPU, predict 10 ms, burn 4 ms; the same
    C   as A with 2 workers and batch size 8
    D   a module that does nothing; 1 and 16 clients, 4 workers, batch size 1; also with TorchServe's own log
        configuration. What the servers print is read by somebody, or goes into a file (`--console file`).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.machine import Strangers, machine
from rig.report import HEADING, Figure, at_least, none_of
from rig.stand import Server, Stand
from rig.turns import BURNS, SKIP_FIRST_S, SKIP_LAST_S, WAITS, echoed, loaded, staged, steady, turns

from handlergen.performance.bench.load import Exchange
from handlergen.performance.bench.traffic import Load
from handlergen.performance.recordings import busy_share, of_stage, overlapping, read_spans


@dataclass(frozen=True)
class Staged:
    """A workload of three stages with known times."""

    letter: str
    config: Mapping[str, Any]
    workers: int
    batch_size: int
    busy_target: float
    ratio_target: float | None


STAGED = (
    Staged("A", WAITS, workers=4, batch_size=1, busy_target=0.98, ratio_target=1.0),
    Staged("B", BURNS, workers=4, batch_size=1, busy_target=0.95, ratio_target=None),
    Staged("C", WAITS, workers=2, batch_size=8, busy_target=0.93, ratio_target=None),
)


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way out
    start = time.monotonic()
    about = machine()
    if not arguments.json:
        print("; ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    chosen = arguments.workloads.upper().split(",")
    figures: list[Figure] = []
    for workload in STAGED:
        if workload.letter in chosen:
            figures += _in_a_stand(lambda stand, w=workload: measure_staged(stand, w, arguments))
    if "D" in chosen:
        figures += _in_a_stand(lambda stand: measure_nothing(stand, arguments))
    if arguments.json:
        report = json.dumps({"machine": about, "figures": [figure.as_json() for figure in figures]}, indent=2)
    else:
        report = "\n".join([HEADING, *map(str, figures)])
    print(report)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n", encoding="utf-8")
    return 0 if all(figure.met is not False for figure in figures) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="A,B,C,D", help="which, by letter (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each subject (default: 3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn (default: 8)")
    parser.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="repeat turns in which others used a larger share of the CPU time, 0 to 1, at most 10 times",
    )
    parser.add_argument(
        "--console",
        choices=("file", "pipe"),
        default="pipe",
        help="where the servers of D print to: a pipe that is read, as a container's is, or a file (default: pipe)",
    )
    parser.add_argument("--json", action="store_true", help="every value, for programs")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    arguments = parser.parse_args()
    if arguments.seconds <= SKIP_FIRST_S + SKIP_LAST_S:
        parser.error(f"--seconds must exceed {SKIP_FIRST_S + SKIP_LAST_S:g}, which are cut off")
    return arguments


def _in_a_stand(measure: Callable[[Stand], list[Figure]]) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="handlergen-bench-") as directory:
        return measure(Stand(Path(directory)))


def measure_staged(stand: Stand, workload: Staged, arguments: argparse.Namespace) -> list[Figure]:
    """handlergen and the hand-written flock handler on one server, in turn, with recorded spans."""
    options = {"workers": workload.workers, "batch_size": workload.batch_size, "config": workload.config}
    stand.archive("handlergen", "staged", **options)
    stand.archive_by_hand("flock", "flock_handler", extra_files=("staged.py",), **options)
    rates: dict[str, list[float]] = {"handlergen": [], "flock": []}
    busy: dict[str, list[float]] = {"handlergen": [], "flock": []}
    p95: dict[str, list[float]] = {"handlergen": [], "flock": []}
    others: list[float] = []
    with stand.server(trace=True) as server:
        for name in turns(("flock", "handlergen"), arguments.repeats):
            load, other = _turn(server, staged(name), arguments, clients=16)
            others.append(other)
            window = steady(load)
            predictions = of_stage(read_spans(stand.trace_dir, model=name), "predict")
            figures = load.figures(window)
            rates[name].append(figures.requests_per_s)
            p95[name].append(figures.latency_ms[95])
            busy[name].append(busy_share(predictions, *window))
        overlaps = len(overlapping(of_stage(read_spans(stand.trace_dir, model="handlergen"), "predict")))
    ratios = [ours / other for ours, other in zip(rates["handlergen"], rates["flock"], strict=True)]
    letter = workload.letter
    return [
        at_least(letter, "device busy", busy["handlergen"], workload.busy_target),
        at_least(letter, "requests/s, ratio to flock", ratios, workload.ratio_target),
        none_of(letter, "predict overlaps", overlaps),
        at_least(letter, "requests/s", rates["handlergen"]),
        at_least(letter, "requests/s, flock", rates["flock"]),
        at_least(letter, "device busy, flock", busy["flock"]),
        at_least(letter, "latency p95, ms", p95["handlergen"]),
        at_least(letter, "latency p95, ms, flock", p95["flock"]),
        at_least(letter, "CPU time of other processes, share", others),
    ]


def measure_nothing(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """Modules that do nothing, on a server with handlergen's log configuration and one with TorchServe's own."""
    stand.archive("handlergen", "echo", workers=4, batch_size=1, config={})
    stand.archive_by_hand("hand", "echo_handler", workers=4, batch_size=1, config={})
    figures = []
    with ExitStack() as servers:
        read = arguments.console == "pipe"
        ours = servers.enter_context(stand.server(console_read=read))
        stock = servers.enter_context(stand.server(stock_log=True, console_read=read))
        subjects = {
            "handlergen": ("handlergen", ours),
            "hand-written": ("hand", ours),
            "handlergen, stock log": ("handlergen", stock),
            "hand-written, stock log": ("hand", stock),
        }
        exchanges = {model: echoed(model) for model in ("handlergen", "hand")}
        for model, server in subjects.values():  # until Java has compiled what it runs often
            loaded(server.address, exchanges[model], clients=16, seconds=8.0)
        for clients in (1, 16):
            rates: dict[str, list[float]] = {name: [] for name in subjects}
            cpu: list[float] = []
            others: list[float] = []
            for name in turns(tuple(subjects), arguments.repeats):
                model, server = subjects[name]
                load, other = _turn(server, exchanges[model], arguments, clients=clients)
                window = steady(load)
                rates[name].append(load.figures(window).requests_per_s)
                cpu.append(load.client_cpu_s / len(load.answers) * 1e6)
                others.append(other)
            some = f"{clients} client{'s' if clients > 1 else ''}"
            figures += [
                at_least("D", f"{some}: ratio to hand-written", _ratios(rates, "handlergen", "hand-written"), 0.95),
                at_least(
                    "D",
                    f"{some}: ratio to hand-written on stock log",
                    _ratios(rates, "handlergen", "hand-written, stock log"),
                    1.5,
                ),
                at_least(
                    "D",
                    f"{some}: ratio to handlergen on stock log",
                    _ratios(rates, "handlergen", "handlergen, stock log"),
                ),
                *(at_least("D", f"{some}: requests/s, {name}", values) for name, values in rates.items()),
                at_least("D", f"{some}: load generator, CPU µs a request", cpu),
                at_least("D", f"{some}: CPU time of other processes, share", others),
            ]
    return figures


def _turn(
    server: Server, exchanges: Sequence[Exchange], arguments: argparse.Namespace, *, clients: int
) -> tuple[Load, float]:
    """One turn, and the share of CPU time that others took; again while that is too large."""
    strangers = Strangers([server.pid])
    for _attempt in range(10):
        strangers.start()
        load = loaded(server.address, exchanges, clients=clients, seconds=arguments.seconds)
        other = strangers.share()
        if other <= arguments.quiet:
            break
    return load, other


def _ratios(rates: Mapping[str, Sequence[float]], ours: str, other: str) -> list[float]:
    return [a / b for a, b in zip(rates[ours], rates[other], strict=True)]


if __name__ == "__main__":
    sys.exit(main())
