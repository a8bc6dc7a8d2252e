"""Postprocessing: in the predicting thread, beside the next prediction, or in several threads, as it takes time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from handlergen.offline.rows import Chunk
from handlergen.runtime.nested import own_copy

if TYPE_CHECKING:
    from handlergen.runtime.hooks import Item
    from handlergen.runtime.pipeline import Pipeline

_WORTH_A_THREAD_S = 1e-3
"""What can be saved on a chunk, below which another thread costs more: it takes the interpreter from this one."""

_WAITS_S = 5e-3
"""Of a chunk's postprocessing spent waiting (for a disk, a network), above which several threads do it."""

_THREADS = 8
"""The most that wait at once: as many as postprocess a batch of `LocalModel.batch`."""

_LOOKED_AT = 4
"""Chunks whose times are looked at; the least of them counts, for the first calls of a hook may import and compile."""

_Finished = TypeVar("_Finished")


class Answering(Generic[_Finished]):
    """Postprocesses chunks and hands them to `finish`, in the order in which they come.

    Args:
        pipeline: Of the loaded model.
        finish: Called with each chunk and its items, which have their reply or failure; one at a time.
        keep: Writes down a chunk's outputs, so that a run that is killed beside the next prediction does not lose
            them; says whether it could. What cannot be kept is finished before the next prediction.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        finish: Callable[[Chunk, list[Item]], _Finished],
        keep: Callable[[Chunk, list[Item]], bool],
    ) -> None:
        self._pipeline = pipeline
        self._finish = finish
        self._keep = keep
        self._beside: ThreadPoolExecutor | None = None
        self._waiters: ThreadPoolExecutor | None = None
        self._under_way: Future[_Finished] | None = None
        self._predicted = _Least()
        self._answered = _Least()
        self._waited = _Least()

    def take(self, chunk: Chunk, items: list[Item], predict_s: float) -> Iterator[_Finished]:
        """Answer a chunk whose prediction took so many seconds, or begin to.

        Yields:
            What `finish` returned for the chunks that are done: at most the one before, and this one.
        """
        yield from self.rest()
        self._predicted.add(predict_s)
        saved_s = min(self._predicted.value, self._answered.value)
        if saved_s < _WORTH_A_THREAD_S or not self._keep(chunk, items):
            yield self._answer(chunk, items)
            return
        for item in items:  # they are answered beside the next predict, which may write to the same memory
            item.outputs = own_copy(item.outputs)
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="handlergen-answer")
        self._under_way = self._beside.submit(self._answer, chunk, items)

    def rest(self) -> Iterator[_Finished]:
        """Wait for the chunk that is under way, if one is."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            yield under_way.result()

    def close(self) -> None:
        """End the threads."""
        for pool in (self._beside, self._waiters):
            if pool is not None:
                pool.shutdown()

    def _answer(self, chunk: Chunk, items: list[Item]) -> _Finished:
        started = time.perf_counter()
        if self._waited.value > _WAITS_S and len(items) > 1:
            if self._waiters is None:
                self._waiters = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen-postprocess")
            parts = [items[start::_THREADS] for start in range(min(_THREADS, len(items)))]
            self._waited.add(sum(self._waiters.map(self._postprocess, parts)))
        else:
            self._waited.add(self._postprocess(items))
        finished = self._finish(chunk, items)
        self._answered.add(time.perf_counter() - started)
        return finished

    def _postprocess(self, items: Sequence[Item]) -> float:
        """Seconds of it that this thread did not work."""
        started, worked = time.perf_counter(), time.thread_time()
        self._pipeline.postprocess(items)
        return time.perf_counter() - started - (time.thread_time() - worked)


class _Least:
    """The least of the last few times; 0 before the first."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LOOKED_AT)
        self.value = 0.0

    def add(self, seconds: float) -> None:
        self._last.append(seconds)
        self.value = min(self._last)
