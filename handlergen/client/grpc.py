"""Predictions and management over gRPC, without generated code."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from handlergen.client.connection import Tokens
from handlergen.client.protocol import INFERENCE, MANAGEMENT, METHODS, message_class
from handlergen.client.results import ModelStatus
from handlergen.errors import NoServer, RequestFailed
from handlergen.runtime.wire import STREAM_WISH

#: The HTTP status that TorchServe made a gRPC code from (GRPCUtils.java); the others arrive as INTERNAL.
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,  # any 4xx without a code of its own
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 416,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
#: TorchServe ends an error's details with the class of the Java exception.
_JAVA_CLASS = re.compile(r"\n(?:\w+\.)*\w+Exception(?:\.\(\))?$")


class Service:
    """One of TorchServe's gRPC services on one address; `call` and `stream` go by method name."""

    def __init__(
        self, address: str, package: str, service: str, kind: str, tokens: Tokens, *, max_message: int
    ) -> None:
        self._address = address
        self._package = package
        self._kind = kind
        self._tokens = tokens
        limits = [
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", max_message),
        ]
        self._channel = grpc.insecure_channel(address, options=limits)
        self._stubs: dict[str, Any] = {}
        for method, (request, response) in METHODS[f"{package}.{service}"].items():
            streams = response.startswith("stream ")
            make = self._channel.unary_stream if streams else self._channel.unary_unary
            self._stubs[method] = make(
                f"/{package}.{service}/{method}",
                request_serializer=message_class(package, request).SerializeToString,
                response_deserializer=message_class(package, response.removeprefix("stream ")).FromString,
            )

    def message(self, name: str, **values: Any) -> Any:
        return message_class(self._package, name)(**values)

    def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        """One answer. Raises ServerError (nobody there) or RequestFailed."""
        try:
            return self._stubs[method](request, timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def stream(self, method: str, request: Any, *, timeout: float | None = None) -> Iterator[Any]:
        """Answers as they arrive. Raises like `call`, also midway."""
        try:
            yield from self._stubs[method](request, timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def close(self) -> None:
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # GRPCInterceptor.java reads the metadata key `authorization`, "Bearer TOKEN".
        return tuple((name.lower(), value) for name, value in self._tokens.header(self._kind).items())

    def _translated(self, error: grpc.RpcError) -> Exception:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details.lower():
            return NoServer(
                f"no server answers at {self._address} (gRPC)", hint="start one with `handlergen serve`"
            )
        hint = None
        if "Token Authorization failed" in details:
            hint = self._tokens.advice()
        # An unknown model arrives as INTERNAL, with the name of the Java exception on a second line.
        unknown = re.search(r"\n\S+\.Model(Version)?NotFoundException$", details)
        return RequestFailed(
            f"{code.name}: {_JAVA_CLASS.sub('', details)}",
            status=404 if unknown else _HTTP_STATUS.get(code, 500),
            body=details.encode(),
            hint=hint,
        )


class GrpcInference(Service):
    """Predictions over gRPC. The answer carries no headers and no status of its own."""

    def __init__(self, address: str, tokens: Tokens, *, max_message: int) -> None:
        super().__init__(
            address, INFERENCE, "InferenceAPIsService", "inference", tokens, max_message=max_message
        )

    def predict(
        self,
        name: str,
        inputs: Mapping[str, bytes],
        *,
        version: str | None = None,
        timeout: float | None = None,
    ) -> bytes:
        request = self.message(
            "PredictionsRequest", model_name=name, model_version=version or "", input=dict(inputs)
        )
        return bytes(self.call("Predictions", request, timeout=timeout).prediction)

    def predict_stream(
        self,
        name: str,
        inputs: Mapping[str, bytes],
        *,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """The parts of the answer as they arrive; empty ones, which end a stream, left out."""
        # A worker cannot tell StreamPredictions from Predictions: the entry says that parts are wanted.
        wish = {STREAM_WISH: b"true"}
        request = self.message(
            "PredictionsRequest", model_name=name, model_version=version or "", input={**inputs, **wish}
        )
        for part in self.stream("StreamPredictions", request, timeout=timeout):
            if part.prediction:
                yield bytes(part.prediction)

    def ping(self) -> str:
        health = self.call("Ping", message_class(INFERENCE, "google.protobuf.Empty")(), timeout=10).health
        try:
            return str(json_module.loads(health)["status"])
        except (ValueError, KeyError, TypeError):
            return str(health)


class GrpcManagement(Service):
    """Management over gRPC; the answers are the REST API's JSON in a string."""

    def __init__(self, address: str, tokens: Tokens, *, max_message: int) -> None:
        super().__init__(
            address, MANAGEMENT, "ManagementAPIsService", "management", tokens, max_message=max_message
        )

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        request = self.message("DescribeModelRequest", model_name=name, model_version=version or "")
        return ModelStatus.from_description(
            json_module.loads(self.call("DescribeModel", request, timeout=30).msg)[0]
        )

    def models(self) -> list[str]:
        answer = json_module.loads(
            self.call("ListModels", self.message("ListModelsRequest", limit=1000), timeout=30).msg
        )
        return sorted(model["modelName"] for model in answer["models"])

    def scale(
        self, name: str, workers: int, *, version: str | None = None, timeout: float | None = None
    ) -> str:
        """Ask for the number of workers and wait until the server says that it is done; returns its word."""
        request = self.message(
            "ScaleWorkerRequest",
            model_name=name,
            model_version=version or "",
            min_worker=workers,
            max_worker=workers,
            synchronous=True,
        )
        return str(self.call("ScaleWorker", request, timeout=timeout).msg)
