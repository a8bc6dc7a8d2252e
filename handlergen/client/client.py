"""`Client`: predictions and management of one TorchServe, over REST and gRPC."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from handlergen.client.connection import KEY_FILE, ApiConnection, Tokens
from handlergen.client.rest import UNSET, FieldValue, ManagementApi, path_of, payload
from handlergen.client.results import Answer
from handlergen.errors import RequestFailed
from handlergen.runtime.codec.errors import error_of
from handlergen.server.properties import ServerSettings, read_properties

if TYPE_CHECKING:
    from handlergen.client.grpc import GrpcInference, GrpcManagement, GrpcService

_Service = TypeVar("_Service", bound="GrpcService")

_DEFAULT_TIMEOUT_S = 300.0


class Client(ManagementApi):
    """Predictions and management of one TorchServe. Threads may share a client; use it in a `with` statement.

    Args:
        settings: The server's settings: its addresses, and whether it requires tokens.
        key_file: TorchServe's key_file.json, read whenever a token is needed; ignored when the settings turn
            token authorization off.
        timeout: Seconds to wait for one response.
    """

    def __init__(
        self, settings: ServerSettings, *, key_file: Path | None = None, timeout: float = _DEFAULT_TIMEOUT_S
    ) -> None:
        self.settings = settings
        self._connections = ExitStack()
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=10.0),
            # The server is on this machine or named explicitly: a proxy from the environment would break the
            # connection.
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._connections.callback(self._http.close)
        self._timeout = timeout
        keys = key_file or Path(KEY_FILE) if settings.token_authorization else None
        self._tokens = Tokens(keys, self.renew_token)
        self._inference = ApiConnection(self._http, settings.inference_address, "inference", self._tokens)
        self._management = ApiConnection(self._http, settings.management_address, "management", self._tokens)

    @classmethod
    def from_config(
        cls,
        config: Path | str = "config.properties",
        *,
        key_file: Path | None = None,
        timeout: float = _DEFAULT_TIMEOUT_S,
    ) -> Client:
        """Return a client for the server on this config.properties; the key file is expected beside it.

        Raises:
            HandlergenError: The file is missing or invalid.
        """
        path = Path(config)
        return cls(read_properties(path), key_file=key_file or path.parent / KEY_FILE, timeout=timeout)

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
            ServerError: No server is listening.
        """
        own, options = payload(json=json, content=content, file=file, fields=fields, content_type=content_type)
        response = self._inference.request(
            "POST", path_of("predictions", name, version), headers={**own, **(headers or {})}, **options
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
            "POST", path_of("predictions", name, version), headers={**own, **(headers or {})}, **options
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
            ServerError: No server is listening.
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

    def authorization(self) -> dict[str, str]:
        """Return the Authorization header for predictions sent by other means; empty without tokens."""
        return self._tokens.header("inference")

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

    def _grpc_service(self, kind: type[_Service]) -> _Service:
        host, port = self.settings.addresses()[f"gRPC {kind.kind}"]
        # gRPC's default limit is 4 MiB, less than what the server accepts and sends.
        largest = max(self.settings.max_request_size, self.settings.max_response_size) + 65_536
        service = kind(f"{host}:{port}", self._tokens, largest)
        self._connections.callback(service.close)
        return service


def _grpc_inputs(json: Any, inputs: Mapping[str, bytes] | None) -> Mapping[str, bytes]:
    if (json is UNSET) == (inputs is None):
        raise ValueError("give exactly one of json and inputs")
    if inputs is not None:
        return inputs
    return {"data": json_module.dumps(json, ensure_ascii=False).encode()}
