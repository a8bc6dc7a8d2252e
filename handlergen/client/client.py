"""`Client`: predictions and management of one TorchServe, over REST and gRPC."""

from __future__ import annotations

import contextlib
import json as json_module
import math
import mimetypes
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx

from handlergen.client.connection import KEY_FILE, ApiConnection, Token, Tokens
from handlergen.client.fence import Notice, patient_command
from handlergen.client.results import Answer, ModelStatus
from handlergen.client.tls import Verification
from handlergen.client.workers import ModelWorkers
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.codec.content import JSON, OCTETS
from handlergen.runtime.codec.errors import error_of
from handlergen.server.properties import ServerSettings, read_properties

if TYPE_CHECKING:
    from handlergen.client.grpc import GrpcInference, GrpcManagement, GrpcService

_Service = TypeVar("_Service", bound="GrpcService")

FieldValue = str | bytes | Path
"""A multipart field: text, bytes, or a file, which is sent with its name and guessed type."""

_POLL_S = 0.2
_NO_MODEL_API = 405
UNSET: Any = object()
"""Means that no JSON is given; None is a JSON value."""

_DEFAULT_TIMEOUT_S = 300.0
_LONGEST_CONNECT_S = 10.0


class Client:
    """Predictions and management of one TorchServe. Threads may share a client; use it in a `with` statement.

    Args:
        settings: The server's settings: its addresses, whether it requires tokens, the name in its certificate.
        directory: The directory that the server was started in: its key file, and relative paths of the settings.
        key_file: TorchServe's key_file.json, read whenever a token is needed; ignored when the settings turn
            token authorization off. None: the one in `directory`.
        ca: PEM file with the certificates of the authorities that may have signed the server's certificate. None:
            the settings' `ca_file`, else what SSL_CERT_FILE names, else the system's authorities.
        timeout: Seconds to wait for one response.

    Raises:
        HandlergenError: The server uses TLS, and the authorities' certificates cannot be read.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        directory: Path = Path(),
        key_file: Path | None = None,
        ca: Path | None = None,
        timeout: float = _DEFAULT_TIMEOUT_S,
    ) -> None:
        self.settings = settings
        own_ca = directory / settings.ca_file if settings.ca_file else None
        self.verification = Verification(ca or own_ca, settings.tls_name)
        self._connections = contextlib.ExitStack()
        self._http = httpx.Client(
            # Without https, a context that trusts nobody; httpx would load its own authorities.
            verify=self.verification.context() if settings.https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            timeout=httpx.Timeout(timeout, connect=min(timeout, _LONGEST_CONNECT_S)),
            # The server is on this machine or named explicitly: a proxy from the environment would break the
            # connection.
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._connections.callback(self._http.close)
        self._timeout = timeout
        self._key_file = key_file or directory / KEY_FILE if settings.token_authorization else None
        self._tokens = Tokens(self._key_file, self.renew_token)
        name = settings.tls_name
        self._inference = ApiConnection(self._http, settings.inference_address, "inference", self._tokens, name)
        self._management = ApiConnection(self._http, settings.management_address, "management", self._tokens, name)

    @classmethod
    def from_config(
        cls,
        config: Path | str = "config.properties",
        *,
        key_file: Path | None = None,
        ca: Path | None = None,
        timeout: float = _DEFAULT_TIMEOUT_S,
    ) -> Client:
        """Return a client for the server on this config.properties; the key file is expected beside it.

        Raises:
            HandlergenError: The file is missing or invalid.
        """
        path = Path(config)
        return cls(read_properties(path), directory=path.parent, key_file=key_file, ca=ca, timeout=timeout)

    def predict(
        self,
        name: str,
        json: Any = UNSET,
        *,
        content: bytes | None = None,
        file: Path | None = None,
        fields: Mapping[str, FieldValue] | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> Answer:
        """Request one prediction over REST, with exactly one kind of body.

        Args:
            json: Any JSON value.
            content: Raw bytes (`application/octet-stream` unless `content_type` is given).
            file: A file's bytes, with the content type guessed from its name.
            fields: A multipart form: text, bytes, or Path for a file.

        Raises:
            RequestFailed: The response is an error; `.status` and `.body` hold it.
            ServerError: No server is listening (NoServer), its certificate is refused (TlsError), or no answer in time.
        """
        own, options = payload(json=json, content=content, file=file, fields=fields, content_type=content_type)
        response = self._inference.request(
            "POST", _path("predictions", name, version), headers={**own, **(headers or {})}, **options
        )
        return Answer(response.status_code, response.content, {k.lower(): v for k, v in response.headers.items()})

    def stream(
        self,
        name: str,
        json: Any = UNSET,
        *,
        headers: Mapping[str, str] | None = None,
        version: str | None = None,
        **body: Any,
    ) -> Iterator[bytes]:
        """Like `predict`; yield the answer in chunks as they arrive."""
        own, options = payload(json=json, **body)
        with self._inference.stream(
            "POST", _path("predictions", name, version), headers={**own, **(headers or {})}, **options
        ) as response:
            yield from response.iter_raw()

    def ping(self) -> str:
        """Return the server's health as it reports it ("Healthy", also while models are still loading)."""
        return str(self._inference.request("GET", "/ping").json()["status"])

    def predict_grpc(
        self, name: str, json: Any = UNSET, *, inputs: Mapping[str, bytes] | None = None, version: str | None = None
    ) -> Answer:
        """Request one prediction over gRPC.

        Args:
            json: A JSON value, sent as the entry `data`.
            inputs: The entries themselves, in place of `json`.

        Raises:
            RequestFailed: The call failed; `.status` is the HTTP status for the gRPC code. Or the response is an
                error body, as TorchServe returns for one failed request of a batch (`results.error_of`).
            ServerError: As for `predict`.
        """
        body = self.grpc.predict(name, _grpc_inputs(json, inputs), version=version, timeout=self._timeout)
        error = error_of(body)
        if error is not None:
            raise RequestFailed(f"{error['code']}: {error['message']}", status=error["code"], body=body)
        return Answer(200, body)

    def stream_grpc(
        self, name: str, json: Any = UNSET, *, inputs: Mapping[str, bytes] | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """Like `predict_grpc`, through StreamPredictions; yield the parts of the answer as they arrive.

        A model that does not stream answers in one part. Use this only for models that handlergen packed, or
        that stream: with any other, TorchServe 0.12 loses the worker (a NullPointerException in the frontend).
        """
        return self.grpc.predict_stream(name, _grpc_inputs(json, inputs), version=version, timeout=self._timeout)

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
        found = self._describe(name, version)[0]
        return found if version else replace(found, default=True)

    def versions(self, name: str) -> list[ModelStatus]:
        """Return every version of a model, the default one first. Raises RequestFailed (404) for an unknown one."""
        found = self._describe(name, "all")
        default = self.describe(name).version if len(found) > 1 else found[0].version
        marked = [replace(each, default=each.version == default) for each in found]
        return sorted(marked, key=lambda each: (not each.default, each.version))

    def status(self) -> list[ModelStatus]:
        """Return every version of every model, sorted by name, the default version first."""
        return [version for name in self.models() for version in self.versions(name)]

    def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout: float = 300.0,
        progress: Callable[[ModelStatus], None] | None = None,
        now: bool = False,
        notice: Notice | None = None,
    ) -> ModelStatus:
        """Set the number of workers and wait until exactly that many are READY.

        Surplus workers answer what they have in hand before they end (see `client.fence`).

        The request leaves out `synchronous=true`: such a call reports no progress for minutes, and TorchServe
        answers it before surplus workers have exited. It sets both `min_worker` and `max_worker`, because
        TorchServe otherwise keeps the old maximum. It is repeated when TorchServe fails midway.

        Args:
            timeout: Seconds until the workers must be READY.
            progress: Called several times a second with the model's status.
            now: End surplus workers at once, with the requests that they have in hand.
            notice: Called with a sentence when a surplus worker is still busy after 5 seconds, and when the workers
                cannot be told to answer first: another handler's, or an older archive's.

        Raises:
            RequestFailed: The server refuses (no such model).
            ServerError: The workers are not READY in time. Or a surplus worker is still busy at the timeout; none is
                ended then.
        """
        deadline = time.monotonic() + timeout
        self._workers(name, version).set(workers, None if now else deadline, notice)
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

    def command(self, name: str, *, version: str | None = None, wait_s: float, **commands: Any) -> dict[str, Any]:
        """Send a command to a model's workers; return the answer of the worker that got it: see `client.fence`.

        Args:
            wait_s: Seconds to wait for a place in the model's queue and for the answer.

        Raises:
            UnknownCommand: The worker does not know commands.
            RequestFailed: TorchServe refuses it: there is no such model, or its queue stays full (503).
            ServerError: No server is listening, or no worker answers in time.
        """
        return patient_command(self._workers(name, version).describe, time.monotonic() + wait_s, **commands)

    def register(self, archive: str, **parameters: Any) -> str:
        """Register an archive of the model store by file name. Needs the model API (`enable_model_api`).

        Args:
            parameters: TorchServe's own: model_name, initial_workers, synchronous, batch_size, ...
        """
        params = {"url": archive, **parameters}
        return str(self._management.request("POST", "/models", params=params, timeout=None).json()["status"])

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default: requests that name no version go to it."""
        path = f"{_path('models', name, version)}/set-default"
        return str(self._management.request("PUT", path).json()["status"])

    def unregister(
        self, name: str, *, version: str | None = None, drain_s: float = 30.0, notice: Notice | None = None
    ) -> str:
        """Unregister a model when it has answered its requests. Needs the model API.

        Workers are scaled down first: when TorchServe fails midway through stopping the workers of a model that it
        is unregistering, the model stays half registered, and its other workers run until the server stops.
        TorchServe also deletes an archive that it downloaded.

        Args:
            drain_s: Seconds to wait at most until its requests are answered. New requests must go to another
                version meanwhile (`set_default`). 0: do not wait; TorchServe never answers what is in the queue.
            notice: As in `scale`.

        Raises:
            RequestFailed: The server refuses: the model API is off, there is no such model, or this is the default
                version of several. The model is then as it was.
            ServerError: Its requests are not answered in time; the model is then as it was.
        """
        status = self.describe(name, version=version)
        self._refuse_unregistration(status)
        path, workers = _path("models", name, status.version), self._workers(name, status.version)
        try:
            workers.set(0, time.monotonic() + drain_s if drain_s else None, notice)
            return str(self._management.request("DELETE", path, timeout=None).json()["status"])
        except HandlergenError:
            with contextlib.suppress(HandlergenError):
                workers.put(status.min_workers, status.max_workers)
            raise

    def renew_token(self, kind: str, api_key: str) -> None:
        """Make TorchServe write a new key for `inference` or `management` into its key file."""
        self._management.request("GET", "/token", params={"type": kind}, headers={"Authorization": f"Bearer {api_key}"})

    def token(self, kind: str = "inference", *, renew: bool = False) -> Token:
        """Return the token for `inference` or `management`, for requests sent by other means.

        Args:
            renew: Get a new one in any case. A new token ends the one before at once, also for other clients.

        Raises:
            HandlergenError: The server requires no tokens.
            ServerError: There is no key file, or the server cannot be reached.
            RequestFailed: The server refuses the key file's API key.
        """
        if self._key_file is None:
            raise HandlergenError("the server requires no tokens (disable_token_authorization=true)")
        return self._tokens.token(self._key_file, kind, lasting_s=math.inf if renew else 1.0)

    def authorization(self, *, lasting_s: float = 1.0) -> dict[str, str]:
        """Return the Authorization header for predictions sent by other means; empty without tokens."""
        return self._tokens.header("inference", lasting_s=lasting_s)

    @cached_property
    def grpc(self) -> GrpcInference:
        """The inference service over gRPC; connected on first use."""
        from handlergen.client.grpc import GrpcInference

        return self._grpc_service(GrpcInference)

    @cached_property
    def grpc_management(self) -> GrpcManagement:
        """The management service over gRPC; connected on first use."""
        from handlergen.client.grpc import GrpcManagement

        return self._grpc_service(GrpcManagement)

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refuse_unregistration(self, status: ModelStatus) -> None:
        """Raise what the server would raise, before anything is changed."""
        default, *others = self.versions(status.name)
        kept = bool(others) and default.version == status.version
        # A request for a version that does not exist only reveals whether the model API is on.
        version = status.version if kept else f"{status.version}-{secrets.token_hex(8)}"
        try:
            self._management.request("DELETE", _path("models", status.name, version), timeout=None)
        except RequestFailed as error:
            if kept or error.status == _NO_MODEL_API:
                raise

    def _workers(self, name: str, version: str | None) -> ModelWorkers:
        return ModelWorkers(self._management, _path("models", name, version))

    def _describe(self, name: str, version: str | None) -> list[ModelStatus]:
        answer = self._management.request("GET", _path("models", name, version)).json()
        return [ModelStatus.from_description(item) for item in answer]

    def _grpc_service(self, kind: type[_Service]) -> _Service:
        host, port = self.settings.addresses()[f"gRPC {kind.kind}"]
        # gRPC's default limit is 4 MiB, less than what the server accepts and sends.
        largest = max(self.settings.max_request_size, self.settings.max_response_size) + 65_536
        service = kind(f"{host}:{port}", self._tokens, largest, self.verification if self.settings.grpc_tls else None)
        self._connections.callback(service.close)
        return service


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


def _path(collection: str, name: str, version: str | None) -> str:
    return f"/{collection}/{quote(name, safe='')}" + (f"/{quote(version, safe='')}" if version else "")


def _grpc_inputs(json: Any, inputs: Mapping[str, bytes] | None) -> Mapping[str, bytes]:
    if (json is UNSET) == (inputs is None):
        raise ValueError("give exactly one of json and inputs")
    if inputs is not None:
        return inputs
    return {"data": json_module.dumps(json, ensure_ascii=False).encode()}
