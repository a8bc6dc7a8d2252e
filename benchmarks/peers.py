"""handlergen beside other servers: the same user code, the same load, one run.

    python benchmarks/peers.py [--workloads nothing,waits] [--subjects truss,litserve] [--repeats 3] [--seconds 4]
                               [--venvs DIR] [--clients 16,1] [--json FILE] [--plot FILE.svg]
    python benchmarks/peers.py --from a.json --from b.json [--plot FILE.svg]

Each peer gets a virtual environment of its own, made by pip at the first run and kept under --venvs. The servers of a
workload (`peers/models/`) are started side by side on 127.0.0.1, and take turns under the load of `handlergen bench`,
back and forth; those whose turn it is not are suspended. Every answer is compared with what the user's code alone says.
The user's code itself records when its predict ran. A peer that cannot be installed or started is named with the
reason. Medians over the repeats.

    nothing       does nothing: the server's own cost
    waits         wait 10 ms, predict 10 ms, wait 10 ms
    burns         8 ms of CPU in Python, predict 10 ms, 4 ms of CPU
    pictures      JPEG to a small convolutional network on the CPU
    embeddings    all-MiniLM-L6-v2 on the CPU
    batches       6 layers of 2048 x 2048; batches for those who have them
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers import bentoml, handlergen, litserve, mlserver, ray, torchserve, truss, venvs
from peers.figures import Turn, back_and_forth, occupation, read_spans
from peers.plot import svg
from peers.report import CLIENTS, markdown
from peers.subject import NotStartedError, Place, Running
from peers.workloads import WORKLOADS, Workload, expected
from rig.machine import Strangers, machine

from handlergen.errors import ServerError
from handlergen.performance.bench.load import run_load
from handlergen.performance.bench.traffic import RIGHT, Closed, Load
from handlergen.server.ports import free_ports

SUBJECTS = {
    subject.key: subject
    for module in (handlergen, truss, litserve, mlserver, bentoml, ray, torchserve)
    for subject in module.SUBJECTS
}
FIRST_WARM_UP_S = 8.0  # a JVM compiles what runs often, beside it, for seconds
WARM_UP_S = 0.5


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are ended on the way out
    if arguments.earlier:
        report = merged([json.loads(file.read_text()) for file in arguments.earlier])
        _write(arguments.json, report)
    else:
        report = measure(arguments)
    print("; ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print("; ".join(f"{name} {value}" for name, value in report["versions"].items()) + "\n")
    for workload in report["workloads"]:
        print("\n".join(markdown(workload, SUBJECTS)))
    if arguments.plot:
        arguments.plot.write_text(svg(report["workloads"], SUBJECTS, clients=CLIENTS[0]))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(workload.name for workload in WORKLOADS)
    parser.add_argument("--workloads", default=names, help="which (default: all)")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help=f"which (default: {','.join(SUBJECTS)})")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a turn (default: 4)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handlergen-peers"
    parser.add_argument("--venvs", type=Path, default=cache, help=f"virtual environments (default: {cache})")
    parser.add_argument(
        "--budget",
        type=float,
        default=1e9,
        help="begin no further turns after so many seconds (default: no limit)",
    )
    parser.add_argument("--clients", default="16,1", help="how many at once (default: 16,1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw requests per second into this SVG file")
    parser.add_argument(
        "--from",
        dest="earlier",
        type=Path,
        action="append",
        metavar="FILE",
        help="measure nothing: show the --json of earlier runs together; may be repeated",
    )
    arguments = parser.parse_args()
    arguments.workloads = _chosen(parser, arguments.workloads, {each.name: each for each in WORKLOADS})
    arguments.subjects = _chosen(parser, arguments.subjects, SUBJECTS)
    arguments.end = time.monotonic() + arguments.budget
    arguments.clients = [int(number) for number in arguments.clients.split(",")]
    arguments.venvs = arguments.venvs.absolute()
    return arguments


def _chosen(parser: argparse.ArgumentParser, text: str, known: Mapping[str, Any]) -> list[Any]:
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in text.split(",")]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, as JSON values."""
    missing: dict[str, str] = {}
    pythons: dict[str, Path] = {}
    versions: dict[str, str] = {}
    common = venvs.python_of(arguments.venvs, venvs.COMMON)
    for subject in arguments.subjects:
        python = Path(sys.executable)
        try:
            if subject.environment:
                python = venvs.python_of(arguments.venvs, subject.environment)
        except venvs.NotInstalledError as error:
            missing[subject.key] = f"not installed: {error}"
            _say(f"{subject.key}: {missing[subject.key]}")
            continue
        pythons[subject.key] = python
        versions |= venvs.versions(python, subject.distributions)
    groups: dict[str, list[Workload]] = {}
    for workload in arguments.workloads:
        groups.setdefault(workload.module, []).append(workload)
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions,
        "seconds": arguments.seconds,
        "workloads": [],
    }
    for group in groups.values():
        report["workloads"] += _group(group, arguments, pythons, common, missing)
        _write(arguments.json, report)  # what is measured stays, whatever happens to the rest
    return report


def merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Earlier reports as one: turns of the same workload together."""
    workloads: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    for report in reports:
        versions |= report["versions"]
        for workload in report["workloads"]:
            into = workloads.setdefault(workload["name"], {**workload, "turns": [], "missing": {}})
            into["turns"] = [*into["turns"], *workload["turns"]]
            into["missing"] |= workload["missing"]
            measured = {turn["subject"] for turn in into["turns"]}
            into["missing"] = {key: why for key, why in into["missing"].items() if key not in measured}
    return {"machine": reports[0]["machine"], "versions": versions, "workloads": list(workloads.values())}


def _group(
    workloads: Sequence[Workload],
    arguments: argparse.Namespace,
    pythons: Mapping[str, Path],
    common: Path,
    missing: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Workloads that share the servers."""
    missing = dict(missing)
    turns: dict[str, list[Turn]] = {workload.name: [] for workload in workloads}
    pairs = {workload.name: expected(workload, common) for workload in workloads}
    subjects = [subject for subject in arguments.subjects if subject.key in pythons]
    ports = free_ports(8 * len(subjects))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(_directory()))

        def start(number: int) -> Running | None:
            subject = subjects[number]
            own = directory / subject.key
            own.mkdir()
            place = Place(own, ports[8 * number : 8 * number + 8], pythons[subject.key], workloads[0])
            started = time.monotonic()
            try:
                server = Running(subject, place, pairs)
            except NotStartedError as error:
                missing[subject.key] = f"not started: {error}"
                _say(f"{subject.key}: {missing[subject.key]}")
                return None
            stack.callback(server.stop)
            server.suspend()
            _say(f"{subject.key} started in {time.monotonic() - started:.0f} s")
            return server

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = [server for server in pool.map(start, range(len(subjects))) if server]
        running = {server.subject.key: server for server in started}
        for server in started:
            try:
                with server.awake():
                    for workload in workloads:
                        _load(server, workload, CLIENTS[0], FIRST_WARM_UP_S)
            except ServerError as error:  # Ray gives up a node that was suspended for a minute or two
                del running[server.subject.key]
                missing[server.subject.key] = f"died before its turn: {error}"
                _say(f"{server.subject.key}: {missing[server.subject.key]}")
        for order in back_and_forth(list(running), arguments.repeats):
            for key in order:
                if time.monotonic() > arguments.end:
                    break
                with running[key].awake():
                    for workload in workloads:
                        turns[workload.name] += [
                            _turn(running[key], workload, clients, arguments.seconds) for clients in arguments.clients
                        ]
    return [
        {
            "name": workload.name,
            "title": workload.title,
            "missing": missing,
            "turns": [asdict(turn) for turn in turns[workload.name]],
        }
        for workload in workloads
    ]


def _turn(server: Running, workload: Workload, clients: int, seconds: float) -> Turn:
    _load(server, workload, clients, WARM_UP_S)
    strangers = Strangers(server.roots())
    load = _load(server, workload, clients, seconds)
    others = strangers.share()
    window = load.steady(skip_first_s=0.2, skip_last_s=0.1)
    figures = load.figures(window)
    spans = read_spans(server.spans, window)
    busy, overlaps = occupation(spans, window)
    turn = Turn(
        server.subject.key,
        clients,
        round(figures.requests_per_s, 2),
        round(figures.latency_ms.get(50, 0.0), 3),
        round(figures.latency_ms.get(99, 0.0), 3),
        round(busy, 4),
        overlaps,
        len(spans),
        server.copies(),
        round(others, 3),
        {outcome: count for outcome, count in figures.outcomes.items() if outcome != RIGHT},
    )
    _say(f"  {workload.name}: {turn}")
    return turn


def _load(server: Running, workload: Workload, clients: int, seconds: float) -> Load:
    return run_load(server.address, server.exchanges[workload.name], pace=Closed(clients), seconds=seconds)


@contextmanager
def _directory() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="peers-")
    try:
        yield directory
    finally:
        for link in Path(directory).glob("*/ray"):
            shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


def _write(file: Path | None, report: Mapping[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
