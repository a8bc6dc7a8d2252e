"""Answer chunks of rows: prepared ahead, predicted in this thread, postprocessed during the next prediction."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from handlergen.errors import HandlergenError
from handlergen.local.offline.preparation import Preparation
from handlergen.local.offline.rows import Chunk, Lines, Result, Row, in_chunks, result_of
from handlergen.local.requests import body_of, content_type_of
from handlergen.runtime.device.device import keep_freed_memory
from handlergen.runtime.pipeline.batching import own_copy

if TYPE_CHECKING:
    from handlergen.local.model import LocalModel
    from handlergen.local.offline.journal import PendingOutputs
    from handlergen.runtime.pipeline.hooks import Item

_WORTH_A_THREAD_S = 1e-3
"""Seconds per chunk that must be saved for a second thread, which competes for the interpreter lock."""

_WAITS_S = 5e-3
"""Seconds per chunk that postprocessing must wait (for a disk, a network) to be spread over several threads."""

_THREADS = 8  # the most threads that postprocess one chunk; as many as for `LocalModel.batch`
_MEASURED = 4  # number of recent chunks whose shortest time counts: the first calls of a hook may import and compile

_Finished = TypeVar("_Finished")


class Engine(Protocol):
    """Answers chunks, in this process or on a cluster."""

    @property
    def identity(self) -> str:
        """Return a text that changes with the model."""

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        """Call `write` with each chunk's lines as soon as they are there, one at a time; yield after each.

        Args:
            chunks: Read as they are needed.
            ordered: Keep the order of the chunks.
            pending: Stores outputs that are not written yet; None: they are not stored.
        """


class LocalEngine:
    """Answers with a loaded model, which nobody else uses meanwhile; `workers` and `threads` as for `Preparation`."""

    def __init__(
        self,
        model: LocalModel,
        *,
        workers: int | None,
        threads: bool = False,
        warn: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self._model = model
        self._preparation = Preparation(model, workers=workers, threads=threads, warn=warn)

    @property
    def identity(self) -> str:
        return self._model.identity

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        keep_freed_memory()  # the copy of a batch's inputs that predict gets is freed after each batch
        # The objects that exist now live to the end: the garbage collector need not visit them, nor forks copy them.
        gc.freeze()
        try:
            yield from self.answer(
                chunks, lambda chunk, items: write(Lines.of(chunk, items)), ordered=ordered, pending=pending
            )
        finally:
            gc.unfreeze()

    def results(self, inputs: Iterable[Any], *, batch_size: int, ordered: bool) -> Generator[Result, None, None]:
        """Answer any inputs; see `LocalModel.map`."""
        if batch_size < 1:
            raise HandlergenError("the batch size must be at least 1")

        def finish(chunk: Chunk, items: list[Item]) -> list[Result]:
            return [result_of(row.id, item) for row, item in zip(chunk.rows, items, strict=True)]

        directory = Path.cwd()  # the caller's: while threads prepare rows, it is the model's
        chunks = in_chunks((_row(number, value, directory) for number, value in enumerate(inputs)), batch_size)
        with contextlib.closing(self.answer(chunks, finish, ordered=ordered)) as batches:
            for batch in batches:
                yield from batch

    def answer(
        self,
        chunks: Iterable[Chunk],
        finish: Callable[[Chunk, list[Item]], _Finished],
        *,
        ordered: bool = True,
        pending: PendingOutputs | None = None,
    ) -> Generator[_Finished, None, None]:
        """Answer chunks as `run` does: one in predict, one in postprocess and a few in preparation at a time.

        Yields:
            What `finish` returns for each chunk and its items, which have their reply or failure.

        Raises:
            Exception: What `chunks` or `finish` raises, and HandlergenError when a preparing process died.
        """
        self._model.worker.disable_lock_timeout()
        with (
            contextlib.closing(self._preparation.run(chunks, ordered=ordered)) as prepared,
            contextlib.closing(_Postprocessing(self._model, finish, pending)) as postprocessing,
        ):
            for chunk, items in prepared:  # processes are forked before this process starts a second thread
                started = time.perf_counter()
                with self._model.surroundings.entered():
                    if pending is None or not pending.restore(chunk, items):
                        self._model.worker.pipeline.predict(items)
                yield from postprocessing.add(chunk, items, time.perf_counter() - started)
            yield from postprocessing.rest()


def _row(number: int, value: Any, directory: Path) -> Row:
    if isinstance(value, Path):
        return Row(number, directory / value, content_type_of(value))
    return Row(number, *body_of(value))


class _Postprocessing(Generic[_Finished]):
    """Postprocesses chunks and passes them to `finish`, in order.

    By the measured times, it does so in the predicting thread, in one thread during the next prediction, or in several.
    `pending` stores a chunk's outputs, so that a run that is killed during the next prediction does not lose them; a
    chunk whose outputs cannot be stored is finished before the next prediction.
    """

    def __init__(
        self,
        model: LocalModel,
        finish: Callable[[Chunk, list[Item]], _Finished],
        pending: PendingOutputs | None,
    ) -> None:
        self._model = model
        self._finish = finish
        self._pending = pending
        # An executor starts its threads when it gets work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="handlergen-answer")
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen-postprocess")
        self._in_progress: Future[_Finished] | None = None
        self._predicted_s: deque[float] = deque(maxlen=_MEASURED)
        self._answered_s: deque[float] = deque(maxlen=_MEASURED)
        self._waited_s: deque[float] = deque(maxlen=_MEASURED)

    def add(self, chunk: Chunk, items: list[Item], predict_s: float) -> Iterator[_Finished]:
        """Answer a chunk, or start to; yield what `finish` returned for the previous one, this one, both or neither."""
        yield from self.rest()
        self._predicted_s.append(predict_s)
        saved_s = min(_least(self._predicted_s), _least(self._answered_s))
        if saved_s < _WORTH_A_THREAD_S or not self._keep(chunk, items):
            yield self._answer(chunk, items)
            return
        self._in_progress = self._thread.submit(copy_context().run, self._answer, chunk, items)

    def _keep(self, chunk: Chunk, items: list[Item]) -> bool:
        """Return whether a chunk's outputs last beyond the next prediction."""
        with self._model.surroundings.entered():  # the outputs may be of the module's types
            if self._pending is not None and not self._pending.keep(chunk, items):
                return False
            for item in items:  # the next predict may reuse the memory
                item.outputs = own_copy(item.outputs)
        return True

    def rest(self) -> Iterator[_Finished]:
        """Wait for the chunk in progress, if there is one."""
        in_progress, self._in_progress = self._in_progress, None
        if in_progress is not None:
            yield in_progress.result()

    def close(self) -> None:
        """End the threads."""
        self._thread.shutdown()
        self._pool.shutdown()

    def _answer(self, chunk: Chunk, items: list[Item]) -> _Finished:
        started = time.perf_counter()
        if _least(self._waited_s) > _WAITS_S and len(items) > 1:
            parts = [items[start::_THREADS] for start in range(min(_THREADS, len(items)))]
            running = [self._pool.submit(copy_context().run, self._postprocess, part) for part in parts]
            self._waited_s.append(sum(each.result() for each in running))
        else:
            self._waited_s.append(self._postprocess(items))
        finished = self._finish(chunk, items)
        self._answered_s.append(time.perf_counter() - started)
        return finished

    def _postprocess(self, items: Sequence[Item]) -> float:
        """Postprocess; return the seconds that this thread spent waiting."""
        started, worked = time.perf_counter(), time.thread_time()
        with self._model.surroundings.entered():
            self._model.worker.pipeline.postprocess(items)
        return time.perf_counter() - started - (time.thread_time() - worked)


def _least(times: deque[float]) -> float:
    return min(times, default=0.0)
