"""The management address over REST: list, describe, scale, register, unregister, renew tokens."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from handlergen.client.connection import Connection
from handlergen.client.results import ModelStatus
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.error_body import error_text

_POLL_S = 0.2
_NO_MODEL_API = 405
_TRIES = 5
_UNFINISHED = frozenset(("NullPointerException", "ConcurrentModificationException"))
"""What TorchServe's bookkeeping raises when a worker answers just while it is being ended: BatchAggregator.sendError
walks through what it has in hand, which the worker's thread changes. It ends no further worker then."""
_TIMES_EMPTY = 3
"""In a row, before a queue is taken for drained: a worker may be busy with what was taken out of it."""


class Management:
    """Models and workers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def models(self) -> list[str]:
        """Names of the registered models, sorted."""
        names: list[str] = []
        page: str | None = ""
        while page is not None:
            params: dict[str, str] = {"limit": "100", **({"next_page_token": page} if page else {})}
            answer = self._connection.request("GET", "/models", params=params).json()
            names += [model["modelName"] for model in answer["models"]]
            page = answer.get("nextPageToken")
        return sorted(names)

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        """The default version of a model, or the one named. Raises RequestFailed (404) when there is none."""
        return self._described(name, version)[0]

    def describe_all(self, name: str) -> list[ModelStatus]:
        """Every version of a model."""
        return self._described(name, "all")

    def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout: float = 300.0,
        progress: Callable[[ModelStatus], None] | None = None,
    ) -> ModelStatus:
        """Set the number of workers and wait until exactly so many are READY.

        The server is asked without `synchronous=true`: a call of minutes would say nothing meanwhile, and
        TorchServe answers it before surplus workers are gone. `min_worker` and `max_worker` are both set,
        since TorchServe leaves the maximum where it was otherwise. It is asked again when it gives up midway.

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
                    hint="what the workers printed stands in logs/model_log.log",
                )
            time.sleep(_POLL_S)

    def register(self, url: str, **parameters: Any) -> str:
        """Register an archive of the model store by file name. Needs the model API (`enable_model_api`).

        Args:
            parameters: TorchServe's own: model_name, initial_workers, synchronous, batch_size, ...
        """
        params = {"url": url, **{key: _param(value) for key, value in parameters.items()}}
        return str(self._connection.request("POST", "/models", params=params, timeout=None).json()["status"])

    def set_default(self, name: str, version: str) -> str:
        """Let requests that name no version go to this one."""
        path = f"{_path(name, version)}/set-default"
        return str(self._connection.request("PUT", path).json()["status"])

    def unregister(self, name: str, *, version: str | None = None, drain_s: float = 0.0) -> str:
        """Unregister a model. Needs the model API. TorchServe also deletes an archive it had downloaded.

        The workers are ended before: when TorchServe gives up ending them midway, a model that is being unregistered
        is left half there, and its other workers run until the server ends.

        Args:
            drain_s: Wait so long at most until no request is in the queue: TorchServe never answers those that are.
                New ones must go to another version meanwhile (`set_default`).

        Raises:
            RequestFailed: The server refuses: no model API, no such model, or the default version of several. The model
                is as it was then.
        """
        status = self.describe(name, version=version)
        self._refuse_unregistration(status)
        path, deadline = _path(name, status.version), time.monotonic() + drain_s
        try:
            self._drain(status, deadline)
            if len(status.workers) > 1:
                self._set_workers(name, status.version, 1)
                self._drain(status, deadline)  # what the others had in hand
            self._set_workers(name, status.version, 0)
            return str(self._connection.request("DELETE", path, timeout=None).json()["status"])
        except HandlergenError:
            with contextlib.suppress(HandlergenError):
                self._ask_for(path, status.min_workers, status.max_workers)
            raise

    def renew_token(self, kind: str, api_key: str) -> None:
        """Have TorchServe write a new key for `inference` or `management` into its key file."""
        self._connection.request(
            "GET", "/token", params={"type": kind}, headers={"Authorization": f"Bearer {api_key}"}
        )

    def _refuse_unregistration(self, status: ModelStatus) -> None:
        """Raise what the server would, before anything is done to the model."""
        others = len(self.describe_all(status.name)) > 1
        stays = others and self.describe(status.name).version == status.version
        # For a version that nobody has, the server only says whether the model API is on.
        version = status.version if stays else f"{status.version}-{secrets.token_hex(8)}"
        try:
            self._connection.request("DELETE", _path(status.name, version), timeout=None)
        except RequestFailed as error:
            if stays or error.status == _NO_MODEL_API:
                raise

    def _drain(self, status: ModelStatus, deadline: float) -> None:
        empty = 0
        while empty < _TIMES_EMPTY and time.monotonic() < deadline:
            waiting = self.describe(status.name, version=status.version).queue_waiting
            empty = 0 if waiting else empty + 1
            time.sleep(_POLL_S)

    def _set_workers(self, name: str, version: str | None, workers: int) -> None:
        """Set minimum and maximum; asks again when TorchServe gives up midway."""
        path = _path(name, version)
        if not workers and len(self.describe(name, version=version).workers) > 1:
            self._ask_for(path, 1, 1)  # when none is to stay, it forgets those that it has not ended yet
        self._ask_for(path, workers, workers)

    def _ask_for(self, path: str, least: int, most: int) -> None:
        counts = {"min_worker": str(least), "max_worker": str(most)}
        for tries_left in reversed(range(_TRIES)):
            try:
                self._connection.request("PUT", path, params=counts)
                return
            except RequestFailed as error:
                if not (tries_left and _gave_up(error)):
                    raise

    def _described(self, name: str, version: str | None) -> list[ModelStatus]:
        answer = self._connection.request("GET", _path(name, version)).json()
        return [ModelStatus.from_description(item) for item in answer]


def _gave_up(error: RequestFailed) -> bool:
    """Whether TorchServe stopped in the middle of what it was asked to do, by a mistake of its own."""
    return error.status == 500 and error_text(error.body)[0] in _UNFINISHED


def _path(name: str, version: str | None) -> str:
    return f"/models/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")


def _param(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
