"""The same pipeline in this process: no server, no Java. A breakpoint in a hook works."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import mimetypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from handlergen import __version__
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed
from handlergen.local_stream import LocalOutlet, in_chunks
from handlergen.mar import read_mar, unpack
from handlergen.project import open_project
from handlergen.runtime.contract import Bundle
from handlergen.settings import to_runtime

if TYPE_CHECKING:
    from handlergen.runtime.worker import Worker


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
        return json.loads(self.body) if self.content_type.startswith("application/json") else self.body


class LocalModel:
    """A model that is loaded in this process; made by `load`. Use it as a context manager, or call `close`."""

    def __init__(self, worker: Worker, cleanup: contextlib.ExitStack) -> None:
        self._worker = worker
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
        return in_chunks(lambda take: _succeeded(self.request(data, on_chunk=take)).body)

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
        entry, properties = _wire(data, content_type, fields)
        context = _LocalContext(f"local-{next(self._numbers)}", {**properties, **(headers or {})})
        context.outlet = LocalOutlet(on_chunk) if on_chunk else None
        (body,) = self._worker.handle([entry], context)
        failure = context.outlet.failure if context.outlet else None
        if failure is not None:
            raise RequestFailed(failure.message, status=failure.status)
        sent = dict(context.headers)
        return Answer(context.status, sent.pop("content-type", ""), body, sent)

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
        else:
            project = open_project(path, overrides=settings)
            bundle, root = Bundle(__version__, project.contract, to_runtime(project.settings)), project.root
            beside = {(root / package).resolve().parent for package in project.settings.packages}
        root = root.resolve()
        worker = _open_worker(bundle, [root, *sorted(beside - {root})], gpu, cleanup)
        return LocalModel(worker, cleanup.pop_all())


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
    from handlergen.runtime.failures import user_traceback
    from handlergen.runtime.worker import Worker

    root = roots[0]
    cleanup.enter_context(_importable(roots, bundle.contract.module))
    try:
        with _working_directory(root):
            return Worker(bundle, root, gpu_id=gpu, batch_size=1)
    except Exception as error:
        raise ModuleFailed(
            f"{bundle.contract.module} could not be loaded: {type(error).__name__}: {error}",
            traceback=user_traceback(error, user_root=str(root)),
        ) from error


@contextlib.contextmanager
def _working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _importable(roots: Sequence[Path], module: str) -> Iterator[None]:
    """Put directories first on the path; forget everything imported from them afterwards."""
    top = module.partition(".")[0]
    stale = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
    for name in stale:
        del sys.modules[name]
    sys.path[:0] = [str(root) for root in roots]
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        if (
            sys.modules is not None and sys.path is not None
        ):  # not at the interpreter's end, when both are gone
            _forget(roots, before)


def _forget(roots: Sequence[Path], before: set[str]) -> None:
    for root in roots:
        if str(root) in sys.path:
            sys.path.remove(str(root))
    for name in set(sys.modules) - before:
        file = _place_of(sys.modules[name])
        if file and any(file.is_relative_to(root) for root in roots) and "site-packages" not in str(file):
            del sys.modules[name]


def _place_of(module: ModuleType) -> Path | None:
    """A module's file; the directory of a package without `__init__.py`."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return Path(file) if file else None


def _wire(
    data: Any, content_type: str | None, fields: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request as TorchServe hands it to a worker (ts/service.py:57-100)."""
    if fields is not None:
        entry: dict[str, Any] = {}
        types: dict[str, Any] = {}
        for name, value in fields.items():
            body, kind = _part(value)
            entry[name] = bytearray(body)
            types[name] = {"content-type": kind}
        return entry, {**types, "content-type": "multipart/form-data"}
    if isinstance(data, Path):
        body, kind = _part(data)
        content_type = content_type or kind
    elif isinstance(data, bytes | bytearray):
        body = bytes(data)
        content_type = content_type or "application/octet-stream"
    else:
        content_type = content_type or "application/json"
        body = json.dumps(data).encode()
    return {"body": bytearray(body)}, {"body": {"content-type": content_type}, "content-type": content_type}


def _part(value: Any) -> tuple[bytes, str]:
    if isinstance(value, Path):
        try:
            return value.read_bytes(), mimetypes.guess_type(value.name)[0] or "application/octet-stream"
        except OSError as error:
            raise HandlergenError(f"cannot read {value}: {error.strerror}") from error
    if isinstance(value, bytes | bytearray):
        return bytes(value), "application/octet-stream"
    return (value if isinstance(value, str) else json.dumps(value)).encode(), ""


def _succeeded(answer: Answer) -> Answer:
    if answer.status >= 400:
        raise RequestFailed(_message(answer), status=answer.status, body=answer.body)
    return answer


def _message(answer: Answer) -> str:
    value = answer.value
    return str(value.get("message", value)) if isinstance(value, dict) else repr(value)


class _LocalContext:
    """The part of TorchServe's context that the runtime uses, for one request."""

    def __init__(self, request_id: str, properties: dict[str, Any]) -> None:
        self.request_ids = {0: request_id}
        self.request_processor = [self]
        self.status = 200
        self.headers: dict[str, str] = {}
        self.outlet: LocalOutlet | None = None
        self._properties = properties

    def get_request_properties(self) -> dict[str, Any]:
        return self._properties

    def set_response_content_type(self, _index: int, value: str) -> None:
        self.headers["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, _index: int) -> None:
        self.status = code

    def set_response_header(self, _index: int, name: str, value: str) -> None:
        self.headers[name] = value
