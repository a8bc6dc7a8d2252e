"""The same pipeline in this process: no server, no Java. A breakpoint in a hook works."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen import __version__
from handlergen.archives.mar import read_mar, unpack
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed
from handlergen.inspection.project import open_project
from handlergen.local.identity import identity_of_archive, identity_of_project
from handlergen.local.requests import RequestParts, body_of, body_request, form_request
from handlergen.local.user_place import importable, working_directory
from handlergen.project.settings import to_runtime
from handlergen.runtime.codec.content import JSON
from handlergen.runtime.codec.errors import without_server
from handlergen.runtime.contract import Bundle
from handlergen.runtime.torchserve.streaming import ConsumerGone

if TYPE_CHECKING:
    from handlergen.local.offline.rows import Result
    from handlergen.runtime.codec.errors import Failure
    from handlergen.runtime.pipeline.hooks import Item
    from handlergen.runtime.worker import Worker

_NO_EXIT = (
    "a module must not end the process: raise an error, or guard a script with if __name__ == '__main__'"
)
_THREADS = 8
"""That prepare and answer the requests of a batch side by side."""


@dataclass(frozen=True)
class Answer:
    """What a client of the served model would have got.

    Attributes:
        status: HTTP status.
        content_type: As in the header.
        body: The bytes.
        headers: Further headers that the module set.
    """

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def value(self) -> Any:
        """The decoded answer: a JSON value, or the bytes when it is no JSON."""
        return json.loads(self.body) if self.content_type.startswith(JSON) else self.body


class LocalModel:
    """A model that is loaded in this process; made by `load`. Use it as a context manager, or call `close`."""

    def __init__(
        self, worker: Worker, root: Path, identity: Callable[[], str], cleanup: contextlib.ExitStack
    ) -> None:
        self._worker = worker
        self._root = root
        self._identity = identity
        self._cleanup = cleanup
        self._numbers = itertools.count(1)

    def predict(self, data: Any) -> Any:
        """Predict for one input.

        Args:
            data: `bytes` or a `Path` to a file as a client would post it; anything else as a JSON value.

        Returns:
            The answer: a JSON value, or bytes.

        Raises:
            RequestFailed: The request failed; the message and status are those a client gets.
        """
        return _succeeded(self.request(data)).value

    def stream(self, data: Any) -> Iterator[bytes]:
        """Predict for one input; yield the parts of the answer as they are made.

        A model that does not stream yields its whole answer. The parts are made in another thread, which holds the
        device until the model has made the last one, not until it is taken. Closing the iterator ends the stream.

        Args:
            data: As in `predict`.

        Raises:
            RequestFailed: The request failed, perhaps midway.
        """
        return _streamed(lambda take: _succeeded(self.request(data, on_chunk=take)).body)

    def request(
        self,
        data: Any = None,
        *,
        content_type: str | None = None,
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        on_chunk: Callable[[bytes, str], None] | None = None,
    ) -> Answer:
        """One request as it would arrive over REST; errors come back as an answer, not as an exception.

        Args:
            data: As in `predict`; not together with `fields`.
            content_type: Of `data`; guessed for a file, else `application/json` or `application/octet-stream`.
            fields: A multipart form: by name a `Path` (a file), bytes, or a value that becomes text.
            headers: The request's headers.
            on_chunk: Called with each chunk of a streamed answer and the answer's content type, as soon as it is
                made; the body is then empty. Without it, the chunks are gathered in the body.

        Raises:
            HandlergenError: A file cannot be read.
            RequestFailed: A streamed answer failed midway.
        """
        parts = form_request(fields) if fields is not None else body_request(*body_of(data, content_type))
        outlet = LocalOutlet(on_chunk) if on_chunk else None
        (answer,) = self._answer([parts], headers or {}, outlet)
        if outlet is not None and outlet.failure is not None:
            raise RequestFailed(outlet.failure.message, status=outlet.failure.status)
        return answer

    def batch(
        self,
        inputs: Sequence[Any],
        *,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        """Several requests that arrive together, as in one batch of a server.

        They are prepared and answered side by side; what `predict` sees, the setting `batch` says.

        Args:
            inputs: Each as in `request`.
            content_type, headers: Of every one of them.

        Returns:
            An answer each, errors included, in the order of the inputs.

        Raises:
            HandlergenError: A file cannot be read.
        """
        requests = [body_request(*body_of(data, content_type)) for data in inputs]
        return self._answer(requests, headers or {}, None)

    def _answer(
        self, requests: Sequence[RequestParts], headers: Mapping[str, str], outlet: LocalOutlet | None
    ) -> list[Answer]:
        ids = [f"local-{next(self._numbers)}" for _ in requests]
        context = LocalContext(ids, [{**properties, **headers} for _, properties in requests], outlet)
        bodies = self._worker.handle([entry for entry, _ in requests], context)
        return [
            Answer(status, sent.pop("content-type", ""), body, sent)
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
        """Answer many inputs: preparation in parallel, batches predicted, postprocessing beside the next batch.

        Nothing else may use the model until the iterator has ended or is closed.

        Args:
            inputs: Each as in `predict`, or a numpy array; read as they are needed. The id of a result is the
                number of its input, from 0.
            batch_size: How many rows go to `predict` together, as the setting `batch` says.
            workers: Processes that decode and preprocess; 0 does it in this thread. By default one a core if there
                is a `preprocess`, else 0.
            threads: Threads instead of processes; for programs that must not fork.
            ordered: Keep the order of the inputs.

        Yields:
            A result for each input; an error is a result too.

        Raises:
            HandlergenError: An input cannot be sent, or a preparing process died.
        """
        from handlergen.local.offline.engine import results

        return results(
            self._worker,
            self._root,
            inputs,
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            ordered=ordered,
        )

    @property
    def worker(self) -> Worker:
        """What answers, for `handlergen.local.offline`."""
        return self._worker

    @property
    def root(self) -> Path:
        """The model's directory, where its hooks expect to run."""
        return self._root

    @property
    def identity(self) -> str:
        """Changes with the model: its code, its files, its settings."""
        return self._identity()

    def describe(self) -> dict[str, Any]:
        """Contract, settings, device and counts, as a server's `describe` shows them."""
        return self._worker.describe()

    def close(self) -> None:
        """Release the model; forget the user's module and the unpacked archive."""
        self._worker.close()
        self._cleanup.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def load(source: str | Path, *, gpu: int | None = None, **settings: Any) -> LocalModel:
    """Load a model here, from its source or its archive.

    Args:
        source: What `handlergen archive` takes, or a `.mar`.
        gpu: Index of the GPU to use; the CPU by default.
        settings: Settings that override `handlergen.yaml`; not for a `.mar`.

    Raises:
        ContractError: The source does not meet the contract.
        ModuleFailed: The module raised while it was imported or loaded; has the user's own traceback.
        HandlergenError: The archive cannot be read.
    """
    path = Path(source)
    with contextlib.ExitStack() as cleanup:
        if path.suffix == ".mar":
            if settings:
                raise HandlergenError(
                    f"settings cannot be changed in an archive: {', '.join(settings)}",
                    hint="load the source instead, or archive it again with these settings",
                )
            bundle, root = _unpack(path, cleanup)
            beside: set[Path] = set()
            identity = partial(identity_of_archive, path.resolve())
        else:
            project = open_project(path, overrides=settings)
            bundle, root = Bundle(__version__, project.contract, to_runtime(project.settings)), project.root
            identity = partial(identity_of_project, project, bundle)
            beside = {(root / package).resolve().parent for package in project.settings.packages}
        root = root.resolve()
        worker = _open_worker(bundle, [root, *sorted(beside - {root})], gpu, cleanup)
        return LocalModel(worker, root, identity, cleanup.pop_all())


def _unpack(path: Path, cleanup: contextlib.ExitStack) -> tuple[Bundle, Path]:
    bundle = read_mar(path).bundle
    if bundle is None:
        raise HandlergenError(
            f"{path} was not made by handlergen",
            hint="load its source, or archive that with `handlergen archive`",
        )
    root = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="handlergen-")))
    unpack(path, root)
    return bundle, root


def _open_worker(
    bundle: Bundle, roots: Sequence[Path], gpu: int | None, cleanup: contextlib.ExitStack
) -> Worker:
    """Import and load.

    Args:
        roots: The model's directory, then those that hold its `packages` where they have not been packed yet.
    """
    from handlergen.runtime.codec.redaction import user_traceback
    from handlergen.runtime.worker import Worker

    if gpu is not None:
        import torch

        if not 0 <= gpu < torch.cuda.device_count():
            raise HandlergenError(
                f"there is no GPU {gpu} here ({torch.cuda.device_count()} visible to torch)",
                hint="name none, and the CPU predicts",
            )
    root = roots[0]
    cleanup.enter_context(importable(roots, bundle.contract.module))
    try:
        with working_directory(root):
            return Worker(bundle, root, gpu_id=gpu, batch_size=_THREADS)
    except (Exception, SystemExit) as error:  # the latter: a script's sys.exit, which would end this process
        raise ModuleFailed(
            f"{bundle.contract.module} could not be loaded: {type(error).__name__}: {error}",
            traceback=user_traceback(error, user_root=str(root)),
            hint=_NO_EXIT if isinstance(error, SystemExit) else None,
        ) from error


def _succeeded(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise RequestFailed(error_message(answer), status=answer.status, body=answer.body)
    return answer


def error_message(answer: Answer) -> str:
    """What a failed answer says, for somebody who has no server."""
    value = answer.value
    if not isinstance(value, dict):
        return repr(value)
    return without_server(str(value.get("message", value)), str(value.get("request_id")))


class LocalOutlet:
    """Hands each chunk of a streamed answer to a function, in the thread that predicts.

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


class LocalContext:
    """One batch: the part of TorchServe's context that the runtime uses (ts/context.py).

    Args:
        request_ids: Of its requests.
        properties: Of each, as TorchServe gives them.
        outlet: Where chunks go; None keeps them for the body.

    Attributes:
        statuses, headers: Of the answers.
    """

    def __init__(
        self, request_ids: Sequence[str], properties: Sequence[dict[str, Any]], outlet: LocalOutlet | None
    ) -> None:
        self.request_ids = dict(enumerate(request_ids))
        self.request_processor = [_RequestProcessor(each) for each in properties]
        self.outlet = outlet
        self.statuses = [200] * len(properties)
        self.headers: list[dict[str, str]] = [{} for _ in properties]

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers[index]["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, index: int) -> None:
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[index][name] = value


class _RequestProcessor:
    def __init__(self, properties: dict[str, Any]) -> None:
        self._properties = properties

    def get_request_properties(self) -> dict[str, Any]:
        return self._properties


def _streamed(make: Callable[[Callable[[bytes, str], None]], bytes]) -> Iterator[bytes]:
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
