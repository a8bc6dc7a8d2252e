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
from .output import open_output
from .page import Page
from .spare import Spare

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
        spare: A process that may become it, unless another worker has started one; otherwise a program is run.
    """

    def __init__(
        self,
        home: Home,
        *,
        model_dir: Path,
        arguments: Mapping[str, Any],
        environ: Mapping[str, str],
        logger: logging.Logger,
        spare: Spare | None,
    ) -> None:
        self.home = home
        self._model_dir = model_dir
        self._arguments = arguments
        self._environ = environ
        self._logger = logger
        self._spare = spare
        self._child: subprocess.Popen[bytes] | Spare | None = None

    def connect(self, deadline: float) -> tuple[Channel, Page]:
        """A connection to the process, which may still be loading; it is started if there is none.

        Args:
            deadline: `time.monotonic()` value after which to give up.

        Raises:
            Unavailable: Too many have just died, the last could not load the model, none listens in time, or the
                server has ended, so that nobody needs one.
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

    def dismiss_spare(self) -> None:
        """Do without the spare process from now on."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.dismiss()

    def reap(self) -> None:
        """Take notice of the end of a process that this worker started."""
        child = self._child
        code = child.poll() if child is not None else None
        if child is None or code is None:
            return
        self._child = None
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
        if not self.home.identity.alive():
            raise Unavailable("the server has ended")
        try:
            self.home.make()
            with self.home.starting(_POLL_S * 5) as ours:
                if not ours:
                    return False
                if self.home.listens():
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
        self._child = child = self._spared() or self._run()
        deadline = time.monotonic() + _LISTENS_WITHIN_S
        while child.poll() is None and time.monotonic() < deadline:
            if self.home.listens():
                self._logger.info("predictor process %d started", child.pid)
                return True
            time.sleep(_POLL_S)
        return False

    def _command(self) -> list[str]:
        package = (__package__ or "").rpartition(".")[0]
        return [sys.executable, "-u", "-m", f"{package}.{_MAIN}", str(self.home.path)]

    def _all_environ(self) -> dict[str, str]:
        return {**self._environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def _spared(self) -> Spare | None:
        """The spare process, which is the predictor process now; None when there is none."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        try:
            spare.become(
                self._command(),
                directory=self._model_dir,
                environ=self._all_environ(),
                output=self.home.output,
            )
        except OSError:
            return None
        return spare

    def _run(self) -> subprocess.Popen[bytes]:
        output = open_output(self.home.output)
        try:
            # In a session of its own: it outlives this worker, and no signal to the worker's group reaches it.
            return subprocess.Popen(
                self._command(),
                cwd=self._model_dir,
                env=self._all_environ(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
