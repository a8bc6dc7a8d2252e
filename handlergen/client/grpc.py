"""TorchServe's gRPC services: predictions and management.

There is no generated code and no copy of a .proto file: the tables below name the services, methods, messages and
field numbers of TorchServe 0.12.0 (`inference.proto` and `management.proto` in its model-server.jar), and protobuf
builds the message classes from them when they are first used.
"""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

from handlergen.client.connection import Tokens
from handlergen.client.results import ModelStatus
from handlergen.errors import NoServer, RequestFailed
from handlergen.runtime.codec.content import STREAM_WISH

_TYPES = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
}
_MAP = "map<string, bytes>"

INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"

#: package -> message -> {field: (number, type)}
_MESSAGES: dict[str, dict[str, dict[str, tuple[int, str]]]] = {
    INFERENCE: {
        "PredictionsRequest": {
            "model_name": (1, "string"),
            "model_version": (2, "string"),
            "input": (3, _MAP),
        },
        "PredictionResponse": {"prediction": (1, "bytes")},
        "TorchServeHealthResponse": {"health": (1, "string")},
    },
    MANAGEMENT: {
        "ManagementResponse": {"msg": (1, "string")},
        "DescribeModelRequest": {
            "model_name": (1, "string"),
            "model_version": (2, "string"),
            "customized": (3, "bool"),
        },
        "ListModelsRequest": {"limit": (1, "int32"), "next_page_token": (2, "int32")},
        "RegisterModelRequest": {
            "batch_size": (1, "int32"),
            "handler": (2, "string"),
            "initial_workers": (3, "int32"),
            "max_batch_delay": (4, "int32"),
            "model_name": (5, "string"),
            "response_timeout": (6, "int32"),
            "runtime": (7, "string"),
            "synchronous": (8, "bool"),
            "url": (9, "string"),
            "s3_sse_kms": (10, "bool"),
            "startup_timeout": (11, "int32"),
        },
        "ScaleWorkerRequest": {
            "model_name": (1, "string"),
            "model_version": (2, "string"),
            "max_worker": (3, "int32"),
            "min_worker": (4, "int32"),
            "number_gpu": (5, "int32"),
            "synchronous": (6, "bool"),
            "timeout": (7, "int32"),
        },
        "SetDefaultRequest": {"model_name": (1, "string"), "model_version": (2, "string")},
        "UnregisterModelRequest": {"model_name": (1, "string"), "model_version": (2, "string")},
    },
}

#: service -> method -> (request, response); a leading "stream " marks a streamed response.
METHODS: dict[str, dict[str, tuple[str, str]]] = {
    f"{INFERENCE}.InferenceAPIsService": {
        "Ping": ("google.protobuf.Empty", "TorchServeHealthResponse"),
        "Predictions": ("PredictionsRequest", "PredictionResponse"),
        "StreamPredictions": ("PredictionsRequest", "stream PredictionResponse"),
    },
    f"{MANAGEMENT}.ManagementAPIsService": {
        "DescribeModel": ("DescribeModelRequest", "ManagementResponse"),
        "ListModels": ("ListModelsRequest", "ManagementResponse"),
        "RegisterModel": ("RegisterModelRequest", "ManagementResponse"),
        "ScaleWorker": ("ScaleWorkerRequest", "ManagementResponse"),
        "SetDefault": ("SetDefaultRequest", "ManagementResponse"),
        "UnregisterModel": ("UnregisterModelRequest", "ManagementResponse"),
    },
}

#: gRPC code -> the HTTP status that TorchServe translated to it (GRPCUtils.java); others arrive as INTERNAL.
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
#: TorchServe appends the class of the Java exception to an error's details.
_JAVA_CLASS = re.compile(r"\n(?:\w+\.)*\w+Exception(?:\.\(\))?$")


class GrpcService:
    """One gRPC service at one address; `call` and `stream` take a method's name."""

    package: ClassVar[str]
    service: ClassVar[str]
    kind: ClassVar[str]
    """Of the token: `inference` or `management`."""

    def __init__(self, address: str, tokens: Tokens, max_message: int) -> None:
        self._address = address
        self._tokens = tokens
        package, service = self.package, f"{self.package}.{self.service}"
        limits = [
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", max_message),
        ]
        self._channel = grpc.insecure_channel(address, options=limits)
        self._stubs: dict[str, Any] = {}
        for method, (request, response) in METHODS[service].items():
            streams = response.startswith("stream ")
            make = self._channel.unary_stream if streams else self._channel.unary_unary
            self._stubs[method] = make(
                f"/{service}/{method}",
                request_serializer=message_class(package, request).SerializeToString,
                response_deserializer=message_class(package, response.removeprefix("stream ")).FromString,
            )

    def message(self, name: str, **values: Any) -> Any:
        """Return a request message of this service's package."""
        return message_class(self.package, name)(**values)

    def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        """Call a method with one response. Raises NoServer or RequestFailed."""
        try:
            return self._stubs[method](request, timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def stream(self, method: str, request: Any, *, timeout: float | None = None) -> Iterator[Any]:
        """Yield responses as they arrive. Raises like `call`, also midway."""
        try:
            yield from self._stubs[method](request, timeout=timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def close(self) -> None:
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # GRPCInterceptor.java reads the metadata key `authorization`, "Bearer TOKEN".
        return tuple((name.lower(), value) for name, value in self._tokens.header(self.kind).items())

    def _translated(self, error: grpc.RpcError) -> Exception:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details.lower():
            return NoServer(f"no server answers at {self._address} (gRPC)", hint="start one with `handlergen serve`")
        # An unknown model arrives as INTERNAL, with the name of the Java exception on a second line.
        unknown = re.search(r"\n\S+\.Model(Version)?NotFoundException$", details)
        return RequestFailed(
            f"{code.name}: {_JAVA_CLASS.sub('', details)}",
            status=404 if unknown else _HTTP_STATUS.get(code, 500),
            body=details.encode(),
            hint=self._tokens.advice() if "Token Authorization failed" in details else None,
        )


class GrpcInference(GrpcService):
    """Predictions over gRPC. A response has neither headers nor a status of its own."""

    package, service, kind = INFERENCE, "InferenceAPIsService", "inference"

    def predict(
        self,
        name: str,
        inputs: Mapping[str, bytes],
        *,
        version: str | None = None,
        timeout: float | None = None,
    ) -> bytes:
        request = self._request(name, version, inputs)
        return bytes(self.call("Predictions", request, timeout=timeout).prediction)

    def predict_stream(
        self,
        name: str,
        inputs: Mapping[str, bytes],
        *,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[bytes]:
        """Yield the parts of the answer as they arrive, without the empty part that ends a stream."""
        # A worker cannot tell StreamPredictions from Predictions: the extra entry requests a stream.
        request = self._request(name, version, {**inputs, STREAM_WISH: b"true"})
        for part in self.stream("StreamPredictions", request, timeout=timeout):
            if part.prediction:
                yield bytes(part.prediction)

    def _request(self, name: str, version: str | None, inputs: Mapping[str, bytes]) -> Any:
        return self.message("PredictionsRequest", model_name=name, model_version=version or "", input=dict(inputs))

    def ping(self) -> str:
        health = self.call("Ping", message_class(INFERENCE, "google.protobuf.Empty")(), timeout=10).health
        try:
            return str(json_module.loads(health)["status"])
        except (ValueError, KeyError, TypeError):
            return str(health)


class GrpcManagement(GrpcService):
    """Management over gRPC; each response is the REST API's JSON in a string."""

    package, service, kind = MANAGEMENT, "ManagementAPIsService", "management"

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        request = self.message("DescribeModelRequest", model_name=name, model_version=version or "")
        return ModelStatus.from_description(json_module.loads(self.call("DescribeModel", request, timeout=30).msg)[0])

    def models(self) -> list[str]:
        answer = json_module.loads(
            self.call("ListModels", self.message("ListModelsRequest", limit=1000), timeout=30).msg
        )
        return sorted(model["modelName"] for model in answer["models"])

    def scale(self, name: str, workers: int, *, version: str | None = None, timeout: float | None = None) -> str:
        """Set the number of workers, wait until the server has done so, and return its message."""
        request = self.message(
            "ScaleWorkerRequest",
            model_name=name,
            model_version=version or "",
            min_worker=workers,
            max_worker=workers,
            synchronous=True,
        )
        return str(self.call("ScaleWorker", request, timeout=timeout).msg)


@cache
def message_class(package: str, name: str) -> Any:
    """Return the protobuf message class `package.name`.

    It comes from a separate descriptor pool, because the program may also import TorchServe's generated modules, and
    one pool refuses two descriptions of a message.
    """
    if name == "google.protobuf.Empty":
        return empty_pb2.Empty
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{package}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package, messages in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(name=f"handlergen/{package}.proto", package=package, syntax="proto3")
        for message_name, message_fields in messages.items():
            message = file.message_type.add(name=message_name)
            for field_name, (number, kind) in message_fields.items():
                if kind == _MAP:
                    _add_map(message, f".{package}.{message_name}", field_name, number)
                else:
                    message.field.add(
                        name=field_name,
                        number=number,
                        type=_TYPES[kind],
                        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
                    )
        pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]
    return pool


def _add_map(message: descriptor_pb2.DescriptorProto, scope: str, name: str, number: int) -> None:
    """Add a `map<string, bytes>` field, which a descriptor spells as a repeated message of key and value."""
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    for field_number, (field_name, kind) in enumerate((("key", "string"), ("value", "bytes")), start=1):
        entry.field.add(
            name=field_name,
            number=field_number,
            type=_TYPES[kind],
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    message.field.add(
        name=name,
        number=number,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f"{scope}.{entry_name}",
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    )
