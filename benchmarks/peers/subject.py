"""A server under measurement: how it is started, asked, suspended and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from handlergen.errors import ServerError
from handlergen.performance.bench.load import run_load
from handlergen.performance.bench.traffic import Closed
from peers.venvs import Environment
from peers.workloads import Asked, Pairs, Workload, environ_of

APPS = Path(__file__).parent / "apps"
_START_S = 90.0


class Place(NamedTuple):
    """What a subject may use.

    Attributes:
        directory: Empty, its own.
        ports: Free ones on 127.0.0.1; the first is where it must answer.
        python: Interpreter of its environment.
    """

    directory: Path
    ports: Sequence[int]
    python: Path
    workload: Workload


class Launch(NamedTuple):
    """A process that serves until it is told to end."""

    command: Sequence[str | Path]
    environ: Mapping[str, str] = {}


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Subject:
    """A peer, set up in one way.

    Attributes:
        key: For the command line.
        title: For the table.
        launch: Writes what it needs into its place.
        environment: None: the one that runs this.
        path: What is asked.
        wrap, unwrap: A request to the body that the server wants, its response's JSON to the answer.
        serializes: What keeps predictions from overlapping; empty for nothing.
        distributions: Whose versions to name.
    """

    key: str
    title: str
    launch: Callable[[Place], Launch]
    environment: Environment | None = None
    path: str = "/predict"
    wrap: Callable[[Any, Workload], Any] = field(default=lambda request, _workload: request)
    unwrap: Callable[[Any], Any] = _same
    serializes: str = ""
    distributions: tuple[str, ...] = ()


class NotStartedError(Exception):
    """It did not answer rightly in time; the end of its log."""


class Running:
    """A started server and the requests for it.

    Attributes:
        exchanges: Workload's name -> what is sent.

    Raises:
        NotStartedError: It gives no right answer.
    """

    def __init__(self, subject: Subject, place: Place, pairs: Mapping[str, Pairs]) -> None:
        self.subject = subject
        self.address = ("127.0.0.1", place.ports[0])
        self.spans = place.directory / "spans"
        self.spans.mkdir()
        self.exchanges = {
            name: [
                Asked(subject.path, subject.wrap(request, place.workload), answer, subject.unwrap)
                for request, answer in its
            ]
            for name, its in pairs.items()
        }
        self._log = place.directory / "log"
        launch = subject.launch(place)
        environ = os.environ | environ_of(place.workload, self.spans) | {"TMPDIR": str(place.directory)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in launch.command],
                cwd=place.directory,
                env={**environ, **launch.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def processes(self) -> list[psutil.Process]:
        """All of them, those included that have left the process group: each inherited `$PEERS_SPANS`."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("PEERS_SPANS") == str(self.spans):
                    found.append(process)
        return found

    def roots(self) -> list[int]:
        """The processes that no other of them is the parent of."""
        processes = self.processes()
        pids = {process.pid for process in processes}
        found = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in pids:
                    found.append(process.pid)
        return found

    def suspend(self) -> None:
        """Nothing of it runs: what one server does while idle is not taken from another."""
        self._signal(signal.SIGSTOP, self.processes())

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs meanwhile."""
        self._signal(signal.SIGCONT, self.processes())
        try:
            yield
        finally:
            self.suspend()

    def copies(self) -> int:
        """Copies of the model that living processes loaded."""
        pids = {int(file.name.split("-")[1]): 0 for file in self.spans.glob("loaded-*")}
        alive = {pid for pid in pids if psutil.pid_exists(pid)}
        return sum(int(file.name.split("-")[1]) in alive for file in self.spans.glob("loaded-*"))

    def stop(self) -> None:
        """End every process."""
        processes = self.processes()
        self._signal(signal.SIGCONT, processes)
        self._process.terminate()
        psutil.wait_procs(processes, timeout=1.5)  # several wait for far longer
        self._signal(signal.SIGKILL, self.processes())
        self._process.wait()

    def _signal(self, number: int, processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _await_answer(self) -> None:
        end = time.monotonic() + _START_S
        outcome = "nothing"
        first = next(iter(self.exchanges.values()))
        while time.monotonic() < end:
            if self._process.poll() is not None:
                outcome = f"it ended with status {self._process.returncode}"
                break
            with contextlib.suppress(ServerError):
                load = run_load(self.address, first, pace=Closed(1), seconds=0.05)
                outcomes = {answer.outcome for answer in load.answers}
                if outcomes == {"right"}:
                    return
                outcome = ", ".join(sorted(outcomes))
            time.sleep(0.5)
        text = self._log.read_text(errors="replace")
        raise NotStartedError(f"{outcome}\n{text[-3000:]}")
