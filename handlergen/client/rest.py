"""TorchServe's REST API: bodies of predictions; models and workers on the management address."""

from __future__ import annotations

import contextlib
import json as json_module
import mimetypes
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from handlergen.client.connection import ApiConnection
from handlergen.client.results import ModelStatus
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.codec.content import JSON, OCTETS
from handlergen.runtime.codec.errors import error_text

FieldValue = str | bytes | Path
"""A multipart field: text, bytes, or a file, which is sent with its name and guessed type."""

_POLL_S = 0.2
_NO_MODEL_API = 405
_ATTEMPTS = 5
_UNFINISHED = frozenset(("NullPointerException", "ConcurrentModificationException"))
"""What TorchServe raises when a worker answers while TorchServe is stopping it: BatchAggregator.sendError iterates
over jobs that the worker's thread modifies. TorchServe then stops no further worker."""
_EMPTY_READINGS = 3
"""Consecutive readings of an empty queue before it counts as drained: a worker may still be busy with a request that
has left the queue."""


UNSET: Any = object()
"""Means that no JSON is given; None is a JSON value."""


def payload(
    *,
    json: Any = UNSET,
    content: bytes | None = None,
    file: Path | None = None,
    fields: Mapping[str, FieldValue] | None = None,
    content_type: str | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return headers and httpx options for one request body.

    Raises:
        ValueError: More than one kind of body, or none.
        OSError: A file cannot be read.
    """
    bodies = {"json": None if json is UNSET else (json,), "content": content, "file": file, "fields": fields}
    given = [name for name, body in bodies.items() if body is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of json, content, file and fields, not {', '.join(given) or 'none'}")
    if fields is not None:
        return {}, {"files": [(name, _part(value)) for name, value in fields.items()]}
    if json is not UNSET:
        body, guessed = json_module.dumps(json, ensure_ascii=False).encode(), JSON
    elif file is not None:
        body, guessed = file.read_bytes(), _content_type_of(file)
    else:
        body, guessed = content or b"", OCTETS
    return {"Content-Type": content_type or guessed}, {"content": body}


def _part(value: FieldValue) -> tuple[str | None, bytes] | tuple[str, bytes, str]:
    if isinstance(value, Path):
        return value.name, value.read_bytes(), _content_type_of(value)
    if isinstance(value, bytes):
        return None, value
    return None, value.encode("utf-8", "surrogateescape")  # as it was typed (PEP 383)


def _content_type_of(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or OCTETS


class ManagementApi:
    """Models and workers over REST: list, describe, scale, register, unregister."""

    _management: ApiConnection

    def models(self) -> list[str]:
        """Return the names of the registered models, sorted."""
        names: list[str] = []
        page: str | None = ""
        while page is not None:
            params = {"limit": 100, **({"next_page_token": page} if page else {})}
            answer = self._management.request("GET", "/models", params=params).json()
            names += [model["modelName"] for model in answer["models"]]
            page = answer.get("nextPageToken")
        return sorted(names)

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        """Return a model's workers, queue and limits: the given version, else the default one.

        Raises:
            RequestFailed: Status 404: the server has no such model.
        """
        return self._describe(name, version)[0]

    def status(self) -> list[ModelStatus]:
        """Return every version of every model."""
        return [status for name in self.models() for status in self._describe(name, "all")]

    def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout: float = 300.0,
        progress: Callable[[ModelStatus], None] | None = None,
    ) -> ModelStatus:
        """Set the number of workers and wait until exactly that many are READY.

        The request leaves out `synchronous=true`: such a call reports no progress for minutes, and TorchServe
        answers it before surplus workers have exited. It sets both `min_worker` and `max_worker`, because
        TorchServe otherwise keeps the old maximum. It is repeated when TorchServe fails midway.

        Args:
            timeout: Seconds until the workers must be READY.
            progress: Called several times a second with the model's status.

        Raises:
            RequestFailed: The server refuses (no such model).
            ServerError: The workers are not READY in time.
        """
        self._set_workers(name, version, workers)
        deadline = time.monotonic() + timeout
        while True:
            status = self.describe(name, version=version)
            if progress:
                progress(status)
            if len(status.workers) == workers and status.ready_workers == workers:
                return status
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{name}: {status.ready_workers} of {workers} workers are READY after {timeout:g} s",
                    hint="worker output: logs/model_log.log in the server's directory",
                )
            time.sleep(_POLL_S)

    def register(self, archive: str, **parameters: Any) -> str:
        """Register an archive of the model store by file name. Needs the model API (`enable_model_api`).

        Args:
            parameters: TorchServe's own: model_name, initial_workers, synchronous, batch_size, ...
        """
        params = {"url": archive, **parameters}
        return str(self._management.request("POST", "/models", params=params, timeout=None).json()["status"])

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default: requests that name no version go to it."""
        path = f"{path_of('models', name, version)}/set-default"
        return str(self._management.request("PUT", path).json()["status"])

    def unregister(self, name: str, *, version: str | None = None, drain_s: float = 0.0) -> str:
        """Unregister a model. Needs the model API. TorchServe also deletes an archive that it downloaded.

        Workers are scaled down first: when TorchServe fails midway through stopping the workers of a model that it
        is unregistering, the model stays half registered, and its other workers run until the server stops.

        Args:
            drain_s: Seconds to wait at most for the queue to empty, because TorchServe never answers requests
                left in it. New requests must go to another version meanwhile (`set_default`).

        Raises:
            RequestFailed: The server refuses: the model API is off, there is no such model, or this is the default
                version of several. The model is then as it was.
        """
        status = self.describe(name, version=version)
        self._refuse_unregistration(status)
        path, deadline = path_of("models", name, status.version), time.monotonic() + drain_s
        try:
            self._drain(status, deadline)
            if len(status.workers) > 1:
                self._set_workers(name, status.version, 1)
                self._drain(status, deadline)  # jobs of the stopped workers
            self._set_workers(name, status.version, 0)
            return str(self._management.request("DELETE", path, timeout=None).json()["status"])
        except HandlergenError:
            with contextlib.suppress(HandlergenError):
                self._put_workers(path, status.min_workers, status.max_workers)
            raise

    def renew_token(self, kind: str, api_key: str) -> None:
        """Make TorchServe write a new key for `inference` or `management` into its key file."""
        self._management.request("GET", "/token", params={"type": kind}, headers={"Authorization": f"Bearer {api_key}"})

    def _refuse_unregistration(self, status: ModelStatus) -> None:
        """Raise what the server would raise, before anything is changed."""
        several = len(self._describe(status.name, "all")) > 1
        kept = several and self.describe(status.name).version == status.version
        # A request for a version that does not exist only reveals whether the model API is on.
        version = status.version if kept else f"{status.version}-{secrets.token_hex(8)}"
        try:
            self._management.request("DELETE", path_of("models", status.name, version), timeout=None)
        except RequestFailed as error:
            if kept or error.status == _NO_MODEL_API:
                raise

    def _drain(self, status: ModelStatus, deadline: float) -> None:
        empty = 0
        while empty < _EMPTY_READINGS and time.monotonic() < deadline:
            waiting = self.describe(status.name, version=status.version).queue_waiting
            empty = 0 if waiting else empty + 1
            time.sleep(_POLL_S)

    def _set_workers(self, name: str, version: str | None, workers: int) -> None:
        path = path_of("models", name, version)
        if not workers and len(self.describe(name, version=version).workers) > 1:
            # Scaling straight to 0, TorchServe forgets the workers that it has not stopped yet.
            self._put_workers(path, 1, 1)
        self._put_workers(path, workers, workers)

    def _put_workers(self, path: str, minimum: int, maximum: int) -> None:
        """Set minimum and maximum; repeat the request when TorchServe fails midway."""
        counts = {"min_worker": minimum, "max_worker": maximum}
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._management.request("PUT", path, params=counts)
                return
            except RequestFailed as error:
                unfinished = error.status == 500 and error_text(error.body)[0] in _UNFINISHED
                if not (attempts_left and unfinished):
                    raise

    def _describe(self, name: str, version: str | None) -> list[ModelStatus]:
        answer = self._management.request("GET", path_of("models", name, version)).json()
        return [ModelStatus.from_description(item) for item in answer]


def path_of(collection: str, name: str, version: str | None) -> str:
    return f"/{collection}/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")
