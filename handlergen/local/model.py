"""Predictions in this process, by the same pipeline as in a server. Breakpoints in hooks work."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import json
import queue
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen.archives.audit import audit
from handlergen.archives.mar import read_mar, unpack
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed
from handlergen.inspection.project import Project, open_project
from handlergen.local.requests import (
    LocalContext,
    LocalOutlet,
    RequestParts,
    body_of,
    body_request,
    form_request,
)
from handlergen.local.surroundings import Surroundings
from handlergen.runtime.codec.content import JSON
from handlergen.runtime.codec.errors import without_server
from handlergen.runtime.contract import Bundle
from handlergen.runtime.examples import Example
from handlergen.runtime.torchserve.streaming import Collected, ConsumerGone

if TYPE_CHECKING:
    from handlergen.local.offline.rows import Result
    from handlergen.runtime.worker import Worker

_NO_EXIT = "a module must not end the process: raise an error, or guard a script with if __name__ == '__main__'"
_MOST_HASHED = 1 << 20  # larger files, in bytes, are identified by size and modification time instead of content
_THREADS = 8  # threads that preprocess and postprocess the requests of a batch


@dataclass(frozen=True)
class LocalAnswer:
    """The HTTP response that a client of the served model would get."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers that the module set."""

    @property
    def value(self) -> Any:
        """The decoded body: a JSON value, or the bytes if it is not JSON."""
        return json.loads(self.body) if self.content_type.startswith(JSON) else self.body


class LocalModel:
    """A model that is loaded in this process; made by `load`. Use it as a context manager, or call `close`.

    Attributes:
        worker: Runs the pipeline.
        root: The model's directory.
        surroundings: To be entered around everything that runs hooks by `worker`.
        warnings: Of an archive whose runtime is not the installed one, or of a source whose archive would lack files.
    """

    def __init__(
        self,
        worker: Worker,
        root: Path,
        surroundings: Surroundings,
        identity: Callable[[], str],
        cleanup: contextlib.ExitStack,
        *,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.worker = worker
        self.root = root
        self.surroundings = surroundings
        self.warnings = warnings
        self._identity = identity
        self._cleanup = cleanup
        self._closed = False
        self._numbers = itertools.count(1)

    def predict(self, data: Any) -> Any:
        """Predict for one input.

        Args:
            data: `bytes` or a `Path` to a file, as a client would post it; anything else is sent as JSON.

        Returns:
            The answer: a JSON value, or bytes.

        Raises:
            RequestFailed: The request failed; has the message and status that a client would get.
        """
        return _succeeded(self.request(data)).value

    def stream(self, data: Any) -> Iterator[bytes]:
        """Predict for one input; yield the chunks of the answer as the model produces them.

        A model that does not stream yields its whole answer. Another thread produces the chunks and holds the device
        until the last one is produced, however slow the consumer is. Closing the iterator ends the stream.

        Args:
            data: As in `predict`.

        Raises:
            RequestFailed: The request failed, perhaps after some chunks.
        """
        chunks: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        closed = threading.Event()

        def put(body: bytes, _content_type: str) -> None:
            if closed.is_set():
                raise ConsumerGone
            chunks.put(("chunk", body))

        def run() -> None:
            try:
                chunks.put(("end", _succeeded(self.request(data, on_chunk=put)).body))
            except BaseException as error:
                chunks.put(("error", error))

        here = contextvars.copy_context()  # a hook of another model may be the consumer
        thread = threading.Thread(target=here.run, args=(run,), name="handlergen-stream", daemon=True)
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
            closed.set()
            thread.join()

    def request(
        self,
        data: Any = None,
        *,
        content_type: str | None = None,
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        on_chunk: Callable[[bytes, str], None] | None = None,
    ) -> LocalAnswer:
        """Answer one request as it would arrive over REST. Errors are returned as an answer, not raised.

        Args:
            data: As in `predict`; not together with `fields`.
            content_type: Of `data`; guessed for a file, else `application/json` or `application/octet-stream`.
            fields: A multipart form: name -> a `Path` (a file), bytes, text, or a JSON value.
            headers: The request's headers.
            on_chunk: Called with each chunk of a streamed answer and the content type; the body is then empty. Without
                it, the body has all chunks.

        Raises:
            HandlergenError: A file cannot be read.
            RequestFailed: A streamed answer failed after its first chunk.
        """
        parts = form_request(fields) if fields is not None else body_request(*body_of(data, content_type))
        outlet = LocalOutlet(on_chunk) if on_chunk else None
        (answer,) = self._answer([parts], headers or {}, outlet)
        if outlet is not None and outlet.failure is not None:
            raise RequestFailed(outlet.failure.message, status=outlet.failure.status)
        return answer

    def ask(self, example: Example) -> LocalAnswer:
        """Answer the request of an example; see `ask`."""
        with self.surroundings.entered():
            return ask(self.worker, example)

    def batch(
        self,
        inputs: Sequence[Any],
        *,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[LocalAnswer]:
        """Answer several requests as one batch of a server.

        Preprocess and postprocess run in threads; the setting `batch` decides what `predict` gets.

        Args:
            inputs: Each as in `request`.
            content_type, headers: For all of them.

        Returns:
            One answer per input, in their order; errors are answers too.

        Raises:
            HandlergenError: A file cannot be read.
        """
        requests = [body_request(*body_of(data, content_type)) for data in inputs]
        return self._answer(requests, headers or {})

    def _answer(
        self, requests: Sequence[RequestParts], headers: Mapping[str, str], outlet: LocalOutlet | None = None
    ) -> list[LocalAnswer]:
        ids = [f"local-{next(self._numbers)}" for _ in requests]
        context = LocalContext(ids, [{**properties, **headers} for _, properties in requests], outlet)
        with self.surroundings.entered():
            bodies = self.worker.handle([entry for entry, _ in requests], context)
        return [
            LocalAnswer(status, sent.pop("content-type", ""), body, sent)
            for status, sent, body in zip(context.statuses, context.headers, bodies, strict=True)
        ]

    def map(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        threads: bool = False,
        ordered: bool = True,
    ) -> Iterator[Result]:
        """Answer many inputs: preprocess in parallel, predict in batches, postprocess during the next batch.

        Nothing else may use the model until the iterator has ended or is closed.

        Args:
            inputs: Each as in `predict`, or a numpy array; read as they are needed. The id of a result is the
                number of its input, from 0.
            batch_size: Number of rows per batch; the setting `batch` decides what `predict` gets.
            workers: Processes that decode and preprocess; 0: this thread does. By default one per core if there is a
                `preprocess` that is worth it, else 0.
            threads: Use threads instead of processes; also done where the module has threads of its own running.
            ordered: Keep the order of the inputs.

        Yields:
            A result per input; errors are results too.

        Raises:
            HandlergenError: An input cannot be sent, or a preparing process died.
        """
        from handlergen.local.offline.engine import LocalEngine

        engine = LocalEngine(self, workers=workers, threads=threads)
        return engine.results(inputs, batch_size=batch_size, ordered=ordered)

    @property
    def identity(self) -> str:
        """A text that changes with the model's code, files and settings."""
        return self._identity()

    def describe(self) -> dict[str, Any]:
        """Return contract, settings, device and counts, like a server's `describe`."""
        with self.surroundings.entered():
            return self.worker.describe()

    def close(self) -> None:
        """Release the model and the unpacked archive."""
        if self._closed:
            return
        self._closed = True
        with self.surroundings.entered():
            self.worker.close()
        self._cleanup.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def ask(worker: Worker, example: Example) -> LocalAnswer:
    """Answer the request of an example, a stream as its chunks joined. Errors are returned as an answer, not raised."""
    content, headers = example.request()
    outlet = Collected()
    context = LocalContext([example.name], [headers], outlet)
    (body,) = worker.handle([content], context)
    if outlet.failure is not None:
        return LocalAnswer(outlet.failure.status, JSON, outlet.failure.body(example.name))
    sent = context.headers[0]
    kind = sent.pop("content-type", "")
    return LocalAnswer(context.statuses[0], outlet.content_type or kind, outlet.body + body, sent)


def load(source: str | Path, *, gpu: int | None = None, any_runtime: bool = False, **settings: Any) -> LocalModel:
    """Load a model in this process, from its source or its archive.

    Args:
        source: A source as for `handlergen archive`, or a `.mar`.
        gpu: Index of the GPU to use; the CPU by default.
        any_runtime: Run an archive whose runtime was changed, or is unknown, with the installed runtime.
        settings: Override those of `handlergen.yaml`; not for a `.mar`.

    Raises:
        ContractError: The source does not meet the contract.
        ModuleFailed: The module raised while it was imported or loaded; has the traceback of the user's code.
        HandlergenError: The archive cannot be read, or a server would not run what handlergen packs.
    """
    path = Path(source)
    warnings: tuple[str, ...] = ()
    with contextlib.ExitStack() as cleanup:
        if path.suffix == ".mar":
            if settings:
                raise HandlergenError(
                    f"settings cannot be changed in an archive: {', '.join(settings)}",
                    hint="load the source instead, or archive it again with these settings",
                )
            bundle, warnings = open_archive(path, any_runtime=any_runtime)
            beside = set[Path]()
            root = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="handlergen-")))
            unpack(path, root)
            identity = partial(identity_of_archive, path.resolve())
        else:
            from handlergen.archives.staging import make_bundle

            project = open_project(path, overrides=settings)
            bundle, root, warnings = make_bundle(project), project.root, project.missing
            identity = partial(_identity_of_project, project, bundle)
            beside = directories_beside(project)
        root = root.resolve()
        surroundings = Surroundings(bundle.contract.module, [root, *sorted(beside - {root})])
        worker = open_worker(bundle, root, surroundings, gpu)
        return LocalModel(worker, root, surroundings, identity, cleanup.pop_all(), warnings=warnings)


def open_archive(path: Path, *, any_runtime: bool = False) -> tuple[Bundle, tuple[str, ...]]:
    """Return the contract of an archive whose model the installed runtime may run, and warnings.

    A server runs the archive's own runtime. That of another release is a warning. One that was changed, or that is
    unknown here, is an error, and a warning with `any_runtime`.

    Raises:
        HandlergenError: The archive cannot be read, is not handlergen's, or is not as handlergen packs it.
    """
    archive = read_mar(path, whole=False)  # `unpack` reads the rest, and finds what is damaged
    if archive.bundle is None:
        raise HandlergenError(
            f"{path} was not made by handlergen",
            hint="load its source, or create an archive from it with `handlergen archive`",
        )
    audited = audit(archive)
    refusal = audited.refusal(
        path,
        hint="a server would run these files, this process runs the installed ones, and the answers may differ: "
        "archive the model again, or add --any-runtime (in Python: any_runtime=True)",
    )
    if refusal is not None and not any_runtime:
        raise refusal
    warnings = [refusal.message] if refusal is not None else []
    if audited.outdated is not None:
        warnings.append(f"{path}: {audited.outdated}, which runs here")
    return archive.bundle, tuple(warnings)


def directories_beside(project: Project) -> set[Path]:
    """Return the directories, besides the project's own, in which an archive's modules lie here."""
    return {
        project.base.resolve(),
        *((project.root / package).resolve().parent for package in project.settings.packages),
    }


def open_worker(bundle: Bundle, root: Path, surroundings: Surroundings, gpu: int | None) -> Worker:
    """Import and load the module."""
    from handlergen.runtime.codec.redaction import user_traceback
    from handlergen.runtime.pipeline.request_context import apart
    from handlergen.runtime.worker import Worker

    if gpu is not None:
        import torch

        if not 0 <= gpu < torch.cuda.device_count():
            raise HandlergenError(
                f"there is no GPU {gpu} on this machine ({torch.cuda.device_count()} visible to torch)",
                hint="name another GPU, or none to use the CPU",
            )
    try:
        with surroundings.entered():
            return apart(partial(Worker, bundle, root, gpu_id=gpu, batch_size=_THREADS))
    except (Exception, SystemExit) as error:  # a script's sys.exit would end this process
        raise ModuleFailed(
            f"{bundle.contract.module} could not be loaded: {type(error).__name__}: {error}",
            traceback=user_traceback(error, user_root=str(root)),
            hint=_NO_EXIT if isinstance(error, SystemExit) else None,
        ) from error


def _succeeded(answer: LocalAnswer) -> LocalAnswer:
    if answer.status >= 400:
        raise RequestFailed(error_message(answer), status=answer.status, body=answer.body)
    return answer


def error_message(answer: LocalAnswer) -> str:
    """Return the message of a failed answer, without advice that only concerns servers."""
    value = answer.value
    if not isinstance(value, dict):
        return repr(value)
    return without_server(str(value.get("message", value)), str(value.get("request_id")))


def identity_of_archive(path: Path) -> str:
    """Return a text that changes with the names, sizes and checksums of the files in a .mar."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(
            (info.filename, info.file_size, info.CRC) for info in archive.infolist() if _is_of_model(info.filename)
        )
    return f"mar-{zlib.crc32(repr(entries).encode()):08x}"


def _identity_of_project(project: Project, bundle: Bundle) -> str:
    """Return a text that changes with the files that an archive of the project would have, and with its settings."""
    from handlergen.archives.staging import make_plan

    value = zlib.crc32(bundle.to_json().encode())
    for staged in make_plan(project).files:
        if not _is_of_model(str(staged.archive_path)):
            continue
        value = zlib.crc32(str(staged.archive_path).encode(), value)
        if isinstance(staged.origin, Path):
            status = staged.origin.stat()
            large = status.st_size > _MOST_HASHED
            content = f"{status.st_size} {status.st_mtime_ns}".encode() if large else staged.origin.read_bytes()
            value = zlib.crc32(content, value)
    return f"source-{value:08x}"


def _is_of_model(name: str) -> bool:
    """Return whether a file is part of the model: handlergen's runtime may be upgraded between two runs."""
    return not name.startswith(("handlergen_runtime/", "MAR-INF/"))
