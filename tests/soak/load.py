"""Two hundred clients for five minutes at queues that hold few of them: part of `make soak`, or with `--minutes 1`.

Half of the clients ask a model whose workers predict, half one with a predictor process. What is counted: requests that
got no answer or a wrong one, those that the full queue refused, predictions that overlapped, and how memory and file
descriptors of every process of the server grow. Exit status 1 when something was lost, wrong or overlapping, when no
request was refused, or when descriptors grew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handlergen.client import Client
from handlergen.server.configuration import write_configuration
from handlergen.server.lifecycle import RunningServer, serve
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from tests.archives import make_archive
from tests.growth import Growth, Slope
from tests.histories import (
    SOURCE,
    Load,
    lost,
    overlapping,
    predicted,
    predictors,
    refused_by_the_queue,
    statuses,
    wrong,
)

MODELS = ("worker", "process")
CLIENTS, WORKERS, QUEUE = 200, 2, 20
LIMIT_S = 60.0
PAUSE_S = 0.5
"""What a client waits that was refused."""


def start(home: Path) -> RunningServer:
    """A server with both models."""
    common: dict[str, Any] = {
        "workers_per_device": WORKERS, "queue_size": QUEUE, "config": {"history": str(home / "history")}
    }  # fmt: skip
    make_archive(home, "worker", SOURCE, predictor="worker", **common)
    make_archive(home, "process", SOURCE, predictor="process", stages="worker", **common)
    (home / "store").rename(home / "model-store")
    write_configuration(home / "config.properties", server_settings(**free_port_settings()))
    environ = {**os.environ, "HANDLERGEN_STATE_DIR": str(home / "state")}
    return serve(home / "config.properties", timeout=120, environ=environ)


def processes_of(server: RunningServer, client: Client, state: Path) -> dict[str, int]:
    """Every process of the server by a name."""
    found = {"frontend": server.pid}
    for model in MODELS:
        pids = sorted(worker.pid for worker in client.describe(model).workers)
        found |= {f"{model}: worker {number}": pid for number, pid in enumerate(pids, 1)}
    (predictor,) = predictors(state)
    return {**found, "process: predictor": predictor}


def run(home: Path, seconds: float) -> dict[str, Any]:
    """Load for so long; what was seen."""
    with start(home) as server, contextlib.ExitStack() as stack:
        manager = stack.enter_context(server.client())
        asker = stack.enter_context(server.client(timeout=LIMIT_S))
        loads = [Load(asker, model, CLIENTS // len(MODELS), LIMIT_S, pause_s=PAUSE_S) for model in MODELS]
        known = processes_of(server, manager, home / "state")
        with Growth(lambda: known, every_s=2.0) as growth, contextlib.ExitStack() as asking:
            for load in loads:
                asking.enter_context(load)
            time.sleep(seconds)
        after = processes_of(server, manager, home / "state")
    asked = [each for load in loads for each in load.asked]
    return {
        "clients": CLIENTS,
        "seconds": round(seconds),
        "requests": len(asked),
        "by status": dict(sorted(statuses(asked).items())),
        "refused by the queue": sum(map(refused_by_the_queue, asked)),
        "lost": len(lost(asked)),
        "wrong": len(wrong(asked)),
        "overlapping": len(overlapping(predicted(home / "history"))),
        "longest wait s": round(max(each.ended_s - each.began_s for each in asked), 1),
        "the same processes": known == after,
        "memory MB": {name: asdict(line) for name, line in growth.memory().items()},
        "descriptors": {name: asdict(line) for name, line in growth.files().items()},
    }


def is_sound(seen: dict[str, Any]) -> bool:
    """Nothing lost, wrong, overlapping or leaking; and there was more to do than the queue takes."""
    leaking = [line for line in seen["descriptors"].values() if line["last"] - line["first"] > 3]
    bad = seen["lost"] or seen["wrong"] or seen["overlapping"] or leaking or not seen["the same processes"]
    return not bad and seen["refused by the queue"] > 0


def table(seen: dict[str, Any]) -> str:
    """As lines of Markdown."""
    lines = ["| | |", "| --- | --- |"]
    for name, value in seen.items():
        if isinstance(value, dict) and name in ("memory MB", "descriptors"):
            for process, line in value.items():
                lines.append(f"| {name}, {process} | {Slope(**line)} |")
        else:
            lines.append(f"| {name} | {value} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-", ignore_cleanup_errors=True) as home:
        seen = run(Path(home), options.minutes * 60)
    print(table(seen))
    return 0 if is_sound(seen) else 1


if __name__ == "__main__":
    sys.exit(main())
