"""Who waits for the device, in which order, and for how long."""

from __future__ import annotations

import threading
import time
from typing import Any

from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.predictor_process.connections import WorkerConnection, WorkerRequest
from handlergen.runtime.predictor_process.server import BatchQueue, QueuedRequest
from handlergen.runtime.request import Request


class StatusStandIn:
    def __init__(self, told: list[str]) -> None:
        self.told = told

    def take_slot(self, _connection: int, _number: int) -> int:
        self.told.append("entered")
        return 0

    def free_slot(self, _slot: int) -> None:
        self.told.append("done")


class Asked:
    def __init__(self, name: str, *, explains: bool = False) -> None:
        self.told: list[str] = []
        self.worker = WorkerConnection(0, None)  # type: ignore[arg-type]
        self.item = Item(0, {}, {}, Request({}, name))
        request = WorkerRequest(StatusStandIn(self.told), self.worker, 0)  # type: ignore[arg-type]
        self.queued = QueuedRequest(self.item, request, self.answered, explains)

    def answered(self) -> None:
        assert self.item.failure is not None
        self.told.append(f"{self.item.failure.status}")


def names(taken: Any) -> str:
    return "".join(each.item.request.id for each in taken)


def test_what_is_there_is_taken_in_order_up_to_the_most() -> None:
    queue = BatchQueue(max_batch=3, linger_s=0)
    for name in "abcde":
        queue.put(Asked(name).queued)
    assert [names(queue.take()), names(queue.take())] == ["abc", "de"]


def test_it_lingers_for_others_as_long_as_it_is_told_and_no_longer_than_it_needs() -> None:
    queue = BatchQueue(max_batch=2, linger_s=20)
    queue.put(Asked("a").queued)
    threading.Timer(0.1, queue.put, [Asked("b").queued]).start()
    began = time.monotonic()
    assert names(queue.take()) == "ab"
    assert time.monotonic() - began < 10
    queue = BatchQueue(max_batch=2, linger_s=0.1)
    queue.put(Asked("a").queued)
    began = time.monotonic()
    assert names(queue.take()) == "a"
    assert time.monotonic() - began >= 0.1


def test_requests_that_come_one_at_a_time_soon_do_not_linger_and_do_again_when_others_come() -> None:
    queue = BatchQueue(max_batch=2, linger_s=0.05)

    def lingers(*beside: str) -> bool:
        for name in ("a", *beside):
            queue.put(Asked(name).queued)
        began = time.monotonic()
        queue.take()
        return time.monotonic() - began >= 0.05

    alone = [lingers() for _ in range(300)]
    assert alone[:8] == [True] * 8
    assert [number for number, lingered in enumerate(alone) if lingered and number >= 8] == [128, 256]
    assert not lingers("b")
    assert lingers()


def test_an_explanation_comes_alone_and_in_its_turn() -> None:
    queue = BatchQueue(max_batch=8, linger_s=0)
    for name in "abXcY":
        queue.put(Asked(name, explains=name.isupper()).queued)
    assert [names(queue.take()) for _ in range(4)] == ["ab", "X", "c", "Y"]


def test_the_end_comes_while_it_lingers() -> None:
    queue = BatchQueue(max_batch=8, linger_s=60)
    queue.put(Asked("a").queued)
    threading.Timer(0.1, queue.end).start()
    began = time.monotonic()
    assert names(queue.take()) in ("a", "")
    assert time.monotonic() - began < 30
