"""The end of a process that has run a module: it does not wait for threads that never end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Collection
from threading import Thread
from typing import NoReturn

_THREADS_END_WITHIN_S = 3.0
_HANDLERS_END_WITHIN_S = 10.0
_POOLS = ("concurrent.futures.thread", "concurrent.futures.process")


def end(status: int, before: Collection[Thread]) -> NoReturn:
    """Exit with a status. Python would wait for each thread that is not a daemon, for ever if need be.

    Such threads get a few seconds to end; after that a line on stderr names them, the module's `atexit` handlers run,
    and the process ends.

    Args:
        before: Threads that are not the module's.

    Raises:
        SystemExit: No such thread is left: the interpreter ends as usual.
    """
    _flush()
    left = _left(before)
    if left:
        _tell_pools()
        deadline = time.monotonic() + _THREADS_END_WITHIN_S
        for thread in left:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = _left(before)
    if not left:
        sys.exit(status)
    names = ", ".join(sorted(thread.name for thread in left)[:3]) + (", ..." if len(left) > 3 else "")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"Warning: the module left threads running ({names}): daemon=True would avoid this wait\n")
    last = threading.Timer(_HANDLERS_END_WITHIN_S, os._exit, (status,))
    last.daemon = True
    last.start()
    atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _left(before: Collection[Thread]) -> list[Thread]:
    own = {*before, threading.main_thread(), threading.current_thread()}
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in own]


def _tell_pools() -> None:
    """Let the idle threads of pools end, as Python does before it waits for threads."""
    for name in _POOLS:
        ended = getattr(sys.modules.get(name), "_python_exit", None)
        if ended is not None:
            Thread(target=ended, daemon=True).start()  # it joins the threads


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
