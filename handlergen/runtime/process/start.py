"""Finding the predictor process of a model, or starting it: once, whoever asks."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .channel import Channel
from .home import ARGUMENTS_FILE, Home
from .page import Page

_POLL_S = 0.01
_LISTENS_WITHIN_S = 60.0
_MAIN = "process.main"


class Unavailable(Exception):
    """There is no predictor process that could take a request.

    Args:
        message: Why, for the client.
        retry_after_s: When there may be one.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Starter:
    """Connects to the process that a home belongs to.

    Args:
        home: Its directory.
        model_dir: Where the archive is unpacked: the process's working directory.
        arguments: For `process.main`, JSON values.
        environ: The process's environment.
        logger: Told of starts and ends.
    """

    def __init__(
        self,
        home: Home,
        *,
        model_dir: Path,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str],
        logger: logging.Logger,
    ) -> None:
        self.home = home
        self._model_dir = model_dir
        self._arguments = arguments
        self._environ = environ
        self._logger = logger
        self._child: subprocess.Popen[bytes] | None = None

    def connect(self, deadline: float) -> tuple[Channel, Page]:
        """A connection to the process, which may still be loading; it is started if there is none.

        Args:
            deadline: `time.monotonic()` value after which to give up.

        Raises:
            Unavailable: Too many have just died, the last could not load the model, or none listens in time.
        """
        while True:
            self.reap()
            connection = self.home.connect()
            if connection is not None:
                try:
                    return Channel(connection), Page.open(self.home.page)
                except (OSError, ValueError):  # it ends just now
                    connection.close()
            now = time.monotonic()
            starts = self.home.starts()
            allowed = starts.next_after()
            if now < allowed and (starts.reason or allowed > deadline):
                raise Unavailable(
                    starts.reason or "its process keeps dying; the model log says why",
                    retry_after_s=allowed - now,
                )
            if now < allowed:
                time.sleep(min(0.1, allowed - now))
                continue
            if not self._start() and now > deadline:
                raise Unavailable("its process did not start in time")

    def reason(self) -> str:
        """Why the last process could not load the model; empty when it could."""
        return self.home.starts().reason

    def reap(self) -> None:
        """Take notice of the end of a process that this worker started."""
        child = self._child
        if child is None or child.poll() is None:
            return
        self._child = None
        code = child.returncode
        if code < 0:
            try:
                how = f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was killed by signal {-code}"
        else:
            how = f"ended with status {code}"
        if code:
            self._logger.error("predictor process %d %s", child.pid, how)

    def _start(self) -> bool:
        """Start a process unless another worker does so; returns when it listens."""
        try:
            self.home.make()
            with self.home.starting(_POLL_S * 5) as ours:
                if not ours:
                    return False
                connection = self.home.connect()
                if connection is not None:
                    connection.close()
                    return True
                if time.monotonic() < self.home.starts().next_after():
                    return False
                self.home.note_start()
                return self._launch()
        except FileNotFoundError:  # a process that ends has just removed the directory
            time.sleep(_POLL_S)
            return False

    def _launch(self) -> bool:
        arguments = self.home.path / ARGUMENTS_FILE
        arguments.write_text(json.dumps(dict(self._arguments)), "utf-8")
        package = (__package__ or "").rpartition(".")[0]
        output = os.open(self.home.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # In a session of its own: it outlives this worker, and no signal to the worker's group reaches it.
            child = subprocess.Popen(
                [sys.executable, "-u", "-m", f"{package}.{_MAIN}", str(self.home.path)],
                cwd=self._model_dir,
                env={**self._environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        self._child = child
        deadline = time.monotonic() + _LISTENS_WITHIN_S
        while child.poll() is None and time.monotonic() < deadline:
            connection = self.home.connect()
            if connection is not None:
                connection.close()
                self._logger.info("predictor process %d started", child.pid)
                return True
            time.sleep(_POLL_S)
        return False
