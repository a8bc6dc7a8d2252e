"""Commands to a server's workers, which travel in a header of `GET /models/NAME?customized=true`.

TorchServe queues that request with the model's predictions, gives it alone to the worker whose turn it is, and passes
its headers on (ManagementRequestHandler.handleDescribeModel, Model.pollBatch). The header `COMMAND` is a JSON object
with any of:

- `"hold": [PID, ...], "seconds": S`: a worker with one of these process ids keeps the request in hand, S seconds at
  most. TorchServe gives it nothing else meanwhile, so ending it costs no request an answer.
- `"release": [PID, ...]`: these workers answer what they hold.
- `"refuse": S`: every worker of this version of the model refuses predictions for S seconds; 0: no longer.
- `"record": {"share": 0.1, "seconds": S}`: the workers of this version of the model write a share of their requests and
  answers to files, see `shadow`; a share of 0: no longer, and the files are removed.

The answer is `{"pid": ..., "holding": [PID, ...], "refusing": true or false}`, and, while requests are recorded,
`"recording": DIRECTORY`. A worker of a version of handlergen without commands answers its description, which has no
`holding`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from os import getpid
from pathlib import Path
from typing import Any

from ..codec.content import COMMAND
from ..codec.encode import encode
from ..codec.errors import Failure
from ..device.lock import lock_directory
from ..diagnostics import logger
from ..pipeline.backend import failure_for, is_describe
from ..pipeline.hooks import Item
from ..server_process import ProcessFiles, server_of_this_process
from .shadow import RequestRecorder

_LONGEST_S = 600.0
_POLL_S = 0.02
_CHECK_EVERY_S = 0.02
"""How often a worker looks whether it must refuse predictions: stat(2) costs 2 µs."""

_STOPPING = Failure(
    503,
    "Stopping",
    "The server, or this model, is being stopped and begins no more requests. Retry the request.",
    {"Retry-After": "1"},
)


class Commands:
    """The commands that this worker has received, and those for all workers of its model.

    Args:
        model: Name and version.
        directory: The user's private one; None: there is no TorchServe, and nothing is ever commanded.
        closed: Returns whether TorchServe has closed its connection to this worker.
    """

    def __init__(
        self, model: tuple[str, str] = ("", ""), directory: Path | None = None, closed: Callable[[], bool] = bool
    ) -> None:
        self._closed = closed
        self._held: ProcessFiles | None = None
        self._refusing = False
        self._check_at = 0.0
        # A worker that starts now was not told to refuse. File systems' clocks lag by up to 10 ms.
        self._since = time.time() - 0.1
        if directory is not None:
            server = server_of_this_process()
            key = (f"{server[0]} {server[1]}", *model)
            self._held = ProcessFiles(directory, "held", *key)
            self._stop = ProcessFiles(directory, "refusing", *key, process=server)
            self._recorder = RequestRecorder(ProcessFiles(directory, "recording", *key, process=server).own)

    @classmethod
    def of_worker(cls, model: tuple[str, str], closed: Callable[[], bool] | None) -> Commands:
        """Return the commands of one of TorchServe's workers; `closed` is None without TorchServe.

        A directory that cannot be made is logged; commands are then not obeyed.
        """
        if closed is None:
            return cls()
        try:
            return cls(model, lock_directory(), closed)
        except OSError as error:
            logger().warning("workers cannot be told to hold or refuse requests: %s", error)
            return cls()

    def obeyed(self, items: Sequence[Item]) -> bool:
        """Obey the command of a batch that has one, and give its request the answer; return whether there was one."""
        if self._held is None or len(items) != 1 or COMMAND not in items[0].properties or not is_describe(items[0]):
            return False
        item = items[0]
        try:
            self._obey(json.loads(item.properties[COMMAND]))
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            item.failure = failure_for(item, Failure(400, "BadCommand", f"{COMMAND}: {type(error).__name__}: {error}"))
            return True
        self._check_at = 0.0
        answer = {"pid": getpid(), "holding": self._held.pids(), "refusing": self._is_refusing()}
        if self._recorder.look():
            answer["recording"] = str(self._recorder.directory)
        item.reply = encode(answer)
        return True

    def accepted(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items to answer: only descriptions while the model stops. The others get their failure."""
        if self._held is None or not self._is_refusing():
            return items
        accepted = []
        for item in items:
            if is_describe(item):
                accepted.append(item)
            else:
                item.failure = failure_for(item, _STOPPING)
        return accepted

    def record(self, items: Sequence[Item]) -> None:
        """Record answered requests, if that was commanded."""
        if self._held is None:
            return
        try:
            self._recorder.record(items)
        except Exception as error:  # never a request's concern
            logger().warning("requests are not recorded: %s: %s", type(error).__name__, error)

    def _obey(self, command: Mapping[str, Any]) -> None:
        held = self._held
        assert held is not None
        for pid in command.get("release", ()):
            held.remove(int(pid))
        if "refuse" in command:
            self._stop.close()
            if float(command["refuse"]) > 0:
                self._stop.add(min(float(command["refuse"]), _LONGEST_S))
        if "record" in command:
            self._recorder.begin(float(command["record"]["share"]), float(command["record"]["seconds"]))
        if getpid() in command.get("hold", ()):
            end = time.monotonic() + min(float(command["seconds"]), _LONGEST_S)
            held.add()
            try:
                while held.added() and time.monotonic() < end and not self._closed():
                    time.sleep(_POLL_S)
            finally:
                held.close()

    def _is_refusing(self) -> bool:
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK_EVERY_S
            self._refusing = self._stop.lasts(self._since)
            self._recorder.look()
        return self._refusing
