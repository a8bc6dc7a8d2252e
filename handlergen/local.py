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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlergen import __version__
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed
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
        answer = self.request(data)
        if answer.status >= 400:
            raise RequestFailed(_message(answer), status=answer.status, body=answer.body)
        return answer.value

    def request(
        self,
        data: Any = None,
        *,
        content_type: str | None = None,
        fields: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request as it would arrive over REST; errors come back as an answer, not as an exception.

        Args:
            data: As in `predict`; not together with `fields`.
            content_type: Of `data`; guessed for a file, else `application/json` or `application/octet-stream`.
            fields: A multipart form: by name a `Path` (a file), bytes, or a value that becomes text.
            headers: The request's headers.

        Raises:
            HandlergenError: A file cannot be read.
        """
        entry, properties = _wire(data, content_type, fields)
        context = _LocalContext(f"local-{next(self._numbers)}", {**properties, **(headers or {})})
        (body,) = self._worker.handle([entry], context)
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
        else:
            project = open_project(path, overrides=settings)
            bundle, root = Bundle(__version__, project.contract, to_runtime(project.settings)), project.root
        root = root.resolve()
        worker = _open_worker(bundle, root, gpu, cleanup)
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


def _open_worker(bundle: Bundle, root: Path, gpu: int | None, cleanup: contextlib.ExitStack) -> Worker:
    from handlergen.runtime.failures import user_traceback
    from handlergen.runtime.worker import Worker

    cleanup.enter_context(_importable(root, bundle.contract.module))
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
def _importable(root: Path, module: str) -> Iterator[None]:
    """Put the module's directory first on the path; forget everything imported from it afterwards."""
    stale = [name for name in sys.modules if name == module or name.startswith(f"{module}.")]
    for name in stale:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        if (
            sys.modules is not None and sys.path is not None
        ):  # not at the interpreter's end, when both are gone
            _forget(root, before)


def _forget(root: Path, before: set[str]) -> None:
    if str(root) in sys.path:
        sys.path.remove(str(root))
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(root) and "site-packages" not in file:
            del sys.modules[name]


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
        self._properties = properties

    def get_request_properties(self) -> dict[str, Any]:
        return self._properties

    def set_response_content_type(self, _index: int, value: str) -> None:
        self.headers["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, _index: int) -> None:
        self.status = code

    def set_response_header(self, _index: int, name: str, value: str) -> None:
        self.headers[name] = value
