"""Decoding and preprocessing of many rows beside the predictions: in forked processes, in threads, or in between."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import queue
import random
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from handlergen.errors import HandlergenError
from handlergen.local.offline.rows import Chunk, Row
from handlergen.local.requests import body_request, read_file
from handlergen.runtime.codec.errors import Failure
from handlergen.runtime.device.device import keep_freed_memory
from handlergen.runtime.forms.table import FORMS
from handlergen.runtime.pipeline.hooks import HookInputs, Item
from handlergen.runtime.pipeline.pipeline import Pipeline, open_items
from handlergen.runtime.predictor_process import serialization
from handlergen.runtime.request import BadRequest

if TYPE_CHECKING:
    from handlergen.runtime.contract import Contract

_CHUNKS_AHEAD = 2
"""Chunks that are read ahead, for each worker."""

_SMALLEST_PIECE = 4
"""Rows that are worth a message to a process."""

_WORTH_A_PROCESS_S = 80e-6
"""A row whose preparation takes less is prepared in the predicting thread: on two cores, two processes begin to save
time at about this much (rows of eight numbers)."""

_NICENESS = 5
"""Of a preparing process. The predicting process, for which the device waits, goes first: it needs a core for some
milliseconds a batch."""

_SMALL = 1 << 14
"""Bytes of a tensor or array, below which it travels in the message with the others."""

_PR_SET_PDEATHSIG = 1  # prctl(2)

Prepared = tuple[Chunk, list[Item]]


def prepare(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Make requests of rows, decode and preprocess them in this thread. A row whose file cannot be read has failed."""
    bodies, unreadable = [], {}
    for index, row in enumerate(rows):
        body = row.body if isinstance(row.body, bytes) else b""
        if isinstance(row.body, Path):
            try:
                body = read_file(row.body)
            except HandlergenError as error:
                unreadable[index] = error.message
        bodies.append({"body": bytearray(body)})
    items = _items_of(rows, bodies)
    for index, message in unreadable.items():
        pipeline.fail(items[index], BadRequest(message), "decode")
    pipeline.preprocess(items)
    return items


def _items_of(rows: Sequence[Row], bodies: Sequence[dict[str, Any]]) -> list[Item]:
    # Headers are only read: rows of one content type share theirs.
    headers = {kind: body_request(b"", kind)[1] for kind in {row.content_type for row in rows}}
    return open_items(bodies, [headers[row.content_type] for row in rows], [str(row.id) for row in rows])


class Preparation:
    """Prepares chunks ahead of the predictions.

    Args:
        pipeline: Of the loaded model.
        contract: Its hooks.
        directory: Where hooks expect to run.
        workers: How many processes or threads; 0 prepares in the predicting thread; None: one a core where that is
            faster. For files it always is; of other rows the first chunk tells.
        threads: Threads instead of processes.
        ordered: Yield chunks in the order of the input; else as they are ready.
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

    def run(self, chunks: Iterable[Chunk]) -> Generator[Prepared, None, None]:
        """Prepare each chunk; reads `_CHUNKS_AHEAD` chunks a worker ahead, and no further.

        Raises:
            HandlergenError: A preparing process died.
        """
        chunks = iter(chunks)
        workers, measured = self._workers, list[Prepared]()
        if workers is None:
            first = next(chunks, None)
            if first is None:
                return
            workers = 0 if self._is_cheap(first, measured) else available_cores()
            chunks = chunks if measured else itertools.chain([first], chunks)
        if workers == 0:
            yield from measured
            for chunk in chunks:
                yield chunk, prepare(self._pipeline, chunk.rows)
        elif self._threads:
            yield from measured
            yield from self._beside(chunks, workers, lambda rows: prepare(self._pipeline, rows), lambda: None)
        else:
            # Forked first: what predicts the measured chunk starts threads, which a fork must not see.
            with self._processes(workers) as (prepare_in_process, kill):
                yield from measured
                yield from self._beside(chunks, workers, prepare_in_process, kill)

    def _is_cheap(self, first: Chunk, measured: list[Prepared]) -> bool:
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
        measured.append((first, _numbered(items)))
        return took_s < _WORTH_A_PROCESS_S * (len(first.rows) - half)

    def _beside(
        self,
        chunks: Iterable[Chunk],
        workers: int,
        prepare_piece: Callable[[Sequence[Row]], list[Item]],
        abort: Callable[[], None],
    ) -> Iterator[Prepared]:
        """Prepare each chunk in pieces, one for each worker. At the end, `abort` what is under way and wait for it."""
        waiting: deque[tuple[Chunk, list[Future[list[Item]]]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="handlergen-prepare")
        try:
            for chunk in chunks:
                size = max(_SMALLEST_PIECE, -(-len(chunk.rows) // workers))
                pieces = [chunk.rows[start : start + size] for start in range(0, len(chunk.rows), size)]
                waiting.append((chunk, [pool.submit(prepare_piece, piece) for piece in pieces]))
                if len(waiting) >= workers * _CHUNKS_AHEAD:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            abort()
            pool.shutdown(cancel_futures=True)

    def _next(self, waiting: deque[tuple[Chunk, list[Future[list[Item]]]]]) -> Prepared:
        if not self._ordered:
            while not any(_done(pieces) for _, pieces in waiting):
                unfinished = [piece for _, pieces in waiting for piece in pieces if not piece.done()]
                wait(unfinished, return_when=FIRST_COMPLETED)
            waiting.rotate(-next(index for index, (_, pieces) in enumerate(waiting) if _done(pieces)))
        chunk, pieces = waiting.popleft()
        try:
            return chunk, _numbered([item for piece in pieces for item in piece.result()])
        except _NotInAFork as why:
            if self._tell is not None:
                self._tell(f"{why}: rows are prepared in the predicting process; --threads does it beside")
                self._tell = None
            return chunk, prepare(self._pipeline, chunk.rows)

    @contextlib.contextmanager
    def _processes(
        self, count: int
    ) -> Iterator[tuple[Callable[[Sequence[Row]], list[Item]], Callable[[], None]]]:
        """Fork preparing processes, which have ended afterwards.

        Yields:
            What prepares rows in a process that is idle, and what kills all processes.
        """
        hook_inputs = HookInputs.of(self._contract, ("predict", "postprocess"))
        processes: list[_PreparingProcess] = []
        idle: queue.SimpleQueue[_PreparingProcess] = queue.SimpleQueue()

        def prepare_in_process(rows: Sequence[Row]) -> list[Item]:
            process = idle.get()
            try:
                return process.prepare(rows)
            finally:
                idle.put(process)

        def kill() -> None:
            for process in processes:
                process.kill()

        try:
            for number in range(count):
                process = _PreparingProcess(number, self._pipeline, hook_inputs, self._directory, processes)
                processes.append(process)
                idle.put(process)
            yield prepare_in_process, kill
        finally:
            kill()
            for process in processes:
                process.close()


def _done(pieces: Iterable[Future[list[Item]]]) -> bool:
    return all(piece.done() for piece in pieces)


def _numbered(items: list[Item]) -> list[Item]:
    """Number the items of several pieces as one batch."""
    for index, item in enumerate(items):
        item.index = index
    return items


class _NotInAFork(Exception):
    """Why rows cannot be prepared in a forked process."""


class _PreparingProcess:
    """A forked process that prepares rows for one thread at a time.

    Forked: the model's hooks are there, whatever they hold, without being pickled or loaded again. It is safe because
    nothing runs beside: threads of this process start after the fork.

    Args:
        number: Which it is, from 0.
        pipeline: Of the loaded model.
        hook_inputs: The parts of a request that the later stages read.
        directory: Where hooks expect to run.
        earlier: The processes that were forked before.
    """

    def __init__(
        self,
        number: int,
        pipeline: Pipeline,
        hook_inputs: HookInputs,
        directory: Path,
        earlier: Sequence[_PreparingProcess],
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()

        def run() -> None:
            # Held open here, they would hide from this process and from its sisters that the parent has ended.
            for each in [*(process._connection for process in earlier), self._connection]:
                each.close()
            _set_up(number, directory)
            _prepare_until_closed(theirs, _ForkedPipeline(pipeline), hook_inputs)

        self._process = context.Process(target=run, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads that torch's own libraries have
            self._process.start()
        theirs.close()

    def prepare(self, rows: Sequence[Row]) -> list[Item]:
        """Prepare rows there.

        Raises:
            _NotInAFork: They must be prepared in this process.
            HandlergenError: The process died.
        """
        try:
            self._connection.send(rows)
            answer = self._connection.recv()
            if isinstance(answer, str):
                raise _NotInAFork(answer)
            pickled, parts = answer
            buffers = [bytearray(part) for part in parts]
            for part, buffer in zip(parts, buffers, strict=True):
                if isinstance(part, int):
                    self._connection.recv_bytes_into(buffer)
        except (EOFError, OSError):
            self._process.join(1)
            raise HandlergenError(
                f"a process that prepares rows died ({_how_it_ended(self._process.exitcode)})",
                hint="what is written stays; fewer --workers, or a smaller --batch-size, need less memory",
            ) from None
        items = _items_of(rows, [{} for _ in rows])
        for item, value in zip(items, serialization.unpack(pickled, buffers), strict=True):
            _restore(item, value)
        return items

    def kill(self) -> None:
        """End the process, whatever it does: what waits for its answer is told that it died."""
        self._process.kill()

    def close(self) -> None:
        """Forget the process, which has been killed."""
        self._process.join()
        self._process.close()
        self._connection.close()


def _how_it_ended(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


def _set_up(number: int, directory: Path) -> None:
    """Make a freshly forked process one that prepares."""
    # The parent ends this process, when it has seen to what is under way; a terminal's Ctrl-C goes to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # even a SIGKILL of the parent's thread that forked it ends this process
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICENESS)
    keep_freed_memory()
    os.chdir(directory)
    torch.set_num_threads(
        1
    )  # the processes themselves are as many as the cores; and OpenMP's threads are not forked
    seed = (torch.initial_seed() + number + 1) % 2**63  # else all of them would draw the same random numbers
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _prepare_until_closed(connection: Connection, pipeline: _ForkedPipeline, hook_inputs: HookInputs) -> None:
    """Answer each list of rows that arrives, until the parent has closed the connection or ended."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            rows = connection.recv()
            items = prepare(pipeline.stages, rows) if not pipeline.refused else []
            if pipeline.refused:
                connection.send(pipeline.refused)
                continue
            try:
                pickled, buffers = serialization.pack([_taken(item, hook_inputs) for item in items])
            except Exception as error:  # the pickling of the user's own types raises anything
                connection.send(f"what preprocess returned cannot cross to another process ({error})")
                continue
            # Large buffers follow the message one by one, by their sizes: without being copied into a pickle, they cost
            # 0.4 ms for the 600 KB of an image, 2 % of what decoding it costs (benchmarks/map_speed.py).
            large = [buffer for buffer in buffers if buffer.nbytes > _SMALL]
            parts = [buffer.nbytes if buffer.nbytes > _SMALL else bytes(buffer) for buffer in buffers]
            connection.send((pickled, parts))
            for buffer in large:
                connection.send_bytes(buffer)


class _ForkedPipeline:
    """The pipeline in a preparing process. What fails because of the fork alone fails without a word.

    Attributes:
        stages: The pipeline.
        refused: Why rows must be prepared in the parent; "" when they need not.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.stages = pipeline.forked()
        self.refused = ""
        self._fail = pipeline.fail
        self.stages.fail = self._failed

    def _failed(self, item: Item, error: BaseException, hook: str) -> None:
        if isinstance(error, RuntimeError) and "forked subprocess" in str(error):
            self.refused = "preprocess uses the GPU, which a forked process cannot"
            item.failure = Failure(500, type(error).__name__, str(error))
        else:
            self._fail(item, error, hook)


def _taken(item: Item, hook_inputs: HookInputs) -> tuple[Any, ...]:
    """A prepared item as plain values: its failure, or what the later stages read."""
    if item.failure is not None:
        return (item.failure,)
    return (None, item.inputs, item.request._metadata, *hook_inputs.of_item(item))


def _restore(item: Item, value: tuple[Any, ...]) -> None:
    """Give an item of the predicting process what `_taken` took."""
    item.failure = value[0]
    if item.failure is None:
        _, item.inputs, metadata, item.data, item.files, entry, item.http = value
        if metadata:
            item.request.metadata.update(metadata)
        if entry is not None:
            item.entry = entry


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
