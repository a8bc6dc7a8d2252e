"""Load on a server, the history of what it answered and predicted, and what must hold of every such history.

Every request has a number, and its right answer says it, byte by byte. The model (`SOURCE`) writes down when each
predict began and ended, in a file of its own, which no death of a process takes along.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from handlergen.client import Answer, Client
from handlergen.errors import HandlergenError, RequestFailed

SOURCE = '''
"""Answers with its request's number, fails as it is asked to, and writes down when it predicted."""

import ctypes
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time


def fault(what):
    if isinstance(what, (int, float)):
        time.sleep(what)
    elif what in ("fork", "pool", "subprocess"):  # processes that live on when this one is killed
        if what == "fork" and os.fork() == 0:
            time.sleep(100)
            os._exit(0)
        elif what == "pool":
            multiprocessing.get_context("fork").Pool(2).map_async(time.sleep, [100, 100])
        elif what == "subprocess":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(3)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "hang":
        time.sleep(1000)
    elif what == "memory":
        raise MemoryError("no memory")
    elif what == "cuda memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    elif what == "error":
        raise RuntimeError("as asked")


def load(context):
    return os.open(context.config["history"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def preprocess(data, context):
    fault(data.get("pre"))
    if "store" in data:
        context.store.save("kept", bytes(data["store"]))
    time.sleep(0.002)
    return data["n"], data.get("predict"), bytes(data.get("bytes", 0)), os.getpid()


def note(history, what, number):
    os.write(history, b"%d %s %d %d\\n" % (os.getpid(), what, number, time.monotonic_ns()))


def predict(inputs, model):
    number, what, _, worker = inputs
    note(model, b"begin", number)
    try:
        fault(what)
        time.sleep(0.004)
    finally:
        note(model, b"end", number)
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    return {"n": number, "digest": digest, "predictor": os.getpid(), "worker": worker}


def postprocess(outputs):
    time.sleep(0.002)
    return outputs
'''


def is_right(number: int, body: bytes) -> bool:
    """Whether these are the bytes that `SOURCE` answers a request with; only which processes did is free."""
    try:
        said = json.loads(body)
        free = {who: int(said[who]) for who in ("predictor", "worker")}
    except (ValueError, KeyError, TypeError):
        return False
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    return body == json.dumps({"n": number, "digest": digest, **free}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        number: Its own.
        began_s, ended_s: On the monotonic clock.
        status: Of its answer; 0 when none came in time.
        wrong: The answer is another request's, or none that this model gives.
        said: The answer, or what went wrong.
    """

    number: int
    began_s: float
    ended_s: float
    status: int
    wrong: bool
    said: Any


@dataclass
class Load:
    """Clients that ask without a pause, each a new request when the last is answered; a context manager.

    Args:
        client: Knows the server.
        name: The model.
        clients: How many.
        timeout_s: How long each waits for an answer.
        grpc: How many of the clients ask over gRPC.
        pause_s: How long each waits after an answer that was not 200: a server that is down refuses thousands a second.
    """

    client: Client
    name: str
    clients: int = 16
    timeout_s: float = 30.0
    pause_s: float = 0.02
    grpc: int = 0
    asked: list[Asked] = field(default_factory=list)

    numbers = itertools.count(1)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        ways = [self.client.predict_grpc] * self.grpc + [self.client.predict] * (self.clients - self.grpc)
        self._threads = [threading.Thread(target=self._flow, args=(way,), daemon=True) for way in ways]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self.timeout_s + 10)

    def ask(self, over: Callable[..., Answer] | None = None, /, **extra: Any) -> Asked:
        """One request, recorded; over REST unless `over` is another method of the client."""
        number = next(self.numbers)
        began = time.monotonic()
        status, wrong, said = 0, False, None
        try:
            answer = (over or self.client.predict)(self.name, {"n": number, **extra})
            status, wrong = 200, not is_right(number, answer.body)
            said = answer.json()
        except RequestFailed as error:
            status, said = error.status, error.body
        except (HandlergenError, httpx.HTTPError, OSError) as error:
            said = error
        asked = Asked(number, began, time.monotonic(), status, wrong, said)
        self.asked.append(asked)
        return asked

    def _flow(self, over: Callable[..., Answer]) -> None:
        while not self._stop.is_set():
            if self.ask(over).status != 200:
                self._stop.wait(self.pause_s)


@dataclass(frozen=True)
class Predicted:
    """One call of predict; `end_ns` is None when its process died in it."""

    pid: int
    number: int
    begin_ns: int
    end_ns: int | None


def predicted(history: Path) -> list[Predicted]:
    """What the model wrote down, by beginning."""
    begun: dict[tuple[int, int], int] = {}
    found = []
    for line in history.read_bytes().splitlines():
        pid, what, number, moment = line.split()
        key = int(pid), int(number)
        if what == b"begin":
            begun[key] = int(moment)
        else:
            found.append(Predicted(*key, begun.pop(key), int(moment)))
    found += [Predicted(*key, begin, None) for key, begin in begun.items()]
    return sorted(found, key=lambda each: each.begin_ns)


def in_predict(history: Path) -> int:
    """The living process that has been in predict for 0.2 s; 0 when there is none."""
    import psutil

    before = time.monotonic_ns() - 200_000_000
    unfinished: dict[int, int] = {}
    with history.open("rb") as file:
        file.seek(max(0, history.stat().st_size - 100_000))
        for line in file.readlines()[1:]:
            pid, what, _number, moment = line.split()
            if what == b"begin":
                unfinished[int(pid)] = int(moment)
            else:
                unfinished.pop(int(pid), None)
    return next((pid for pid, began in unfinished.items() if began < before and psutil.pid_exists(pid)), 0)


def overlapping(predictions: Iterable[Predicted]) -> list[tuple[Predicted, Predicted]]:
    """Pairs of predicts that ran at once."""
    ended = [each for each in predictions if each.end_ns is not None]
    return [(one, other) for one, other in itertools.pairwise(ended) if (one.end_ns or 0) > other.begin_ns]


def lost(asked: Iterable[Asked]) -> list[Asked]:
    """Requests without an answer."""
    return [each for each in asked if each.status == 0]


def wrong(asked: Iterable[Asked]) -> list[Asked]:
    """Requests that got another one's answer, or twice the same number's."""
    return [each for each in asked if each.wrong]


def refused_by_the_queue(asked: Asked) -> bool:
    """Whether TorchServe itself refused it, which with workers there means that the model's queue was full."""
    # gRPC has no code for it: 500.
    return asked.status in (500, 503) and b"has no worker to serve inference request" in asked.said


def statuses(asked: Iterable[Asked]) -> Counter[int]:
    return Counter(each.status for each in asked)


def recovery_s(asked: Iterable[Asked], since_s: float) -> float:
    """How long after a moment the first request that was asked after it, or waited then, was answered rightly."""
    right = [each.ended_s for each in asked if each.status == 200 and each.ended_s > since_s + 0.05]
    return min(right, default=float("inf")) - since_s


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Wait until something is so; returns it."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {condition}")
        time.sleep(0.05)
    return found


def predictors(state: Path) -> dict[int, str]:
    """Living predictor processes below a state directory, each with its model and version."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if process.status() == psutil.STATUS_ZOMBIE or not command[-1:]:
                continue
            if os.getsid(process.pid) != process.pid:  # user code forked it off one, whose command it has
                continue
        except (psutil.Error, ProcessLookupError):
            continue
        home = Path(command[-1])
        if home.is_relative_to(state) and command[-2].endswith(".predictor_process"):
            try:
                about = json.loads((home / "identity.json").read_text())
            except (OSError, ValueError):
                about = {"name": "?", "version": "?"}
            found[process.pid] = f"{about['name']} {about['version']}"
    return found
