"""Map on a Ray cluster: chunks go to actors, each of which has one copy of the model on one device.

The actors get the archive's bytes, load it like `handlergen.load` and run the same pipeline. Every node needs
handlergen and the packages that the model imports. Rows, and the files they name, are read on this machine.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen.errors import HandlergenError
from handlergen.local.offline.engine import Engine
from handlergen.local.offline.preparation import prepare
from handlergen.local.offline.rows import Chunk, Lines, Row

if TYPE_CHECKING:
    from handlergen.local.model import LocalModel
    from handlergen.local.offline.journal import PendingOutputs

_CALLS_AT_ONCE = 2  # per actor: one chunk's preprocess and postprocess run during another's predict
_CALLS_AHEAD = 2  # calls that wait per actor, so that it never waits for its next chunk


@contextlib.contextmanager
def open_ray_engine(source: Path, *, actors: int | None, any_runtime: bool = False) -> Iterator[Engine]:
    """Archive the model if necessary, and connect to the cluster.

    The cluster is the one that this process is connected to, that RAY_ADDRESS names or that runs on this machine; if
    there is none, one is started on this machine for the run.

    Args:
        actors: Number of copies of the model; by default one per GPU of the cluster, or one per node without GPUs.
        any_runtime: See `handlergen.load`.

    Raises:
        HandlergenError: Ray is not installed, or the source cannot be archived.
    """
    try:
        import ray
    except ImportError as error:
        raise HandlergenError(
            "--engine ray needs Ray, which is not installed", hint="pip install 'handlergen[ray]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="handlergen-") as directory:
        if source.suffix != ".mar":
            from handlergen.archives.build import archive

            source = archive(source, model_store=Path(directory)).path
        ours = not ray.is_initialized()
        if ours:
            ray.init(log_to_driver=True, logging_level=logging.ERROR)
        try:
            yield RayEngine(source, actors, any_runtime)
        finally:
            if ours:
                ray.shutdown()


class RayEngine:
    """Answers on the cluster that this process is connected to; `actors` and `any_runtime` as for `open_ray_engine`."""

    def __init__(self, archive: Path, actors: int | None, any_runtime: bool) -> None:
        import ray

        from handlergen.local.model import identity_of_archive

        self.identity = identity_of_archive(archive)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0))
        nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
        self._actors = actors or gpus or nodes
        self._archive = ray.put(archive.read_bytes())
        self._any_runtime = any_runtime
        # Ray restarts a lost actor, on another node if necessary, and repeats its unanswered calls.
        self._actor_class = ray.remote(_ModelActor).options(
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else 1,
            max_concurrency=_CALLS_AT_ONCE,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        import ray

        actors: list[Any] = [self._actor_class.remote(self._archive, self._any_runtime) for _ in range(self._actors)]
        feeder = _ChunkFeeder(chunks, actors, ordered=ordered)
        feeder.start()
        try:
            for chunk, future in feeder.answered():
                text, failed = future.result()
                write(Lines(chunk, text, failed))
                yield
        finally:
            feeder.stop()
            for actor in actors:
                ray.kill(actor)


class _ChunkFeeder(threading.Thread):
    """Reads chunks and gives each to the actor with the fewest calls.

    A thread of its own, so that an input that waits (`tail -f`) does not delay answers.
    """

    def __init__(self, chunks: Iterable[Chunk], actors: list[Any], *, ordered: bool) -> None:
        super().__init__(name="handlergen-feed", daemon=True)
        self._chunks = chunks
        self._ordered = ordered
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(_CALLS_AT_ONCE + _CALLS_AHEAD):
            for actor in actors:
                self._idle.put(actor)
        # As many chunks as are in progress may also wait to be written.
        self._unwritten = threading.Semaphore(2 * self._idle.qsize())
        self._made: queue.SimpleQueue[tuple[Chunk, Future[Any]] | int] = queue.SimpleQueue()
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> None:
        count = 0
        try:
            for chunk in self._chunks:
                self._unwritten.acquire()
                actor = self._idle.get()
                if self._stopped:
                    return
                self._call(actor, chunk)
                count += 1
        except BaseException as error:
            self._error = error
        self._made.put(count)

    def _call(self, actor: Any, chunk: Chunk) -> None:
        rows = [_with_content(row) for row in chunk.rows]
        future: Future[Any] = actor.answer.remote(chunk.number, rows).future()
        if self._ordered:
            self._made.put((chunk, future))

        def done(_future: Future[Any]) -> None:
            self._idle.put(actor)
            if not self._ordered:
                self._made.put((chunk, future))

        future.add_done_callback(done)

    def answered(self) -> Iterator[tuple[Chunk, Future[Any]]]:
        """Yield each chunk with the future of its answer; at the end, raise what reading the input raised."""
        count, total = 0, -1
        while count != total:
            made = self._made.get()
            if isinstance(made, int):
                total = made
                continue
            yield made
            count += 1
            self._unwritten.release()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopped = True
        self._unwritten.release()
        self._idle.put(None)


def _with_content(row: Row) -> Row:
    """Replace a file's path, unknown to other nodes, by its bytes. An unreadable file fails in the actor."""
    if isinstance(row.body, Path):
        with contextlib.suppress(OSError):
            return row._replace(body=row.body.read_bytes())
    return row


class _ModelActor:
    """The loaded model on one node; `archive` is the .mar's bytes."""

    def __init__(self, archive: bytes, any_runtime: bool) -> None:
        import ray

        from handlergen.local.model import load

        with tempfile.TemporaryDirectory(prefix="handlergen-") as directory:
            path = Path(directory) / "model.mar"
            path.write_bytes(archive)
            # Ray shows an actor its own GPUs only, so the first is its GPU.
            self._model: LocalModel = load(path, gpu=0 if ray.get_gpu_ids() else None, any_runtime=any_runtime)
        self._model.worker.disable_lock_timeout()

    def answer(self, number: int, rows: list[Row]) -> tuple[bytes, int]:
        """Return the lines of a chunk, and how many of its rows failed."""
        pipeline = self._model.worker.pipeline
        with self._model.surroundings.entered():
            items = prepare(pipeline, rows)
            pipeline.predict(items)
            pipeline.postprocess(items)
        lines = Lines.of(Chunk(number, rows), items)
        return lines.text, lines.failed
