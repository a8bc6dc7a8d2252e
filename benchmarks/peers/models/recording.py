"""Written by the user's code itself, so that every server is judged alike: when `predict` ran, and who loaded a model.

Into the directory `$PEERS_SPANS`: a file `predict-PID` of pairs of 64-bit integers, `time.monotonic_ns()` at start and
end; an empty file `loaded-PID-N` for the Nth copy of a process. Writing a pair takes about 2 µs.
"""

import os
import struct
import time
from contextlib import contextmanager
from pathlib import Path

_PAIR = struct.Struct("=qq")
_files = {}


@contextmanager
def predicting():
    """Record how long the body took."""
    start_ns = time.monotonic_ns()
    yield
    os.write(_file(), _PAIR.pack(start_ns, time.monotonic_ns()))


def loaded():
    """This process has one more copy of the model."""
    directory, pid = Path(os.environ["PEERS_SPANS"]), os.getpid()
    count = len(list(directory.glob(f"loaded-{pid}-*")))
    (directory / f"loaded-{pid}-{count + 1}").touch()


def _file():
    pid = os.getpid()  # a forked process gets a file of its own
    if pid not in _files:
        path = Path(os.environ["PEERS_SPANS"]) / f"predict-{pid}"
        _files[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return _files[pid]
