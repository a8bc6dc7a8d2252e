"""Finding the predictor process of a model, or starting it: once, whichever worker asks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .run_directory import LOADING, STATES, RunDirectory, StatusFile
from .transport import Transport

_POLL_S = 0.01
_LISTENS_WITHIN_S = 60.0
_REAPED_WITHIN_S = 5.0
_LAST_WORDS = 4096
"""How much of what a process printed last is logged when it dies, in bytes."""


class Unavailable(Exception):
    """There is no predictor process that could take a request.

    Args:
        message: Why, for the client.
        retry_after_s: When there may be one.
        traceback: The user's own, of a load that failed.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0, traceback: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.traceback = traceback


class Launcher:
    """Connects to the predictor process of a run directory; logs each start and each failed end.

    Args:
        arguments: For the process (`__main__`): JSON values; `model_dir` is its working directory.
    """

    def __init__(self, directory: RunDirectory, arguments: Mapping[str, Any], logger: logging.Logger) -> None:
        self.directory = directory
        self._arguments = arguments
        self._environ = dict(os.environ)
        self._logger = logger
        self._child: subprocess.Popen[bytes] | None = None
        self._log = Path()
        self._log_start = 0

    def connect(self, deadline: float) -> tuple[Transport, StatusFile]:
        """Return a connection to the process, which may still be loading, and its status; start it if there is none.

        Raises:
            Unavailable: Too many have just died, the last could not load the model, none listens before `deadline`
                (`time.monotonic()`), or the server has ended, so that nobody needs one.
        """
        while True:
            self.reap()
            connection = self.directory.connect()
            if connection is not None:
                try:
                    return Transport(connection), StatusFile.open(self.directory.status_file)
                except (OSError, ValueError):  # it ends just now
                    connection.close()
            now = time.monotonic()
            starts = self.directory.starts()
            allowed = starts.next_after()
            if now < allowed and (starts.reason or allowed > deadline):
                raise Unavailable(
                    starts.reason or "its process keeps dying; the model log says why",
                    retry_after_s=allowed - now,
                    traceback=starts.traceback,
                )
            if now < allowed:
                time.sleep(min(0.1, allowed - now))
                continue
            if not self._start() and now > deadline:
                raise Unavailable("its process did not start in time")

    def reap(self, within_s: float = 0.0) -> None:
        """Log how a process ended that this worker has started, if it ends within so many seconds."""
        child = self._child
        if child is None:
            return
        try:
            code = child.wait(within_s)
        except subprocess.TimeoutExpired:
            return
        self._child = None
        if not code:
            return
        how = f"was ended by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with status {code}"
        said = self._last_words()
        text = f"; the end of {self._log}:\n{said}" if said else ""
        self._logger.error("predictor process %d %s%s", child.pid, how, text)
        if self._is_loading(child.pid) and not self.directory.starts().reason:
            crash = said.rfind("Fatal Python error: ")  # faulthandler's
            stack = said[crash:] if crash >= 0 else ""
            with contextlib.suppress(OSError):
                self.directory.note_failure(f"its predictor process {how} while it loaded the model", stack)

    def cannot_load(self) -> Unavailable:
        """Return why a process has ended while it loaded the model; the worker that has started it notes that."""
        self.reap(within_s=_REAPED_WITHIN_S)
        deadline = time.monotonic() + _REAPED_WITHIN_S
        while not (starts := self.directory.starts()).reason and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return Unavailable(
            starts.reason or "its predictor process ended while it loaded the model", traceback=starts.traceback
        )

    def _is_loading(self, pid: int) -> bool:
        """Return whether the status file is that process's, and says that it loads the model."""
        with contextlib.suppress(OSError, ValueError):
            seen = StatusFile.open(self.directory.status_file).look()
            return seen.pid == pid and seen.state == STATES[LOADING]
        return False

    def _last_words(self) -> str:
        """Return the end of what the process printed: of a segmentation fault, where it happened."""
        try:
            with self._log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - _LAST_WORDS, self._log_start if size >= self._log_start else 0))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _start(self) -> bool:
        """Start a process unless another worker does so; return, when it listens, whether one does."""
        if not self.directory.identity.alive():
            raise Unavailable("the server has ended")
        try:
            self.directory.make()
            with self.directory.starting(_POLL_S * 5) as ours:
                if not ours:
                    return False
                if self.directory.listens():
                    return True
                if time.monotonic() < self.directory.starts().next_after():
                    return False
                self.directory.note_start()
                return self._launch()
        except FileNotFoundError:  # a process that ends has just removed the directory
            time.sleep(_POLL_S)
            return False

    def _launch(self) -> bool:
        self._log = self.directory.log_file()
        self.directory.write_arguments({**self._arguments, "log": str(self._log)})
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._log_start = os.fstat(output).st_size
            # In a session of its own: it outlives this worker, and no signal to the worker's group reaches it.
            self._child = child = subprocess.Popen(
                [sys.executable, "-u", "-m", __package__ or "", str(self.directory.path)],
                cwd=self._arguments["model_dir"],
                env={**self._environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        deadline = time.monotonic() + _LISTENS_WITHIN_S
        while child.poll() is None and time.monotonic() < deadline:
            if self.directory.listens():
                self._logger.info("predictor process %d started; it prints to %s", child.pid, self._log)
                return True
            time.sleep(_POLL_S)
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "unknown"
