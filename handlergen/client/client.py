"""`Client`: one object for a running server, over REST and gRPC."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from handlergen.client.connection import Connection, Tokens
from handlergen.client.key_file import KEY_FILE, KeyFile
from handlergen.client.management import Management
from handlergen.client.rest import UNSET, FieldValue, RestInference
from handlergen.client.results import Answer, ModelStatus
from handlergen.errors import RequestFailed
from handlergen.properties import ServerSettings, read_properties
from handlergen.runtime.error_body import error_of

if TYPE_CHECKING:
    from handlergen.client.grpc import GrpcInference, GrpcManagement

_DEFAULT_TIMEOUT_S = 300.0


class Client:
    """Predictions and management of one TorchServe. Safe to share between threads; use it in a `with`.

    Args:
        settings: The server's settings: where it listens and whether it wants tokens.
        key_file: TorchServe's key_file.json, read when a token is needed. Not read when the settings switch
            token authorization off.
        timeout: Seconds that one answer may take.
    """

    def __init__(
        self, settings: ServerSettings, *, key_file: Path | None = None, timeout: float = _DEFAULT_TIMEOUT_S
    ) -> None:
        self.settings = settings
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=10.0),
            # The server is on this machine or named on purpose: a proxy from the environment would break it.
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._timeout = timeout
        keys = KeyFile(key_file or Path(KEY_FILE)) if settings.token_authorization else None
        self._tokens = Tokens(keys, self._renew)
        self._rest = RestInference(
            Connection(self._http, settings.inference_address, "inference", self._tokens)
        )
        self._management = Management(
            Connection(self._http, settings.management_address, "management", self._tokens)
        )
        self._grpc_inference: GrpcInference | None = None
        self._grpc_management: GrpcManagement | None = None

    @classmethod
    def from_config(
        cls,
        config: Path | str = "config.properties",
        *,
        key_file: Path | None = None,
        timeout: float = _DEFAULT_TIMEOUT_S,
    ) -> Client:
        """A client for the server that runs on this config.properties; its key file lies beside it.

        Raises:
            HandlergenError: The file is missing or not understood.
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
        """One prediction over REST, with exactly one of these bodies.

        Args:
            json: Any JSON value.
            content: Raw bytes (`application/octet-stream` unless `content_type` says otherwise).
            file: A file's bytes, with the type that its name suggests.
            fields: A multipart form: text, bytes, or Path for a file.

        Raises:
            RequestFailed: The answer is an error; `.status` and `.body` hold it.
            ServerError: No server answers.
        """
        return self._rest.predict(
            name,
            json=json,
            content=content,
            file=file,
            fields=fields,
            content_type=content_type,
            headers=headers,
            version=version,
        )

    def stream(self, name: str, json: Any = UNSET, **options: Any) -> Iterator[bytes]:
        """Like `predict`; yields the answer in chunks as they arrive."""
        return self._rest.stream(name, json=json, **options)

    def predict_grpc(
        self,
        name: str,
        json: Any = UNSET,
        *,
        inputs: Mapping[str, bytes] | None = None,
        version: str | None = None,
    ) -> Answer:
        """One prediction over gRPC: `json` goes into the entry `data`; `inputs` are the entries themselves.

        Raises:
            RequestFailed: The call failed; `.status` is the HTTP status that stands for the gRPC code. Or the
                answer is an error's body, as in a batch with others (`error_body.error_of`).
            ServerError: No server answers.
        """
        body = self.grpc.predict(name, _grpc_inputs(json, inputs), version=version, timeout=self._timeout)
        error = error_of(body)
        if error is not None:
            raise RequestFailed(f"{error['code']}: {error['message']}", status=error["code"], body=body)
        return Answer(200, body)

    def stream_grpc(
        self,
        name: str,
        json: Any = UNSET,
        *,
        inputs: Mapping[str, bytes] | None = None,
        version: str | None = None,
    ) -> Iterator[bytes]:
        """Like `predict_grpc`, through StreamPredictions; yields the parts of the answer as they arrive.

        A model that does not stream answers in one part. Only models that handlergen packed, or that stream: in
        TorchServe 0.12 the worker of any other is ended by this call (a NullPointerException in the frontend).
        """
        return self.grpc.predict_stream(
            name, _grpc_inputs(json, inputs), version=version, timeout=self._timeout
        )

    def ping(self) -> str:
        """The server's health in its own word."""
        return self._rest.ping()

    def models(self) -> list[str]:
        """Names of the registered models."""
        return self._management.models()

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        """A model's workers, queue and limits. Raises RequestFailed, status 404, when there is none."""
        return self._management.describe(name, version=version)

    def status(self) -> list[ModelStatus]:
        """Every version of every model."""
        return [status for name in self.models() for status in self._management.describe_all(name)]

    def scale(
        self,
        name: str,
        workers: int,
        *,
        version: str | None = None,
        timeout: float = 300.0,
        progress: Callable[[ModelStatus], None] | None = None,
    ) -> ModelStatus:
        """Set the number of workers; returns when exactly so many are READY, or raises ServerError."""
        return self._management.scale(name, workers, version=version, timeout=timeout, progress=progress)

    def register(self, archive: str, **parameters: Any) -> str:
        """Register an archive of the model store (a file name). Needs `enable_model_api`."""
        return self._management.register(archive, **parameters)

    def set_default(self, name: str, version: str) -> str:
        """Let requests that name no version of a model go to this one."""
        return self._management.set_default(name, version)

    def unregister(self, name: str, *, version: str | None = None, drain_s: float = 0.0) -> str:
        """Unregister a model. Needs `enable_model_api`.

        Args:
            drain_s: Wait so long at most until its queue is empty: TorchServe never answers what is in it.
        """
        return self._management.unregister(name, version=version, drain_s=drain_s)

    def authorization(self) -> dict[str, str]:
        """The header that a prediction must carry, for requests of one's own; empty when the server wants none."""
        return self._tokens.header("inference")

    @property
    def grpc(self) -> GrpcInference:
        """The inference service over gRPC; connected on first use."""
        if self._grpc_inference is None:
            from handlergen.client.grpc import GrpcInference

            host, port = self.settings.addresses()["gRPC inference"]
            self._grpc_inference = GrpcInference(
                f"{host}:{port}", self._tokens, max_message=self._max_message
            )
        return self._grpc_inference

    @property
    def grpc_management(self) -> GrpcManagement:
        """The management service over gRPC; connected on first use."""
        if self._grpc_management is None:
            from handlergen.client.grpc import GrpcManagement

            host, port = self.settings.addresses()["gRPC management"]
            self._grpc_management = GrpcManagement(
                f"{host}:{port}", self._tokens, max_message=self._max_message
            )
        return self._grpc_management

    def close(self) -> None:
        self._http.close()
        for service in (self._grpc_inference, self._grpc_management):
            if service is not None:
                service.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _max_message(self) -> int:
        # gRPC's own default is 4 MiB, less than what the server takes and sends.
        return max(self.settings.max_request_size, self.settings.max_response_size) + 65_536

    def _renew(self, kind: str, api_key: str) -> None:
        self._management.renew_token(kind, api_key)


def _grpc_inputs(json: Any, inputs: Mapping[str, bytes] | None) -> Mapping[str, bytes]:
    if (json is UNSET) == (inputs is None):
        raise ValueError("give exactly one of json and inputs")
    if inputs is not None:
        return inputs
    return {"data": json_module.dumps(json, ensure_ascii=False).encode()}
