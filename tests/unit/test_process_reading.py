"""Which thread of the predictor process reads."""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections import Counter

import pytest

from handlergen.runtime.process.reading import Reading


class Letterbox:
    """A pipe whose bytes are read, and by whom."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        self._rung, self._bell = os.pipe()
        self._inside = threading.Lock()
        self.read_by: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.at_once = 0

    def read(self, timeout_s: float | None) -> None:
        if not self._inside.acquire(blocking=False):
            self.at_once += 1
            return
        try:
            there, _, _ = select.select([self._out, self._rung], [], [], timeout_s)
            if self._rung in there:
                os.read(self._rung, 4096)
            if self._out in there:
                for _ in os.read(self._out, 4096):
                    self.read_by.put(threading.get_ident())
        finally:
            self._inside.release()

    def ring(self) -> None:
        os.write(self._bell, b"!")

    def post(self, letters: int = 1) -> None:
        os.write(self._in, bytes(letters))


HERE = threading.get_ident


@pytest.fixture
def box() -> Letterbox:
    return Letterbox()  # never closed: the thread that reads it has no end


def test_what_comes_while_there_is_nothing_to_do_is_read_here(box: Letterbox) -> None:
    reading = Reading(box)
    threading.Timer(0.1, box.post).start()
    reading.until(lambda: not box.read_by.empty())
    assert box.read_by.get_nowait() == HERE()


def test_what_comes_beside_other_work_is_read_by_another_thread_at_once(box: Letterbox) -> None:
    reading = Reading(box)
    reading.until(lambda: True)
    reading.beside()
    box.post()
    assert box.read_by.get(timeout=10) != HERE()


def test_work_that_takes_longer_than_was_thought_keeps_nothing_from_being_read(box: Letterbox) -> None:
    reading = Reading(box)
    for _ in range(3):
        reading.until(lambda: True)
        box.post()
        assert box.read_by.get(timeout=10) != HERE()


def test_a_look_reads_what_is_there_and_does_not_wait(box: Letterbox) -> None:
    reading = Reading(box)
    threading.Timer(0.1, box.post).start()
    reading.until(lambda: not box.read_by.empty())
    box.read_by.get_nowait()
    began = time.monotonic()
    box.post(3)
    reading.look()
    assert box.read_by.qsize() == 3
    reading.look()
    assert time.monotonic() - began < 5


def test_the_time_ends_the_wait_and_so_does_waking(box: Letterbox) -> None:
    reading = Reading(box)
    began = time.monotonic()
    reading.until(lambda: False, 0.2)
    assert 0.2 <= time.monotonic() - began < 10
    come: list[str] = []

    def bring() -> None:
        come.append("something else")
        reading.wake()

    threading.Timer(0.1, bring).start()
    reading.until(lambda: bool(come), 30)
    assert time.monotonic() - began < 20
    reading.wake()  # nobody waits: nothing happens
    assert box.read_by.empty()


@pytest.mark.parametrize("beside", [True, False], ids=["long predictions", "short ones"])
def test_everything_is_read_once_and_by_one_thread_at_a_time(box: Letterbox, beside: bool) -> None:
    letters = 3000
    reading = Reading(box)

    def post() -> None:
        for _ in range(letters // 3):
            box.post()
            time.sleep(0)

    posts = [threading.Thread(target=post) for _ in range(3)]
    for thread in posts:
        thread.start()
    seen: Counter[int] = Counter()
    deadline = time.monotonic() + 60
    while seen.total() < letters and time.monotonic() < deadline:
        reading.look()
        reading.until(lambda: not box.read_by.empty(), 0.01)
        while not box.read_by.empty():
            seen[box.read_by.get_nowait()] += 1
        if beside:
            reading.beside()
            time.sleep(0.0005)
    for thread in posts:
        thread.join()
    assert (seen.total(), box.at_once) == (letters, 0)
    assert box.read_by.empty()
    here = seen[HERE()]
    assert here < letters if beside else here > 0
