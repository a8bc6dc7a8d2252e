"""Workers and their predictor process, without TorchServe: real processes, that can be killed.

`crew(source, **settings)` puts a module where a server would have unpacked it and starts a stand-in for the server;
`crew.worker()` starts a worker, and `worker.ask(value)` is a request to it.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.staging import make_bundle
from handlergen.inspection.project import open_project
from tests import histories
from tests.processes import standin

ANSWERS_WITHIN_S = 120
"""A slow machine's share included."""

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["pytest", "torch", "handlergen.runtime.worker"])


class Died(Exception):
    """The worker is gone."""


class CrewWorker:
    """A worker process; `failure` says why it has not become ready."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self.connection = connection
        self.pid, self.failure = connection.recv()
        self.log = log
        self.chunks: list[bytes] = []
        self.broken_off: int | None = None
        self._threads = ThreadPoolExecutor(1)
        self._count = 0

    def ask(self, value: Any, **headers: str) -> tuple[int, Any]:
        """One JSON request: its status and its answer."""
        ((status, _, body),) = self.batch([value], **headers)
        return status, json.loads(body) if body else None

    def batch(self, values: list[Any], **headers: str) -> list[tuple[int, dict[str, str], bytes]]:
        """Requests that TorchServe would hand over at once."""
        self._count += 1
        names = [f"{self.pid}-{self._count}-{index}" for index in range(len(values))]
        return self.tell("handle", names, [(json.dumps(value).encode(), headers) for value in values])

    def later(self, value: Any, **headers: str) -> Future[tuple[int, Any]]:
        """The same as `ask`, without waiting."""
        return self._threads.submit(self.ask, value, **headers)

    def describe(self) -> dict[str, Any]:
        return self.tell("describe")

    def tell(self, kind: str, names: Any = None, rows: Any = None) -> Any:
        self.chunks, self.broken_off = [], None
        try:
            self.connection.send((kind, names, rows))
            while (message := self._received())[0] != "done":
                if message[0] == "chunk":
                    self.chunks.append(message[2])
                else:
                    self.broken_off = message[1]
        except (EOFError, OSError) as error:
            raise Died from error
        return message[1]

    def _received(self) -> Any:
        if not self.connection.poll(ANSWERS_WITHIN_S):
            raise AssertionError(f"worker {self.pid} does not answer")
        return self.connection.recv()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Crew:
    """A server's stand-in, its workers, and their predictor process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.model = directory / "model"
        self.workers: list[CrewWorker] = []
        self._launched = 0
        self._socket = tempfile.mkdtemp(prefix="crew-")  # a short path
        self._listener = Listener(f"{self._socket}/socket", backlog=20)
        environ = {
            "HANDLERGEN_STATE_DIR": str(self.state),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        orders, self._orders = FORK_SERVER.Pipe(duplex=False)
        arguments = (orders, self.model, self._listener.address, environ)
        self.server = FORK_SERVER.Process(target=standin.serve, args=arguments)
        self.server.start()
        orders.close()

    def launch(self) -> Path:
        """Begin to start a worker, and do not wait for it; its log."""
        self._launched += 1
        log = self.directory / f"worker-{self._launched}.log"
        self._orders.send(log)
        return log

    def accept_unready(self) -> Connection:
        """The connection of a launched worker that is just beginning."""
        return self._listener.accept()

    def worker(self) -> CrewWorker:
        """Start a worker; it is ready, or has failed."""
        log = self.launch()
        self.workers.append(CrewWorker(self._listener.accept(), log))
        return self.workers[-1]

    def ready(self, count: int) -> list[CrewWorker]:
        """Workers that were started at once and are all ready."""
        logs = [self.launch() for _ in range(count)]
        workers = [CrewWorker(self._listener.accept(), log) for log in logs]
        self.workers += workers
        assert [worker.failure for worker in workers] == [None] * count
        return workers

    def stop_server(self) -> None:
        """Kill the server, and not its workers."""
        self.server.kill()
        self.server.join()

    @property
    def homes(self) -> list[Path]:
        return sorted((self.state / "locks").glob("predictor-*"))

    def predictors(self) -> list[int]:
        """Living predictor processes."""
        return list(histories.predictors(self.state))

    def predictor(self) -> int:
        (pid,) = self.predictors()
        return pid

    def log(self) -> str:
        """What all workers and their predictor process printed."""
        paths = [*self.directory.glob("worker-*.log"), *self.directory.glob("logs/*.log")]
        return "".join(path.read_text() for path in sorted(paths))

    def history(self) -> list[tuple[int, int, float, float]]:
        """What the module wrote down of its predicts: process, request, begin and end, by beginning."""
        path = self.model / "history"
        lines = path.read_text().splitlines() if path.exists() else []
        return sorted((tuple(json.loads(line)) for line in lines), key=lambda span: span[2])

    def overlapping(self) -> list[Any]:
        """Pairs of predicts that ran at once."""
        return [(one, next_) for one, next_ in itertools.pairwise(self.history()) if one[3] > next_[2]]

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
        for pid in self.predictors():
            os.kill(pid, signal.SIGKILL)
        self.stop_server()
        self._orders.close()
        self._listener.close()
        shutil.rmtree(self._socket)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Callable[..., Crew]]:
    """`crew(source, **settings)`; every process of it ends with the test."""
    opened: list[Crew] = []

    def make(source: str, **settings: Any) -> Crew:
        directory = tmp_path / f"crew{len(opened)}"
        (directory / "model").mkdir(parents=True)
        (directory / "logs").mkdir()  # the server's
        file = directory / "model" / f"model_{directory.name}.py"
        file.write_text(textwrap.dedent(source))
        overrides = {"predictor": "process", "stages": "worker", "lock_timeout_s": 30, **settings}
        bundle = make_bundle(open_project(file, overrides=overrides))
        (directory / "model" / "handlergen.json").write_text(bundle.to_json())
        opened.append(Crew(directory))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
