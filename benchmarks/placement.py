"""One copy of the model in a predictor process, beside a copy in each worker behind the device lock.

    python benchmarks/placement.py [--parts stages,latency,batches,memory,scaling,tracing] [--repeats 3] [--seconds 5]

Both on one server in the same run, their turns interleaved; medians over the repeats. Every answer is checked.

    stages    wait 10 ms, predict 10 ms, wait 10 ms (A), and 8 ms of CPU, 10 ms, 4 ms of CPU (B); 16 clients, 4 workers
    latency   a module that does nothing, one client: what the way to another process adds
    batches   a network of 6 layers of 2048 x 2048 that takes batches: 16 clients, and one
    memory    8 workers, a network of 400 MB: private memory of all processes
    scaling   from 1 to 8 workers with it, beside a module without weights
    tracing   the waits of A with recorded spans, beside a server that records none
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from rig.machine import machine
from rig.report import HEADING, Figure, at_least, at_most, none_of
from rig.stand import Server, Stand
from rig.turns import BURNS, WAITS, echoed, figures, loaded, staged, steady, turns

from handlergen import Client
from handlergen.performance.recordings import busy_share, of_stage, overlapping, read_spans
from handlergen.server.properties import read_properties

LAYER_BYTES = 2048 * 2048 * 4
MLP: dict[str, Any] = {"config": {"layers": 6}}
MEGABYTE = 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each subject (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn (default: 5)")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    arguments = parser.parse_args()
    lines = ["; ".join(f"{name} {value}" for name, value in machine().items()), "", HEADING]
    print("\n".join(lines), flush=True)
    everything: list[Figure] = []
    for part in arguments.parts.split(","):
        with tempfile.TemporaryDirectory(prefix="handlergen-bench-") as directory:
            found = PARTS[part](Stand(Path(directory)), arguments)
        everything += found
        for figure in found:
            print(figure, flush=True)
            lines.append(str(figure))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(figure.met is not False for figure in everything) else 1


def stages(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """How busy the device is, with both placements."""
    subjects = {}
    for letter, config in (("A", WAITS), ("B", BURNS)):
        for placement in ("process", "worker"):
            name = f"{letter}-{placement}"
            stand.archive(name, "staged", workers=4, batch_size=1, config=config, predictor=placement, stages="worker")
            subjects[name] = name
    busy: dict[str, list[float]] = {name: [] for name in subjects}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    p95: dict[str, list[float]] = {name: [] for name in subjects}
    with stand.server(trace=True) as server:
        for name in turns(tuple(subjects), arguments.repeats):
            load = loaded(server.address, staged(name), clients=16, seconds=arguments.seconds)
            window = steady(load)
            time.sleep(0.5)  # the predictor process writes its spans ten times a second
            predictions = of_stage(read_spans(stand.trace_dir, model=name), "predict")
            found = load.figures(window)
            busy[name].append(busy_share(predictions, *window))
            rates[name].append(found.requests_per_s)
            p95[name].append(found.latency_ms[95])
        everything = [
            span for name in subjects for span in of_stage(read_spans(stand.trace_dir, model=name), "predict")
        ]
        overlaps = len(overlapping(everything))
    report = []
    for name in subjects:
        wanted = 0.98 if name.endswith("process") else None
        report.append(at_least(name, "device busy", busy[name], wanted))
        report.append(at_least(name, "requests/s", rates[name]))
        report.append(at_least(name, "latency p95, ms", p95[name]))
    report.append(none_of("stages", "predict overlaps", overlaps))
    return report


def latency(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """What the way to the predictor process and back costs one client."""
    subjects = ("process", "worker")
    for placement in subjects:
        stand.archive(placement, "echo", workers=4, batch_size=1, config={}, predictor=placement, stages="worker")
    p50: dict[str, list[float]] = {name: [] for name in subjects}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    with stand.server() as server:
        for name in subjects:  # until Java has compiled what it runs often
            loaded(server.address, echoed(name), clients=16, seconds=3.0)
        for name in turns(subjects, arguments.repeats):
            load = loaded(server.address, echoed(name), clients=1, seconds=arguments.seconds)
            p50[name].append(figures(load).latency_ms[50])
        for name in turns(subjects, arguments.repeats):
            rates[name].append(
                figures(loaded(server.address, echoed(name), clients=16, seconds=arguments.seconds)).requests_per_s
            )
    added = [ours - other for ours, other in zip(p50["process"], p50["worker"], strict=True)]
    return [
        at_most("latency", "added at p50, 1 client, ms", added, 0.25),
        *(at_least("latency", f"p50, 1 client, {name}, ms", p50[name]) for name in subjects),
        *(at_least("latency", f"requests/s, 16 clients, {name}", rates[name]) for name in subjects),
    ]


def batches(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """Batching on arrival, beside copies that predict one request at a time.

    What the workers bring is what there is to batch: 16 requests either in eights, for which TorchServe waits a
    millisecond, its least, or one in each of 16 workers.
    """
    stand.archive("copies", "mlp", workers=4, batch_size=1, predictor="worker", batch="each", **MLP)
    shapes = {"4 workers of 8": (4, 8), "16 workers of 1": (16, 1)}
    names = {shape: f"process-{workers}" for shape, (workers, _size) in shapes.items()}
    for shape, (workers, size) in shapes.items():
        stand.archive(
            names[shape],
            "mlp",
            workers=workers,
            batch_size=size,
            predictor="process",
            stages="worker",
            batch="collate",
            **MLP,
        )
    subjects = ("copies", *names.values())
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    p50: dict[str, list[float]] = {name: [] for name in subjects}
    with stand.server() as server:
        for name in subjects:
            loaded(server.address, staged(name), clients=16, seconds=3.0)
        for name in turns(subjects, arguments.repeats):
            busy = loaded(server.address, staged(name), clients=16, seconds=arguments.seconds)
            rates[name].append(figures(busy).requests_per_s)
            idle = loaded(server.address, staged(name), clients=1, seconds=arguments.seconds)
            p50[name].append(figures(idle).latency_ms[50])
    report = []
    for shape, name in names.items():
        ratios = [ours / other for ours, other in zip(rates[name], rates["copies"], strict=True)]
        report.append(at_least("batches", f"{shape}: requests/s, 16 clients, ratio to copies", ratios, 2.5))
        slower = [ours / other for ours, other in zip(p50[name], p50["copies"], strict=True)]
        report.append(at_most("batches", f"{shape}: p50, 1 client, ratio to copies", slower, 1.1))
    for name in subjects:
        report.append(at_least("batches", f"requests/s, 16 clients, {name}", rates[name]))
        report.append(at_least("batches", f"p50, 1 client, {name}, ms", p50[name]))
    return report


def memory(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """Private memory of a model of 400 MB with 8 workers, and of a worker that has no model."""
    layers = 24
    stand.archive(
        "large",
        "mlp",
        workers=8,
        batch_size=1,
        config={"layers": layers},
        predictor="process",
        stages="worker",
    )
    with stand.server() as server:
        loaded(server.address, staged("large"), clients=16, seconds=arguments.seconds)
        large = _private(server)
    empty = Stand(_fresh(stand))
    empty.archive("empty", "echo", workers=8, batch_size=1, config={}, predictor="worker")
    with empty.server() as server:
        loaded(server.address, echoed("empty"), clients=16, seconds=arguments.seconds)
        workers = _private(server)
    weights = layers * LAYER_BYTES
    allowed = 1.1 * weights + sum(workers)
    return [
        Figure("memory", "weights, MB", [weights / MEGABYTE]),
        Figure("memory", "8 workers without a model, MB", [sum(workers) / MEGABYTE]),
        at_most(
            "memory",
            "8 workers and the predictor process, MB",
            [sum(large) / MEGABYTE],
            round(allowed / MEGABYTE),
        ),
        Figure("memory", "of that the predictor process, MB", [max(large) / MEGABYTE]),
    ]


def scaling(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """How long 1 to 8 workers takes."""
    stand.archive("large", "mlp", workers=1, batch_size=1, config={"layers": 24}, predictor="process", stages="worker")
    stand.archive("empty", "echo", workers=1, batch_size=1, config={}, predictor="process", stages="worker")
    took: dict[str, list[float]] = {"large": [], "empty": []}
    with stand.server() as server, Client(read_properties(server.config)) as client:
        for name in turns(("large", "empty"), arguments.repeats):
            start = time.monotonic()
            client.scale(name, 8)
            took[name].append(time.monotonic() - start)
            client.scale(name, 1)
    ratios = [large / empty for large, empty in zip(took["large"], took["empty"], strict=True)]
    return [
        at_most("scaling", "1 to 8 workers, ratio to no weights", ratios, 1.1),
        *(at_least("scaling", f"1 to 8 workers, {name}, s", took[name]) for name in took),
    ]


def tracing(stand: Stand, arguments: argparse.Namespace) -> list[Figure]:
    """What recording spans costs."""
    stand.archive("A", "staged", workers=4, batch_size=1, config=WAITS)
    rates: dict[str, list[float]] = {"traced": [], "silent": []}
    with stand.server(trace=True) as traced, stand.server(name="silent") as silent:
        servers = {"traced": traced, "silent": silent}
        for name in turns(tuple(servers), arguments.repeats):
            load = loaded(servers[name].address, staged("A"), clients=16, seconds=arguments.seconds)
            rates[name].append(figures(load).requests_per_s)
    ratios = [ours / other for ours, other in zip(rates["traced"], rates["silent"], strict=True)]
    return [
        at_least("tracing", "requests/s, ratio to no spans", ratios, 0.97),
        *(at_least("tracing", f"requests/s, {name}", rates[name]) for name in rates),
    ]


PARTS: dict[str, Callable[[Stand, argparse.Namespace], list[Figure]]] = {
    "stages": stages,
    "latency": latency,
    "batches": batches,
    "memory": memory,
    "scaling": scaling,
    "tracing": tracing,
}


def _fresh(stand: Stand) -> Path:
    directory = stand.store.parent / "second"
    directory.mkdir()
    return directory


def _private(server: Server) -> list[int]:
    """Bytes that only one process has, of each Python process of a server."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        command = " ".join(process.cmdline())
        if "model_service_worker" in command or ".predictor_process" in command:
            found.append(process.memory_full_info().uss)
    return found


if __name__ == "__main__":
    sys.exit(main())
