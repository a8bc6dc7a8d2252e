"""Does a server do what `handlergen tune` predicts of its recommendation?

    python benchmarks/tuning.py [--workloads A,B,L] [--predictors worker,process] [--seconds 8]
                                [--target-p99-ms 80] [--json]

Each workload is tuned, archived with what was recommended, served by a real TorchServe on loopback, and loaded as the
prediction assumes: a closed loop with as many clients, or requests that come at random at the predicted rate.

    A   wait 10 ms, predict 10 ms, wait 10 ms
    B   burn 8 ms of CPU, predict 10 ms, burn 4 ms
    L   burn 2 ms, a predict over lists of 4 ms and 1 ms more a request, burn 1 ms
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
from rig.machine import Strangers, machine
from rig.stand import HANDLERS, Stand

from handlergen.bench.load import Exchange, run_load
from handlergen.bench.pace import Closed, Open, Pace
from handlergen.tuning.probe import Subject, measure_alone, measure_beside
from handlergen.tuning.recommend import recommend

WARM_UP_S = 2.0
CLOSE_ENOUGH = 0.15


@dataclass(frozen=True)
class Workload:
    module: str
    batch: str
    config: Mapping[str, Any]


WORKLOADS = {
    "A": Workload("staged", "each", {"before": 10, "predict": 10, "after": 10, "burn": False}),
    "B": Workload("staged", "each", {"before": 8, "predict": 10, "after": 4, "burn": True}),
    "L": Workload("together", "list", {}),
}


@dataclass(frozen=True)
class Result:
    """A prediction and what became of it; `others` is the share of the CPU time that other processes took."""

    workload: str
    predictor: str
    target_p99_ms: float | None
    settings: Mapping[str, int]
    predicted_per_s: float
    measured_per_s: float
    predicted_p50_ms: float
    measured_p50_ms: float
    predicted_p99_ms: float
    measured_p99_ms: float
    others: float

    @property
    def off(self) -> float:
        """How far the measured rate is from the predicted one."""
        return self.measured_per_s / self.predicted_per_s - 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", default="A,B,L", help="which, by letter (default: all)")
    parser.add_argument(
        "--predictors", default="worker,process", help="where predict runs (default: worker,process)"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a load (default: 8)")
    parser.add_argument("--target-p99-ms", type=float, help="a latency target instead of the most requests")
    parser.add_argument("--json", action="store_true", help="every value, for programs")
    arguments = parser.parse_args()
    results = []
    for predictor, letter in product(arguments.predictors.split(","), arguments.workloads.upper().split(",")):
        with tempfile.TemporaryDirectory(prefix="handlergen-bench-") as directory:
            results.append(
                measure(letter, predictor, Path(directory), arguments.seconds, arguments.target_p99_ms)
            )
    if arguments.json:
        print(json.dumps({"machine": machine(), "results": [asdict(result) for result in results]}, indent=2))
    else:
        print("; ".join(f"{name} {value}" for name, value in machine().items()))
        print(table(results))
    return 0 if all(abs(result.off) <= CLOSE_ENOUGH for result in results) else 1


def measure(
    letter: str, predictor: str, directory: Path, seconds: float, target_p99_ms: float | None
) -> Result:
    """Tune one workload, serve the recommendation, load it."""
    workload = WORKLOADS[letter]
    sample = directory / "sample.json"
    sample.write_text(json.dumps({"number": 3}))
    overrides = {"config": dict(workload.config), "batch": workload.batch, "predictor": predictor}
    subject = Subject(HANDLERS / f"{workload.module}.py", sample, None, overrides, seconds=3.0)
    found, _beside = recommend(
        measure_alone(subject),
        available_memory=psutil.virtual_memory().available,
        target_p99_ms=target_p99_ms,
        beside=lambda processes: measure_beside(subject, processes),
    )
    chosen = found.chosen
    stand = Stand(directory)
    stand.archive(
        "tuned",
        workload.module,
        workers=chosen.workers,
        batch_size=chosen.batch_size,
        config=workload.config,
        batch=workload.batch,
        predictor=predictor,
    )
    pace: Pace = Open(chosen.rate) if chosen.rate else Closed(chosen.clients)
    exchanges = [
        Exchange.of_json("/predictions/tuned", {"number": n}, {"answer": 2 * n + 1}) for n in range(64)
    ]
    with stand.server() as server:
        strangers = Strangers([server.pid])
        load = run_load(server.address, exchanges, pace=pace, seconds=WARM_UP_S + seconds)
        others = strangers.share()
    figures = load.figures(load.steady(skip_first_s=WARM_UP_S))
    if set(figures.outcomes) != {"right"}:
        raise RuntimeError(f"not every answer was right: {figures.outcomes}")
    return Result(
        letter,
        predictor,
        target_p99_ms,
        found.settings,
        chosen.rate or chosen.prediction.requests_per_s,
        figures.requests_per_s,
        chosen.prediction.p50_ms,
        figures.latency_ms[50],
        chosen.prediction.p99_ms,
        figures.latency_ms[99],
        others,
    )


def table(results: list[Result]) -> str:
    """The report as a Markdown table."""
    head = ("", "predictor", "workers, batch size", "requests/s predicted", "measured", "off")
    head += ("p50, ms", "measured", "p99, ms", "measured", "others' CPU")
    lines = [f"| {' | '.join(head)} |", "| - | --- | --- |" + " ---: |" * (len(head) - 3)]
    for r in results:
        row = (r.workload, r.predictor, f"{r.settings['workers_per_device']}, {r.settings['batch_size']}")
        row += (f"{r.predicted_per_s:.1f}", f"{r.measured_per_s:.1f}", f"{r.off:+.1%}")
        row += (f"{r.predicted_p50_ms:.0f}", f"{r.measured_p50_ms:.0f}")
        row += (f"{r.predicted_p99_ms:.0f}", f"{r.measured_p99_ms:.0f}", f"{r.others:.0%}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
