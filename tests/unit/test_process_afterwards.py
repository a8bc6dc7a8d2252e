"""What the predictor process puts off until its next predict runs."""

from __future__ import annotations

import logging
import queue
import threading

import pytest

from handlergen.runtime.process.afterwards import Afterwards, LateRecorder


def test_nothing_is_done_until_it_is_handed_over_and_then_in_order_by_another_thread() -> None:
    afterwards, done = Afterwards(), queue.SimpleQueue[tuple[int, int]]()
    for number in range(3):
        afterwards.add(lambda number=number: done.put((number, threading.get_ident())))
    assert done.empty()
    afterwards.hand_over()
    made = [done.get(timeout=10) for _ in range(3)]
    assert [number for number, _ in made] == [0, 1, 2]
    assert threading.get_ident() not in {thread for _, thread in made}


def test_without_a_next_predict_it_is_done_here_and_once() -> None:
    afterwards, done = Afterwards(), list[int]()
    afterwards.add(lambda: done.append(threading.get_ident()))
    afterwards.make_now()
    afterwards.make_now()
    afterwards.hand_over()
    assert done == [threading.get_ident()]


@pytest.mark.parametrize("how", ["make_now", "hand_over"])
def test_one_that_fails_is_told_and_the_others_are_done(how: str, caplog: pytest.LogCaptureFixture) -> None:
    afterwards, done = Afterwards(), queue.SimpleQueue[str]()
    for _ in range(2):  # the thread goes on after it
        afterwards.add(lambda: next(iter([])))
        afterwards.add(lambda: done.put("done"))
        with caplog.at_level(logging.ERROR, logger="handlergen"):
            getattr(afterwards, how)()
            assert done.get(timeout=10) == "done"
    assert "StopIteration" in caplog.text


def test_times_are_told_late_and_unchanged() -> None:
    class Told:
        def __init__(self) -> None:
            self.times: list[tuple[str, str, int, int]] = []

        def record(self, stage: str, request_id: str, start_ns: int, end_ns: int) -> None:
            self.times.append((stage, request_id, start_ns, end_ns))

        def forked(self) -> None:
            return None

    told, afterwards = Told(), Afterwards()
    late = LateRecorder(told, afterwards)
    late.record("lock_wait", "a", 1, 2)
    late.record("predict", "a", 2, 3)
    assert told.times == []
    afterwards.make_now()
    assert told.times == [("lock_wait", "a", 1, 2), ("predict", "a", 2, 3)]
    assert late.forked() is None
