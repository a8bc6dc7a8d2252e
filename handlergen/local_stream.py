"""Chunks of a streamed answer in this process: made in a thread, taken in another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from handlergen.runtime.streaming import ConsumerGone

if TYPE_CHECKING:
    from handlergen.runtime.failures import Failure
    from handlergen.runtime.hooks import Item


class LocalOutlet:
    """Hands each chunk to a function, in the thread that predicts.

    Args:
        take: Gets each chunk's bytes and the answer's content type. It may raise `ConsumerGone` to end the stream.
    """

    def __init__(self, take: Callable[[bytes, str], None]) -> None:
        self._take = take
        self.failure: Failure | None = None

    def send(self, _item: Item, body: bytes, content_type: str) -> None:
        self._take(body, content_type)

    def break_off(self, failure: Failure) -> None:
        """Keep why the stream ended before its end; there is no response to break off."""
        self.failure = failure


def in_chunks(make: Callable[[Callable[[bytes, str], None]], bytes]) -> Iterator[bytes]:
    """The chunks of an answer as they come.

    They are made in a thread of their own and kept until they are taken, so that a slow or absent consumer keeps
    nobody from the device; when the iterator is closed or forgotten, the next chunk ends the stream.

    Args:
        make: Makes the answer, hands its chunks to the function it is given, and returns what is left of it.

    Raises:
        Exception: What `make` raises, after the chunks that came before.
    """
    chunks: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    gone = threading.Event()

    def take(body: bytes, _content_type: str) -> None:
        if gone.is_set():
            raise ConsumerGone
        chunks.put(("chunk", body))

    def run() -> None:
        try:
            chunks.put(("end", make(take)))
        except BaseException as error:
            chunks.put(("error", error))

    thread = threading.Thread(target=run, name="handlergen-stream", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = chunks.get()
            if kind == "error":
                raise value
            if value:
                yield value
            if kind == "end":
                return
    finally:
        gone.set()
        thread.join()
