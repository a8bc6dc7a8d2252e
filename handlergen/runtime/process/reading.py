"""Who reads what the workers send: the thread that predicts, while it has nothing to predict; otherwise another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

_LOOK_EVERY_S = 0.1


class Source(Protocol):
    """What is read (`Peers`); by one thread at a time."""

    def read(self, timeout_s: float | None) -> None:
        """Take what has come. Waits for something, or for `ring`; None: for ever."""

    def ring(self) -> None:
        """Let `read` return, the next one if none waits; from any thread."""


class Reading:
    """Whose turn it is to read.

    With a thread that does nothing else, a request passes through two that must wake up, one after the other, and
    contend for the interpreter. Hence the thread that predicts takes over as soon as it has nothing else to do. The
    other one reads while a prediction runs, so that the next request is there when the device is free. Where
    predictions are too short for that to pay, nobody calls `beside`, and the other thread just looks now and then.

    Args:
        source: Is read; by the other thread from now on.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._turn = threading.Lock()
        self._wanted = False
        self._reader: int | None = None
        self._called = threading.Event()
        self.beside()
        threading.Thread(target=self._run, name="handlergen-reading", daemon=True).start()

    def until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Read until there is what is waited for, or the time is over; by the thread that predicts.

        Args:
            ready: Whether it is there; asked again after each `wake` and each message.
            timeout_s: None: for ever.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._reader = threading.get_ident()  # before the first look: from now on `wake` rings
        try:
            self._take_turn()
            try:
                while not ready():
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return
                    self._source.read(left)
            finally:
                self._turn.release()
        finally:
            self._reader = None

    def look(self) -> None:
        """Read what is there already, unless the other thread does; by the thread that predicts."""
        if self._turn.acquire(blocking=False):
            try:
                self._source.read(0)
            finally:
                self._turn.release()

    def wake(self) -> None:
        """Let `until` ask again whether there is what it waits for; from any thread."""
        reader = self._reader
        if reader is not None and reader != threading.get_ident():
            self._source.ring()

    def beside(self) -> None:
        """Let the other thread read until the one that predicts wants to again."""
        self._called.set()

    def _take_turn(self) -> None:
        if not self._turn.acquire(blocking=False):
            self._wanted = True
            self._source.ring()
            self._turn.acquire()
            self._wanted = False

    def _run(self) -> None:
        while True:
            self._called.wait(_LOOK_EVERY_S)  # a prediction may take longer than was thought
            self._called.clear()
            if not self._turn.acquire(blocking=False):
                continue
            try:
                while not self._wanted:
                    self._source.read(None)
            finally:
                self._turn.release()
