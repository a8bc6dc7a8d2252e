"""Decoding and preprocessing many rows beside the predictions: in processes, in threads, or in the same thread."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import DataLoader

from handlergen.offline.arena import Arena
from handlergen.offline.child import Piece, Preparing
from handlergen.offline.crossing import prepare, restored
from handlergen.offline.rows import Chunk
from handlergen.offline.transport import Packed
from handlergen.runtime.form_table import FORMS
from handlergen.runtime.hooks import Item
from handlergen.runtime.needs import Needs
from handlergen.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from handlergen.runtime.contract import Contract

_AHEAD = 2
"""Chunks that are prepared ahead, for each worker."""

_PIECES_AHEAD = 2 * _AHEAD

_SLOTS = _PIECES_AHEAD + 4
"""Of shared memory, for each process: for the pieces ahead, and for those that are put together, predicted and
answered. A process that finds none free sends its piece by the queue."""

_LEAST_PIECE = 4
"""Rows that are worth a message to a process."""

_WORTH_A_PROCESS_S = 80e-6
"""A row whose preparation takes less is prepared in the predicting process: on two cores, two processes begin to save
time at about this much (rows of eight numbers)."""

Prepared = tuple[Chunk, list[Item]]


class _Assembly:
    """A chunk whose pieces come back.

    Attributes:
        refused: Why its rows must be prepared in this process; "" when they need not.
    """

    def __init__(self, chunk: Chunk, arena: Arena | None) -> None:
        self.chunk = chunk
        self._arena = arena
        self.refused = ""
        self._pieces: dict[int, list[Any]] = {}
        self._missing = len(chunk.rows)

    def add(self, start: int, count: int, packed: Packed | str) -> None:
        """Take a piece of so many rows."""
        self._missing -= count
        if isinstance(packed, Packed):
            self._pieces[start] = packed.unpack(self._arena)
        else:
            self.refused = packed

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def values(self) -> list[Any]:
        """The rows' values, in order."""
        return [value for start in sorted(self._pieces) for value in self._pieces[start]]


class Preparation:
    """Prepares chunks ahead of the predictions.

    Args:
        pipeline: Of the loaded model.
        contract: Its hooks.
        directory: Where hooks expect to run.
        workers: How many processes or threads; 0 prepares in the predicting thread; None: one a core, if it is worth
            it. Files always are; of other rows the first chunk tells.
        threads: Threads instead of processes.
        ordered: Chunks come as they went in; else as they are ready.
        tell: Is told, once, that preparation cannot run in processes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        contract: Contract,
        directory: Path,
        *,
        workers: int | None,
        threads: bool,
        ordered: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._pipeline = pipeline
        self._contract = contract
        self._directory = directory
        self._workers = workers
        self._threads = threads
        self._ordered = ordered
        self._tell: Callable[[str], None] | None = tell

    def run(self, chunks: Iterable[Chunk]) -> Iterator[Prepared]:
        """Prepare each chunk; reads ahead `_AHEAD` chunks a worker, and no further.

        Raises:
            HandlergenError: A preparing process died.
        """
        chunks = iter(chunks)
        workers, ready = self._workers, list[Prepared]()
        if workers is None:
            first = next(chunks, None)
            if first is None:
                return
            workers = 0 if self._is_cheap(first, ready) else available_cores()
            chunks = chunks if ready else itertools.chain([first], chunks)
        if workers == 0:
            yield from ready
            for chunk in chunks:
                yield chunk, prepare(self._pipeline, chunk.rows)
        elif self._threads:
            yield from ready
            yield from self._in_threads(chunks, workers)
        else:
            yield from self._in_processes(chunks, workers, ready)

    def _is_cheap(self, first: Chunk, ready: list[Prepared]) -> bool:
        """Would a process cost more than it saves? Prepares the first chunk to find out, unless it is of files."""
        if "preprocess" not in self._contract.hooks and not FORMS[self._contract.form].several_models:
            return True
        if isinstance(first.rows[0].body, Path):
            return False
        half = len(first.rows) // 2  # the first calls of a hook may import and compile
        items = prepare(self._pipeline, first.rows[:half])
        started = time.perf_counter()
        items += prepare(self._pipeline, first.rows[half:])
        took_s = time.perf_counter() - started
        for index, item in enumerate(items):
            item.index = index
        ready.append((first, items))
        return took_s < _WORTH_A_PROCESS_S * (len(first.rows) - half)

    def _in_threads(self, chunks: Iterable[Chunk], workers: int) -> Iterator[Prepared]:
        def work(chunk: Chunk) -> Prepared:
            return chunk, prepare(self._pipeline, chunk.rows)

        waiting: deque[Future[Prepared]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="handlergen-prepare")
        try:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) >= workers * _AHEAD:
                    yield self._next(waiting).result()
            while waiting:
                yield self._next(waiting).result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _next(self, waiting: deque[Future[Prepared]]) -> Future[Prepared]:
        if self._ordered:
            return waiting.popleft()
        done = next(iter(wait(waiting, return_when=FIRST_COMPLETED).done))
        waiting.remove(done)
        return done

    def _in_processes(
        self, chunks: Iterable[Chunk], workers: int, ready: Iterable[Prepared]
    ) -> Iterator[Prepared]:
        under_way: dict[int, _Assembly] = {}
        try:
            arena = Arena(workers, _SLOTS)
        except OSError:  # a system that promises no more memory than it has
            arena = None

        def sending() -> Iterator[Piece]:
            for chunk in chunks:
                under_way[chunk.number] = _Assembly(chunk, arena)
                size = max(_LEAST_PIECE, -(-len(chunk.rows) // workers))
                for start in range(0, len(chunk.rows), size):
                    yield chunk.number, start, chunk.rows[start : start + size]

        iterator = self._loader(sending(), workers, arena)
        try:
            yield from ready  # after the fork: whoever predicts them starts threads
            while True:
                try:
                    number, start, count, packed = next(iterator)
                except StopIteration:
                    return
                assembly = under_way[number]
                assembly.add(start, count, packed)
                if assembly.complete:
                    del under_way[number]
                    yield assembly.chunk, self._items(assembly)
        finally:
            with contextlib.suppress(AttributeError):
                iterator._shutdown_workers()  # at once, not when the garbage collector comes to it

    def _items(self, assembly: _Assembly) -> list[Item]:
        if assembly.refused:
            if self._tell is not None:
                self._tell(
                    f"{assembly.refused}: rows are prepared in the predicting process; --threads does it beside"
                )
                self._tell = None
            return prepare(self._pipeline, assembly.chunk.rows)
        return restored(assembly.chunk.rows, assembly.values())

    def _loader(self, pieces: Iterator[Piece], workers: int, arena: Arena | None) -> Any:
        needs = Needs.of(self._contract, ("predict", "postprocess"))
        preparing = Preparing(self._pipeline, needs, self._directory, arena)
        options: dict[str, Any] = {}
        if not self._ordered and "in_order" in inspect.signature(DataLoader).parameters:  # torch 2.6
            options["in_order"] = False
        loader = DataLoader(
            preparing,
            batch_size=None,
            sampler=cast(Any, _Once(pieces)),
            num_workers=workers,
            prefetch_factor=_PIECES_AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=preparing.start,
            # Forked: the model's hooks are there, whatever they hold, without being pickled or loaded again. It is
            # safe here because nothing runs beside: threads of this process start after the fork.
            multiprocessing_context="fork",
            **options,
        )
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that torch's own libraries have; more workers than cores were asked for.
            warnings.simplefilter("ignore")
            return iter(loader)


class _Once:
    """A sampler of pieces; DataLoader asks for one whenever a process is free."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces


def _as_it_is(value: Any) -> Any:
    return value


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
