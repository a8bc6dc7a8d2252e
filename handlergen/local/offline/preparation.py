"""Decode and preprocess rows while others are predicted: in forked processes, in threads, or in the same thread."""

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
from contextvars import copy_context
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
from handlergen.runtime.predictor_process.transport import pack, unpack
from handlergen.runtime.request import BadRequest

if TYPE_CHECKING:
    from handlergen.local.model import LocalModel

_CHUNKS_AHEAD = 2  # chunks read ahead per worker
_SMALLEST_PIECE = 4  # the fewest rows to send to a process at once
_WORTH_A_PROCESS_S = 80e-6
"""Rows that take less are prepared in the predicting thread: on two cores, two processes begin to save time at about
this much (rows of eight numbers)."""

_LOOKS_EVERY_S = 1.0
_STUCK_AFTER_S = 60.0  # in which a preparing process does not run once
_NICENESS = 5  # of a preparing process: the predicting process, which the device waits for, has priority
_PR_SET_PDEATHSIG = 1  # prctl(2)

Prepared = tuple[Chunk, list[Item]]
_PreparePiece = Callable[[Sequence[Row]], list[Item]]


def prepare(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Decode and preprocess rows in this thread. A row whose file cannot be read becomes a failed item."""
    bodies, unreadable = [], {}
    for index, row in enumerate(rows):
        body = b""
        try:
            body = read_file(row.body) if isinstance(row.body, Path) else row.body
        except HandlergenError as error:
            unreadable[index] = error.message
        bodies.append({"body": bytearray(body)})
    items = _items_of(rows, bodies)
    for index, message in unreadable.items():
        pipeline.fail(items[index], BadRequest(message), "decode")
    pipeline.preprocess(items)
    return items


def _items_of(rows: Sequence[Row], bodies: Sequence[dict[str, Any]]) -> list[Item]:
    # Headers are read-only, so rows of one content type share them.
    headers = {kind: body_request(b"", kind)[1] for kind in {row.content_type for row in rows}}
    return open_items(bodies, [headers[row.content_type] for row in rows], [str(row.id) for row in rows])


class Preparation:
    """Prepares chunks ahead of the predictions.

    Args:
        workers: Number of processes or threads; 0: prepare in the predicting thread; None: one per core if that is
            faster, which it always is for files, and which the first chunk shows for other rows.
        threads: Use threads instead of processes.
        warn: Called once if rows cannot be prepared in processes.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        workers: int | None,
        threads: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._pipeline = model.worker.pipeline
        self._contract = model.worker.bundle.contract
        self._surroundings = model.surroundings
        self._workers = workers
        self._threads = threads
        self._warn: Callable[[str], None] | None = warn

    def run(self, chunks: Iterable[Chunk], *, ordered: bool) -> Generator[Prepared, None, None]:
        """Prepare each chunk, at most `_CHUNKS_AHEAD` per worker ahead, and yield them in order or as they are ready.

        Raises:
            HandlergenError: A preparing process died.
        """
        self._ordered = ordered
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
                yield chunk, self._prepare(chunk.rows)
        elif self._threads or self._has_threads():
            yield from measured
            yield from self._in_parallel(chunks, workers, self._prepare, lambda: None)
        else:
            # Fork before the measured chunk is predicted, which starts threads: a fork does not copy them.
            with self._processes(workers) as (prepare_in_process, kill):
                yield from measured
                yield from self._in_parallel(chunks, workers, prepare_in_process, kill)

    def _prepare(self, rows: Sequence[Row]) -> list[Item]:
        with self._surroundings.entered():
            return prepare(self._pipeline, rows)

    def _has_threads(self) -> bool:
        """Return whether the module has threads running; a forked process that needs one would wait for ever."""
        names = self._surroundings.threads()
        if names and self._warn is not None:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            self._warn(f"the module has threads running ({shown}): rows are prepared in threads, not in processes")
        return bool(names)

    def _is_cheap(self, first: Chunk, measured: list[Prepared]) -> bool:
        """Return whether a process costs more than it saves; measures the first chunk unless its rows are files."""
        if "preprocess" not in self._contract.hooks and not FORMS[self._contract.form].several_models:
            return True
        if isinstance(first.rows[0].body, Path):
            return False
        half = len(first.rows) // 2  # the first calls of a hook may import and compile
        items = self._prepare(first.rows[:half])
        started = time.perf_counter()
        items += self._prepare(first.rows[half:])
        took_s = time.perf_counter() - started
        measured.append((first, _numbered(items)))
        return took_s < _WORTH_A_PROCESS_S * (len(first.rows) - half)

    def _in_parallel(
        self,
        chunks: Iterable[Chunk],
        workers: int,
        prepare_piece: _PreparePiece,
        abort: Callable[[], None],
    ) -> Iterator[Prepared]:
        """Prepare each chunk in pieces, one per worker. At the end, `abort` pieces in progress and wait for them."""
        waiting: deque[tuple[Chunk, list[Future[list[Item]]]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="handlergen-prepare")
        try:
            for chunk in chunks:
                size = max(_SMALLEST_PIECE, -(-len(chunk.rows) // workers))
                pieces = [chunk.rows[start : start + size] for start in range(0, len(chunk.rows), size)]
                waiting.append((chunk, [pool.submit(copy_context().run, prepare_piece, piece) for piece in pieces]))
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
            if self._warn is not None:
                self._warn(f"{why}: rows are prepared in the predicting process; use --threads to do so in parallel")
                self._warn = None
            return chunk, self._prepare(chunk.rows)

    @contextlib.contextmanager
    def _processes(self, count: int) -> Iterator[tuple[_PreparePiece, Callable[[], None]]]:
        """Fork preparing processes; yield a function that prepares rows in an idle one, and one that kills all."""
        hook_inputs = HookInputs.of(self._contract, ("predict", "postprocess"))
        processes: list[_PreparingProcess] = []
        idle: queue.SimpleQueue[_PreparingProcess] = queue.SimpleQueue()

        def prepare_in_process(rows: Sequence[Row]) -> list[Item]:
            process = idle.get()
            try:
                answer = process.prepare(rows)
                with self._surroundings.entered():  # the values may be of the module's types
                    return process.items_of(rows, *answer)
            finally:
                idle.put(process)

        def kill() -> None:
            for process in processes:
                process.kill()

        try:
            with self._surroundings.entered():  # the processes stay there
                for number in range(count):
                    process = _PreparingProcess(number, self._pipeline, hook_inputs, processes)
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

    A fork has the model's hooks and their state without pickling or loading them. It is safe because this process
    starts its threads afterwards.
    """

    def __init__(
        self,
        number: int,
        pipeline: Pipeline,
        hook_inputs: HookInputs,
        earlier: Sequence[_PreparingProcess],
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()

        def run() -> None:
            # Open copies here would hide from the preparing processes that the parent has ended.
            for each in [*(process._connection for process in earlier), self._connection]:
                each.close()
            _set_up(number)
            _prepare_until_closed(theirs, pipeline, hook_inputs)

        self._pipeline = pipeline
        self._process = context.Process(target=run, daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads that torch's own libraries have
            self._process.start()
        theirs.close()

    def prepare(self, rows: Sequence[Row]) -> tuple[bytes, list[bytearray]]:
        """Prepare rows in the process; return them as `items_of` takes them.

        Raises:
            HandlergenError: The process died, or is stuck.
            _NotInAFork: It cannot prepare them.
        """
        try:
            self._connection.send(rows)
            self._wait()
            answer = self._connection.recv()
            if isinstance(answer, str):
                raise _NotInAFork(answer)
        except (EOFError, OSError):
            self._process.join(1)
            status = self._process.exitcode or 0
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise HandlergenError(
                f"a process that prepares rows died ({how})",
                hint="the output so far is kept; fewer --workers or a smaller --batch-size need less memory",
            ) from None
        prepared: tuple[bytes, list[bytearray]] = answer
        return prepared

    def items_of(self, rows: Sequence[Row], pickled: bytes, buffers: list[bytearray]) -> list[Item]:
        """Return prepared rows."""
        items = _items_of(rows, [{} for _ in rows])
        for item, (failure, *values) in zip(items, unpack(pickled, buffers), strict=True):
            item.failure = failure
            if failure is None:
                item.inputs, metadata, changes, item.data, item.files, entry, item.http = values
                item.context = self._pipeline.contexts.new(changes)
                if metadata:
                    item.request.metadata.update(metadata)
                if entry is not None:
                    item.entry = entry
        return items

    def _wait(self) -> None:
        """Wait for an answer; raise HandlergenError when none will come: the process waits, and never does a thing."""
        activity, since = -1.0, time.monotonic()
        while not self._connection.poll(_LOOKS_EVERY_S):
            before, activity = activity, _activity(self._process.pid)
            if activity != before:
                since = time.monotonic()
            elif time.monotonic() - since > _STUCK_AFTER_S:
                self.kill()
                raise HandlergenError(
                    f"a process that prepares rows has waited for {_STUCK_AFTER_S:.0f} s without doing anything: "
                    "preprocess probably waits for a thread or a lock that a forked process does not have",
                    hint="prepare rows in threads (--threads), or in the predicting process (--workers 0)",
                )

    def kill(self) -> None:
        """Kill the process; a `prepare` in progress raises."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the killed process and release it."""
        self._process.join()
        self._process.close()
        self._connection.close()


def _set_up(number: int) -> None:
    """Set up a freshly forked process."""
    # A terminal's Ctrl-C goes to both processes; the parent ends this one once it has cleaned up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # ends this process with the thread that forked it, SIGKILL included
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(_NICENESS)
    keep_freed_memory()
    torch.set_num_threads(1)  # there is a process per core, and a fork has none of OpenMP's threads
    seed = (torch.initial_seed() + number + 1) % 2**63  # or all processes would draw the same random numbers
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _prepare_until_closed(connection: Connection, pipeline: Pipeline, hook_inputs: HookInputs) -> None:
    """Answer lists of rows until the parent closes the connection or ends."""
    forked = pipeline.forked()
    refused = ""

    def fail(item: Item, error: BaseException, hook: str) -> None:
        nonlocal refused
        if isinstance(error, RuntimeError) and "forked subprocess" in str(error):  # only here: it is not logged
            refused = "preprocess uses the GPU, which a forked process cannot do"
        elif isinstance(error, AssertionError) and "daemonic processes" in str(error):  # multiprocessing/process.py
            refused = "preprocess starts processes, which a forked process cannot do"
        if refused:
            item.failure = Failure(500, type(error).__name__, str(error))
        else:
            pipeline.fail(item, error, hook)

    forked.fail = fail
    with contextlib.suppress(EOFError, OSError):
        while True:
            rows = connection.recv()
            items = [] if refused else prepare(forked, rows)
            if refused:
                connection.send(refused)
                continue
            try:
                pickled, buffers = pack([_plain_values(item, hook_inputs, forked) for item in items])
            except Exception as error:  # the pickling of the user's own types raises anything
                connection.send(f"the result of preprocess cannot be sent to another process ({error})")
                continue
            connection.send((pickled, [bytearray(buffer) for buffer in buffers]))


def _plain_values(item: Item, hook_inputs: HookInputs, pipeline: Pipeline) -> tuple[Any, ...]:
    """Return a prepared item as plain values: its failure, or what the later stages read."""
    if item.failure is not None:
        return (item.failure,)
    changes = pipeline.contexts.changes(item.context)
    return (None, item.inputs, item.request._metadata, changes, *hook_inputs.of_item(item))


def _activity(pid: int | None) -> float:
    """Return a number that changes whenever a process does something: its threads' context switches (proc(5)).

    Threads with a name of their own are a library's: gRPC starts some in every fork, which wake up all the time.
    """
    own, switches = "", 0
    for file in (Path(f"/proc/{pid}/status"), *Path(f"/proc/{pid}/task").glob("*/status")):
        with contextlib.suppress(OSError):  # the thread has ended
            name, *lines = file.read_text().splitlines()
            own = own or name
            if name == own:
                switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return switches if own else time.monotonic()  # not Linux: not known


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
