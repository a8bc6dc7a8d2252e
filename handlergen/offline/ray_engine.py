"""The same job on a Ray cluster: Ray Data hands chunks to actors that hold one model a device.

```
this process ─▶ queue ─▶ read task on this node ─▶ actors, one a GPU (or a node) ─▶ this process: output, journal
```

The actors get the archive's bytes, load it as `handlergen.load` does and run the same pipeline; every node needs
handlergen and what the model imports, and nothing else. Rows are read here, and files' bytes on this node.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen.errors import HandlergenError
from handlergen.offline.engine import Engine
from handlergen.offline.rows import Chunk, Lines, Row

if TYPE_CHECKING:
    from handlergen.local import LocalModel
    from handlergen.offline.journal import PendingOutputs

_CALLS_AT_ONCE = 2
"""In each actor: one chunk's preprocess and postprocess run beside another's predict."""

_AHEAD = 4
"""Chunks that wait in the queue, for each actor."""

_END = b""


@contextlib.contextmanager
def open_ray_engine(source: Path, *, actors: int | None) -> Iterator[Engine]:
    """Pack the model if it is not, and connect to the cluster.

    The cluster is the one that this process is connected to, that RAY_ADDRESS names or that runs on this machine; if
    there is none, one is started here for the run.

    Args:
        source: What `handlergen archive` takes, or a .mar.
        actors: How many copies of the model; by default one a GPU of the cluster, or one a node without GPUs.

    Raises:
        HandlergenError: Ray is not installed, or the source cannot be packed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise HandlergenError(
            "--engine ray needs Ray, which is not installed", hint="pip install 'handlergen[ray]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="handlergen-") as directory:
        if source.suffix != ".mar":
            from handlergen.archiving import archive

            source = archive(source, model_store=Path(directory)).path
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ours = not ray.is_initialized()
        if ours:
            ray.init(log_to_driver=True, logging_level=logging.ERROR)
        try:
            yield RayEngine(source, actors)
        finally:
            if ours:
                ray.shutdown()


class RayEngine:
    """Answers on the cluster that this process is connected to.

    Args:
        archive: The .mar.
        actors: As for `open_ray_engine`.
    """

    def __init__(self, archive: Path, actors: int | None) -> None:
        import ray

        from handlergen.identity import identity_of_archive

        self.identity = identity_of_archive(archive)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._gpus = int(resources.get("GPU", 0))
        nodes = len([node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
        self._actors = actors or self._gpus or nodes
        self._archive = ray.put(archive.read_bytes())

    def run(
        self,
        chunks: Iterable[Chunk],
        write: Callable[[Lines], None],
        *,
        ordered: bool,
        pending: PendingOutputs | None,
    ) -> Generator[None, None, None]:
        from ray.util.queue import Queue

        waiting = Queue(maxsize=self._actors * _AHEAD, actor_options={"num_cpus": 0})
        sent: dict[int, Chunk] = {}
        feeder = _Feeder(chunks, waiting, sent)
        feeder.start()
        try:
            for batch in self._answers(waiting, ordered):
                for number, text, failed in zip(batch["number"], batch["text"], batch["failed"], strict=True):
                    write(Lines(sent.pop(int(number)), bytes(text), int(failed)))
                    yield
            feeder.check()
        finally:
            feeder.stop()
            waiting.shutdown(force=True)

    def _answers(self, waiting: Any, ordered: bool) -> Iterator[dict[str, Any]]:
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = ordered
        # A block a chunk: by default blocks are filled up, and a slow input would wait for that.
        context.target_max_block_size = 1
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        rows = ray.data.read_datasource(
            _source(waiting),
            override_num_blocks=1,
            num_cpus=0,
            label_selector=here,
        )
        answers = rows.map_batches(
            _ModelActor,
            fn_constructor_args=(self._archive,),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(
                size=self._actors,
                max_concurrent_calls_per_actor=_CALLS_AT_ONCE,
                max_tasks_in_flight_per_actor=_CALLS_AT_ONCE + 1,
                enable_true_multi_threading=True,
            ),
            num_gpus=1 if self._gpus else None,
            num_cpus=None if self._gpus else 1,
            scheduling_strategy="SPREAD",
        )
        return iter(answers.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))


class _Feeder(threading.Thread):
    """Puts chunks into the queue as they are read, and remembers them until their answers are written."""

    def __init__(self, chunks: Iterable[Chunk], waiting: Any, sent: dict[int, Chunk]) -> None:
        super().__init__(name="handlergen-feed", daemon=True)
        self._chunks = chunks
        self._waiting = waiting
        self._sent = sent
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            for chunk in self._chunks:
                self._sent[chunk.number] = chunk
                self._put(pickle.dumps(chunk))
                if self._stopped:
                    return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, value: bytes) -> None:
        from ray.exceptions import RayError
        from ray.util.queue import Full

        while not self._stopped:
            try:
                self._waiting.put(value, timeout=1)
            except Full:
                continue
            except RayError:
                return
            else:
                return

    def stop(self) -> None:
        """Read no further."""
        self._stopped = True

    def check(self) -> None:
        """Raise what reading the input raised."""
        if self._error is not None:
            raise self._error


def _source(waiting: Any) -> Any:
    """Ray Data's view of the queue: one task that reads it to its end."""
    import pyarrow
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[Any]:
        while (text := waiting.get()) != _END:
            number, rows = pickle.loads(text)  # noqa: S301 - from this run's own queue
            chunk = Chunk(number, [_with_content(row) for row in rows])
            yield pyarrow.table({"chunk": [pickle.dumps(chunk)]})

    class Queued(Datasource):
        def get_read_tasks(self, parallelism: int, *_more: Any, **_named: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(None, None, None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Queued()  # type: ignore[no-untyped-call]


def _with_content(row: Row) -> Row:
    """A file's bytes in place of its path, which means nothing on another node; an unreadable one fails there."""
    if isinstance(row.body, Path):
        with contextlib.suppress(OSError):
            return row._replace(body=row.body.read_bytes())
    return row


class _ModelActor:
    """An actor of the pool: the loaded model.

    Args:
        archive: Ray's reference to the .mar's bytes.
    """

    def __init__(self, archive: Any) -> None:
        import os

        import ray

        from handlergen.local import load

        with tempfile.TemporaryDirectory(prefix="handlergen-") as directory:
            path = Path(directory) / "model.mar"
            path.write_bytes(ray.get(archive))
            # Ray shows an actor its own GPUs only, so the first is the one it was given.
            self._model: LocalModel = load(path, gpu=0 if ray.get_gpu_ids() else None)
        os.chdir(self._model.root)
        self._model.worker.wait_for_ever()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from handlergen.offline.preparation import prepare

        number, rows = pickle.loads(batch["chunk"][0])  # noqa: S301 - from this run's own queue
        pipeline = self._model.worker.pipeline
        items = prepare(pipeline, rows)
        pipeline.predict(items)
        pipeline.postprocess(items)
        lines = Lines.of(Chunk(number, rows), items)
        return {"number": [number], "text": [lines.text], "failed": [lines.failed]}
