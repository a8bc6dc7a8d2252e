"""Random faults on a real TorchServe under load, for half an hour: `make soak`, or this file with `--minutes 5`.

Each placement has half of the time, a server, sixteen clients and a fault every few seconds. What is counted: requests
that got no answer, a wrong one or another's; predictions that overlapped; how long until the next right answer after a
fault; what grew; what was left behind. Exit status 1 when anything was lost, wrong, overlapping or left.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handlergen.archives.build import archive
from handlergen.client import Client
from handlergen.errors import HandlergenError
from handlergen.server.configuration import write_configuration
from handlergen.server.launching import marked
from handlergen.server.lifecycle import RunningServer, serve
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from handlergen.server.update import update
from tests.full_disk import files_limited
from tests.growth import slope
from tests.histories import (
    SOURCE,
    Load,
    in_predict,
    lost,
    overlapping,
    predicted,
    predictors,
    recovery_s,
    statuses,
    until,
    wrong,
)

PLACEMENTS = ("process", "worker")
RECOVERY_S = 10.0
NAME = "soaked"
CLIENTS = 16
WORKERS = 3
FILE_LIMIT = 64 << 20
LIMIT_S = 40.0
"""How long a client waits: beyond every limit of the model's."""


@dataclass
class Figures:
    """What one placement's run showed."""

    placement: str
    minutes: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    by_status: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    refused_while_down: int = 0
    wrong: int = 0
    overlapping: int = 0
    recovery_s: dict[str, float] = field(default_factory=dict)
    not_recovered: int = 0
    frontend_mb: str = ""
    frontend_files: str = ""
    left: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.wrong or self.overlapping or self.left or self.not_recovered)


class Soak:
    """One placement under faults."""

    def __init__(self, placement: str, home: Path, chance: random.Random) -> None:
        self.figures = Figures(placement)
        self._home = home
        self._chance = chance
        self._state, self._history = home / "state", home / "history"
        self._config = home / "config.properties"
        (home / NAME).mkdir(parents=True)
        source = home / NAME / f"{NAME}.py"
        source.write_text(SOURCE)
        settings: dict[str, Any] = {
            "predictor": placement,
            "config": {"history": str(self._history)},
            "workers_per_device": WORKERS,
            "lock_timeout_s": 8,
            "predict_timeout_s": 3,
            "response_timeout_s": 12,
        }
        if placement == "process":
            settings["stages"] = "worker"
        for self._version in ("2.0", "1.0"):
            archive(source, model_store=home / self._version, version=self._version, **settings)
        shutil.copytree(home / "1.0", home / "model-store")
        write_configuration(self._config, server_settings(model_api=True, **free_port_settings()))
        self._running: RunningServer = self._serve()
        self._client: Client = self._running.client()
        self._client._http.timeout = LIMIT_S
        self._longest: list[tuple[float, float, int]] = []
        self._down: list[tuple[float, float]] = []

    def run(self, seconds: float) -> Figures:
        """Load and faults for that long; then stop, and look for what is left."""
        figures, ended = self.figures, threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        recoveries: dict[str, list[float]] = defaultdict(list)
        load = Load(self._client, NAME, CLIENTS, LIMIT_S)
        began = time.monotonic()
        with load:
            time.sleep(2)
            watcher.start()
            while time.monotonic() - began < seconds:
                kind, inject = self._chance.choice(self._faults(load))
                figures.faults[kind] = figures.faults.get(kind, 0) + 1
                moment = time.monotonic()
                try:
                    moment = inject() or time.monotonic()
                except (HandlergenError, AssertionError) as error:  # in the middle of the last fault
                    print(f"{kind}: {error}", flush=True)
                deadline = time.monotonic() + 30
                while (taken := recovery_s(load.asked[-2000:], moment)) > 1e6 and time.monotonic() < deadline:
                    time.sleep(0.1)
                figures.not_recovered += taken > RECOVERY_S
                recoveries[kind].append(taken)
                print(f"{time.monotonic() - began:6.1f} s {kind}: {taken:.2f} s", flush=True)
                time.sleep(self._chance.uniform(1, 4))
        ended.set()
        figures.minutes = round((time.monotonic() - began) / 60, 2)
        self._judge(load, recoveries)
        return figures

    def close(self) -> None:
        self._client.close()
        self._running.stop()

    def _judge(self, load: Load, recoveries: dict[str, list[float]]) -> None:
        figures = self.figures
        figures.requests = len(load.asked)
        figures.by_status = dict(sorted(statuses(load.asked).items()))
        silent = lost(load.asked)
        down = [
            each for each in silent if any(each.began_s < until and each.ended_s > since for since, until in self._down)
        ]
        figures.refused_while_down = len(down)
        figures.lost = len(silent) - len(down)
        for each in silent:
            if each not in down:
                print("lost:", each)
        figures.wrong = len(wrong(load.asked))
        figures.overlapping = len(overlapping(predicted(self._history)))
        figures.recovery_s = {kind: round(max(taken), 2) for kind, taken in sorted(recoveries.items())}
        if len(self._longest) > 60:  # seconds: before that, a Java process only fills its pools
            settled = self._longest[len(self._longest) // 3 :]
            figures.frontend_mb = str(slope([(moment, memory) for moment, memory, _ in settled]))
            figures.frontend_files = str(slope([(moment, files) for moment, _, files in settled]))
        marker = self._running.state.marker
        self.close()
        time.sleep(1)
        figures.left = [f"process {each.pid}" for each in marked(marker)]
        figures.left += [f"process {pid}" for pid in predictors(self._state)]
        figures.left += [str(path) for path in (self._state / "locks").glob("predictor-*")]

    def _watch(self, ended: threading.Event) -> None:
        """Memory (RSS) and open files of the frontend, of the one that lived longest."""
        pid, measured = 0, self._longest
        while not ended.wait(1):
            with contextlib.suppress(psutil.Error):  # it is just being restarted
                frontend = psutil.Process(self._running.pid)
                if frontend.pid != pid:
                    pid, measured = frontend.pid, []
                measured.append((time.monotonic(), frontend.memory_info().rss / 1e6, frontend.num_fds()))
            if len(measured) > len(self._longest):
                self._longest = measured

    def _faults(self, load: Load) -> list[tuple[str, Callable[[], float | None]]]:
        def asking(**extra: Any) -> Callable[[], float]:
            return lambda: load.ask(**extra).ended_s

        faults = [
            (f"{what} in {hook}", asking(**{key: what}))
            for what in ("exit", "segfault", "memory", "error", "kill")
            for hook, key in (("predict", "predict"), ("preprocess", "pre"))
        ]
        faults += [
            ("hang in predict", asking(predict="hang")),
            ("out of device memory", asking(predict="cuda memory")),
            *((f"{what} left behind by predict", asking(predict=what)) for what in ("fork", "pool", "subprocess")),
            ("SIGSTOP in predict", lambda: self._stop_holder(load)),
            ("lock directory deleted", lambda: self._delete("locks")),
            ("disk full for logs and spans", self._fill_disk),
            ("SIGKILL of a worker", lambda: self._signal(self._workers(), signal.SIGKILL)),
            ("SIGSTOP of a worker", lambda: self._stop(self._workers())),
            ("scaled", self._scale),
            ("new version", self._new_version),
            ("server killed and started again", self._kill_server),
        ]
        if self.figures.placement == "process":
            faults += 3 * [
                ("SIGKILL of the predictor", lambda: self._signal(list(predictors(self._state)), signal.SIGKILL)),
                ("SIGTERM of the predictor", lambda: self._signal(list(predictors(self._state)), signal.SIGTERM)),
                ("SIGSTOP of the predictor", lambda: self._stop(list(predictors(self._state)))),
            ]
            faults.append(("predictor's directory deleted", lambda: self._delete("locks/predictor-*")))
        return faults

    def _workers(self) -> list[int]:
        try:
            return [worker.pid for worker in self._client.describe(NAME).workers if worker.ready]
        except HandlergenError:
            return []

    def _signal(self, pids: list[int], number: signal.Signals) -> float:
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(pids), number)
        return time.monotonic()

    def _stop(self, pids: list[int]) -> float:
        if pids:
            pid = self._chance.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self._chance.uniform(0.5, 4))
                os.kill(pid, signal.SIGCONT)
        return time.monotonic()

    def _stop_holder(self, load: Load) -> float:
        threading.Thread(target=load.ask, kwargs={"predict": 1.0}, daemon=True).start()
        with contextlib.suppress(AssertionError, ProcessLookupError):  # it was refused, or has just been killed
            pid = until(lambda: in_predict(self._history), within_s=10)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.5, 4))
            os.kill(pid, self._chance.choice((signal.SIGCONT, signal.SIGKILL)))
        return time.monotonic()

    def _delete(self, pattern: str) -> float:
        for path in self._state.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
        return time.monotonic()

    def _fill_disk(self) -> float:
        """No write to a log or to recorded spans succeeds any more, for a while: they are at the size limit."""
        logs = self._running.log_directory.glob("*.log")
        for file in (*logs, *(self._home / "spans").glob("*")):
            os.truncate(file, max(FILE_LIMIT, file.stat().st_size))
        began = time.monotonic()
        with files_limited(marked(self._running.state.marker), FILE_LIMIT):
            time.sleep(self._chance.uniform(0.5, 3))
        return began

    def _scale(self) -> None:
        self._client.scale(NAME, self._chance.randint(1, WORKERS + 1), timeout=60)

    def _new_version(self) -> float:
        """Update to the other version, from its archive."""
        self._version = {"1.0": "2.0", "2.0": "1.0"}[self._version]
        update(NAME, self._home / self._version / f"{NAME}.mar", config=self._config, timeout=120, drain_s=60)
        return time.monotonic()

    def _kill_server(self) -> float:
        began = time.monotonic()
        os.kill(self._running.pid, signal.SIGKILL)
        self._running.stop()
        self._running = self._serve()
        self._down.append((began - 0.1, time.monotonic()))
        return time.monotonic()

    def _serve(self) -> RunningServer:
        environ = {
            **os.environ,
            "HANDLERGEN_STATE_DIR": str(self._state),
            "HANDLERGEN_TRACE_DIR": str(self._home / "spans"),
        }
        return serve(self._config, timeout=120, environ=environ)


def table(figures: Figures) -> str:
    """The figures as lines of Markdown."""
    about = asdict(figures)
    about["faults"] = f"{sum(figures.faults.values())}: " + ", ".join(
        f"{count} {kind}" for kind, count in sorted(figures.faults.items())
    )
    about["recovery_s"] = ", ".join(f"{kind} {taken:g}" for kind, taken in figures.recovery_s.items())
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in about.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run's choice of faults")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    print(f"seed {seed}", flush=True)
    results = []
    for placement in PLACEMENTS:
        home = Path(tempfile.mkdtemp(prefix="soak-"))
        soak = Soak(placement, home, random.Random(seed))
        try:
            results.append(soak.run(options.minutes * 60 / len(PLACEMENTS)))
        finally:
            soak.close()
        print(table(results[-1]), flush=True)
        if results[-1].sound:
            shutil.rmtree(home, ignore_errors=True)
        else:
            print(f"its logs: {home}")
    return 0 if all(each.sound for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
