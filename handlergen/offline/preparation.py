"""Decoding and preprocessing many rows beside the predictions: in processes, in threads, or in the same thread."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import itertools
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.utils.data import DataLoader, Dataset

from handlergen.errors import HandlergenError
from handlergen.offline.rows import Chunk, Row
from handlergen.offline.transport import Packed, pack
from handlergen.outgoing import body_request, read_file
from handlergen.runtime.failures import Failure
from handlergen.runtime.hooks import Item
from handlergen.runtime.pipeline import Pipeline, open_items
from handlergen.runtime.requests import BadRequest

if TYPE_CHECKING:
    from handlergen.runtime.contract import Contract

_AHEAD = 2
"""Chunks that are prepared ahead, for each worker."""

_WORTH_A_PROCESS_S = 250e-6
"""A row whose preparation takes less is prepared in the predicting process: sending it costs about as much."""

_PR_SET_PDEATHSIG = 1  # prctl(2)

Prepared = tuple[Chunk, list[Item]]


def prepare(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests, decoded and preprocessed; in this thread."""
    items = open_rows(pipeline, rows)
    pipeline.preprocess(items)
    return items


def open_rows(pipeline: Pipeline, rows: Sequence[Row]) -> list[Item]:
    """Rows as requests that have just arrived. One whose file cannot be read has failed already."""
    entries, unreadable = [], {}
    kinds: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        body = row.body
        if isinstance(body, Path):
            try:
                body = read_file(body)
            except HandlergenError as error:
                unreadable[index] = error.message
                body = b""
        if row.content_type not in kinds:  # headers are only read: rows of one type share theirs
            kinds[row.content_type] = body_request(b"", row.content_type)[1]
        entries.append({"body": bytearray(body)})
    items = open_items(entries, [kinds[row.content_type] for row in rows], [str(row.id) for row in rows])
    for index, message in unreadable.items():
        pipeline.fail(items[index], BadRequest(message), "decode")
    return items


@dataclass(frozen=True)
class Needs:
    """What of a prepared request the later stages read, so that no more of it crosses to the predicting process."""

    data: bool
    files: bool
    http: bool

    @classmethod
    def of(cls, contract: Contract) -> Needs:
        """Read it from the parameters of the hooks that follow."""
        if contract.form == "flow":
            return cls(data=True, files=True, http=True)
        later = [hook for role, hook in contract.hooks.items() if role in ("predict", "postprocess")]
        sources = {parameter.source for hook in later for parameter in hook.parameters}
        return cls(bool(sources & {"data", "input_data"}), "files" in sources, "http_request" in sources)

    def taken(self, item: Item) -> tuple[Any, ...]:
        """The item as plain values."""
        failure = item.failure
        if failure is not None:
            return ((failure.status, failure.type, failure.message, dict(failure.headers)),)
        return (
            None,
            item.inputs,
            item.request._metadata,
            item.data if self.data else None,
            item.files if self.files else None,
            (item.entry, item.http) if self.http else None,
        )


def restored(rows: Sequence[Row], values: Sequence[tuple[Any, ...]]) -> list[Item]:
    """The items of `Needs.taken`, in the process that predicts."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.content_type not in kinds:
            kinds[row.content_type] = body_request(b"", row.content_type)[1]
    items = open_items(
        [{} for _ in rows], [kinds[row.content_type] for row in rows], [str(row.id) for row in rows]
    )
    for item, value in zip(items, values, strict=True):
        if value[0] is not None:
            item.failure = Failure(*value[0])
            continue
        _, item.inputs, metadata, item.data, item.files, http = value
        if metadata:
            item.request.metadata.update(metadata)
        if http is not None:
            item.entry, item.http = http
    return items


class Preparing(Dataset[Any]):
    """What torch's DataLoader runs in its processes: takes a chunk instead of an index, gives it back prepared.

    Args:
        pipeline: Of the loaded model; a forked process inherits it.
        needs: What is to be sent back.
        directory: Where hooks expect to run.
    """

    def __init__(self, pipeline: Pipeline, needs: Needs, directory: Path) -> None:
        self._pipeline = pipeline
        self._needs = needs
        self._directory = directory
        self._parent = os.getpid()

    def start(self, _number: int) -> None:
        """Once in each process."""
        # The parent ends this process, when it has seen to what is under way; a terminal's Ctrl-C goes to both.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(self._parent)
        os.chdir(self._directory)
        self._pipeline = _ForkedPipeline.of(self._pipeline)

    def __getitem__(self, chunk: Chunk) -> tuple[int, Packed | str]:
        pipeline = cast(_ForkedPipeline, self._pipeline)
        items = prepare(pipeline, chunk.rows) if not pipeline.refused else []
        if pipeline.refused:
            return chunk.number, pipeline.refused
        try:
            return chunk.number, pack([self._needs.taken(item) for item in items])
        except Exception as error:  # the pickling of the user's own types raises anything
            return chunk.number, f"what preprocess returned cannot cross to another process ({error})"


class _ForkedPipeline(Pipeline):
    """The pipeline in a preparing process. What fails because of the fork fails here only, and nobody is told.

    Attributes:
        refused: Why the rows must be prepared in the parent; "" when they need not.
    """

    refused = ""

    @classmethod
    def of(cls, pipeline: Pipeline) -> _ForkedPipeline:
        own = pipeline.forked()
        own.__class__ = cls
        return cast(_ForkedPipeline, own)

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        if isinstance(error, RuntimeError) and "forked subprocess" in str(error):
            self.refused = "preprocess uses the GPU, which a forked process cannot"
        super().fail(item, error, hook)


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
        if "preprocess" not in self._contract.hooks and self._contract.form != "flow":
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
        sent: dict[int, Chunk] = {}

        def sending() -> Iterator[Chunk]:
            for chunk in chunks:
                sent[chunk.number] = chunk
                yield chunk

        iterator = self._loader(sending(), workers)
        try:
            yield from ready  # after the fork: whoever predicts them starts threads
            while True:
                try:
                    number, packed = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    raise HandlergenError(
                        f"a process that prepares rows died: {error}",
                        hint="what is written stays; fewer --workers, or a smaller --batch-size, need less memory",
                    ) from error
                chunk = sent.pop(number)
                if isinstance(packed, Packed):
                    yield chunk, restored(chunk.rows, packed.unpack())
                    continue
                if self._tell is not None:
                    self._tell(
                        f"{packed}: rows are prepared in the predicting process; --threads does it beside"
                    )
                    self._tell = None
                yield chunk, prepare(self._pipeline, chunk.rows)
        finally:
            with contextlib.suppress(AttributeError):
                iterator._shutdown_workers()  # at once, not when the garbage collector comes to it

    def _loader(self, chunks: Iterator[Chunk], workers: int) -> Any:
        preparing = Preparing(self._pipeline, Needs.of(self._contract), self._directory)
        options: dict[str, Any] = {}
        if not self._ordered and "in_order" in inspect.signature(DataLoader).parameters:  # torch 2.6
            options["in_order"] = False
        loader = DataLoader(
            preparing,
            batch_size=None,
            sampler=cast(Any, _Once(chunks)),
            num_workers=workers,
            prefetch_factor=_AHEAD,
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
    """A sampler of chunks; DataLoader asks for one whenever a process is free."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks


def _as_it_is(value: Any) -> Any:
    return value


def _end_with_parent(parent: int) -> None:
    """Let the kernel end this process when the parent's thread that forked it ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
