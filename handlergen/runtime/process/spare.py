"""A process that is forked off a worker while that is empty, and waits to become the predictor process.

Two processes that import torch have some 140 MB each for themselves. Of one that is forked off another, only what
either writes to is its own (12 MB beside the weights, measured), and it has nothing to import. It must happen before
the worker imports the user's module: afterwards there may be threads, open files and locks that a fork cannot carry
over. Whether the worker is the one that starts the predictor process turns out later; if not, the spare one ends.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from .forks import close, descriptor_closed_in_children
from .output import open_output
from .title import show_as

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2


class Spare:
    """The worker's end of it.

    Attributes:
        pid: Of the process.
    """

    def __init__(self) -> None:
        gc.collect()  # a forgotten file must not be closed over there, where its number may be another file's
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        told, self._tell = os.pipe()
        self._code: int | None = None
        self._asking = threading.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of OpenBLAS's threads, which it ends itself
            self.pid = os.fork()
        if self.pid == 0:
            _wait(told)
        os.close(told)
        descriptor_closed_in_children(self._tell)

    @classmethod
    def if_safe(cls) -> Spare | None:
        """None where the other process might not work: CUDA does not survive a fork, nor do other threads."""
        if sys.platform != "linux" or threading.active_count() > 1 or torch.cuda.is_available():
            return None
        return cls()

    def become(
        self, command: list[str], *, directory: Path, environ: Mapping[str, str], output: Path
    ) -> None:
        """Let it be the predictor process.

        Args:
            command: What it is shown as; the last is the home.
            directory: Where it runs.
            environ: Its environment.
            output: A file that takes its standard output and errors.

        Raises:
            OSError: It has died, and is taken away.
        """
        about = [command, str(directory), dict(environ), str(output)]
        try:
            with os.fdopen(self._tell, "w", encoding="utf-8", closefd=False) as pipe:
                json.dump(about, pipe)
        except OSError:
            self._end()
            raise
        finally:
            close(self._tell)

    def dismiss(self) -> None:
        """End it."""
        close(self._tell)
        self._end()

    def poll(self) -> int | None:
        """As `subprocess.Popen`'s."""
        with self._asking:  # of two threads one would find it gone, and take it for a good end
            if self._code is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # user code has waited for all children
                    self._code = 0
                else:
                    self._code = os.waitstatus_to_exitcode(status) if pid else None
            return self._code

    def _end(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _wait(told: int) -> NoReturn:
    """Wait for the word, in the new process.

    It must hold nothing of the worker's, whose end TorchServe would not notice. When the worker ends first, so does it.
    """
    status = 1
    try:
        gc.freeze()  # nothing of the worker's is ever cleaned up here
        os.setsid()
        _hold_only(told)
        with os.fdopen(told, encoding="utf-8") as pipe:
            word = pipe.read()
        if word:
            _become(*json.loads(word))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _hold_only(descriptor: int) -> None:
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) != descriptor:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(path.name))
    for wanted in (_INPUT, _OUTPUT, _ERRORS):
        opened = os.open(os.devnull, os.O_RDWR)
        assert opened == wanted, "the lowest free number"
        os.set_inheritable(opened, True)


def _become(command: list[str], directory: str, environ: dict[str, str], output: str) -> None:
    from .main import run

    written = open_output(Path(output))
    os.dup2(written, _OUTPUT)
    os.dup2(written, _ERRORS)
    os.close(written)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # whoever dies has said what stands there
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    show_as(command)
    sys.argv = command[-2:]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # as in a process of its own; Python does the same for `random`
    run(command[-1:])
