"""Ending a server's processes: those that carry its mark, and no others."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil

from handlergen.server_state import MARKER

_POLL_S = 0.05


def end_marked(marker: str, *, grace: float) -> None:
    """End every process that carries the mark: SIGTERM, some seconds, SIGKILL; until none is left."""
    with _uninterrupted():
        signal_to_send = signal.SIGTERM
        while found := marked(marker):
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal_to_send)
            # Not psutil.wait_procs: these are no children of ours, and where pid 1 reaps nobody they stay
            # zombies.
            deadline = time.monotonic() + grace
            # Asked of each one found, not of a new search: the environment of a process that is just ending
            # cannot be read any more, while its ports are still held.
            while any(map(_alive, found)) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            signal_to_send = signal.SIGKILL


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C, while the first one is being obeyed, must not leave half of the processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(marker: str) -> list[psutil.Process]:
    """This user's processes whose environment carries the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.uids().real == os.getuid()
                and process.environ().get(MARKER) == marker
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found
