"""TorchServe's gRPC services: predictions and management.

There is no generated code and no copy of a .proto file: the tables below name the services, methods, messages and
field numbers of TorchServe 0.12.0 (`inference.proto` and `management.proto` in its model-server.jar), and protobuf
builds the message classes from them when they are first used.
"""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

from handlergen.client.connection import Tokens, no_server, unknown_host
from handlergen.client.results import ModelStatus
from handlergen.client.tls import Verification, certificate_refused, no_tls, only_tls
from handlergen.errors import RequestFailed, ServerError
from handlergen.runtime.codec.content import STREAM_WISH

INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"

#: package -> message -> its fields, in the order of their numbers, from 1; `map` is map<string, bytes>.
_MESSAGES: dict[str, dict[str, str]] = {
    INFERENCE: {
        "PredictionsRequest": "string model_name, string model_version, map input",
        "PredictionResponse": "bytes prediction",
        "TorchServeHealthResponse": "string health",
    },
    MANAGEMENT: {
        "ManagementResponse": "string msg",
        "DescribeModelRequest": "string model_name, string model_version, bool customized",
        "ListModelsRequest": "int32 limit, int32 next_page_token",
        "RegisterModelRequest": "int32 batch_size, string handler, int32 initial_workers, int32 max_batch_delay, "
        "string model_name, int32 response_timeout, string runtime, bool synchronous, string url, bool s3_sse_kms, "
        "int32 startup_timeout",
        "ScaleWorkerRequest": "string model_name, string model_version, int32 max_worker, int32 min_worker, "
        "int32 number_gpu, bool synchronous, int32 timeout",
        "SetDefaultRequest": "string model_name, string model_version",
        "UnregisterModelRequest": "string model_name, string model_version",
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
_TOKEN_REFUSED = "Token Authorization failed"  # noqa: S105 - a message of GRPCInterceptor.java, no password
#: What BoringSSL says of a certificate: `CERTIFICATE_VERIFY_FAILED: certificate has expired: OK`.
_VERIFICATION = re.compile(
    r"handshake failed.*OPENSSL_internal:(?!WRONG_VERSION_NUMBER)\w+: ([^:]+)|Hostname Verification Check failed"
)
#: TorchServe appends the class of the Java exception to an error's details.
_JAVA_CLASS = re.compile(r"\n(?:\w+\.)*\w+Exception(?:\.\(\))?$")


class GrpcService:
    """One gRPC service at one address; `call` and `stream` take a method's name."""

    package: ClassVar[str]
    service: ClassVar[str]
    kind: ClassVar[str]
    """Of the token: `inference` or `management`."""

    def __init__(self, address: str, tokens: Tokens, max_message: int, tls: Verification | None = None) -> None:
        self._address = address
        self._tokens = tokens
        self._tls = tls is not None
        package, service = self.package, f"{self.package}.{self.service}"
        limits = [(f"grpc.max_{way}_message_length", max_message) for way in ("receive", "send")]
        self._channel = open_channel(address, limits, tls)
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
        """Call a method with one response. A token that the server refuses is renewed once.

        Raises:
            NoServer: No server is listening.
            TlsError: The server's certificate is refused, or only one side uses TLS.
            ServerError: The host is unknown, or the response took too long.
            RequestFailed: The call failed.
        """
        return next(self._responses(lambda **how: iter((self._stubs[method](request, **how),)), timeout))

    def stream(self, method: str, request: Any, *, timeout: float | None = None) -> Iterator[Any]:
        """Yield responses as they arrive. Raises like `call`, also midway."""
        return self._responses(lambda **how: self._stubs[method](request, **how), timeout)

    def _responses(self, call: Callable[..., Iterator[Any]], timeout: float | None) -> Iterator[Any]:
        token = self._tokens.header(self.kind)
        for again in (False, True):
            try:
                yield from call(timeout=timeout, metadata=call_metadata(token))
                return
            except grpc.RpcError as error:
                failed = self._translated(error)
                if again or not isinstance(failed, RequestFailed) or _TOKEN_REFUSED not in failed.message:
                    raise failed from error
                token = self._tokens.instead_of(token, self.kind, failed)

    def close(self) -> None:
        self._channel.close()

    def _translated(self, error: grpc.RpcError) -> RequestFailed | ServerError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and (failed := self._not_connected(details)):
            return failed
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":  # the client's own words
            return ServerError(
                f"timed out waiting for {self._address} (gRPC)",
                hint="`handlergen status` shows how many requests are queued; --timeout sets how long to wait",
            )
        # An unknown model arrives as INTERNAL, with the name of the Java exception on a second line.
        unknown = re.search(r"\n\S+\.Model(Version)?NotFoundException$", details)
        return RequestFailed(
            f"{code.name}: {_JAVA_CLASS.sub('', details)}",
            status=404 if unknown else _HTTP_STATUS.get(code, 500),
            body=details.encode(),
            hint=self._tokens.advice() if _TOKEN_REFUSED in details else None,
        )

    def _not_connected(self, details: str) -> ServerError | None:
        """Return what the details of UNAVAILABLE mean; None: there was a connection."""
        address = f"{self._address} (gRPC)"
        if "errors resolving" in details or "DNS resolution failed" in details:
            return unknown_host(address, details.rstrip("]").rpartition(": ")[2])
        if "failed to connect" not in details.lower():
            return None
        if found := _VERIFICATION.search(details):
            return certificate_refused(address, found[1] or "Hostname mismatch")
        if "WRONG_VERSION_NUMBER" in details or "ALPN" in details:
            return no_tls(address)
        if not self._tls and details.endswith("Socket closed"):
            return only_tls(address)
        return no_server(address, details.rpartition(": ")[2])


class GrpcInference(GrpcService):
    """Predictions over gRPC: an answer has neither headers nor a status."""

    package, service, kind = INFERENCE, "InferenceAPIsService", "inference"

    def predict(
        self, name: str, inputs: Mapping[str, bytes], *, version: str | None = None, timeout: float | None = None
    ) -> bytes:
        request = self._request(name, version, inputs)
        return bytes(self.call("Predictions", request, timeout=timeout).prediction)

    def predict_stream(
        self, name: str, inputs: Mapping[str, bytes], *, version: str | None = None, timeout: float | None = None
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
        return str(json_module.loads(self.call("Ping", empty_pb2.Empty(), timeout=10).health)["status"])


class GrpcManagement(GrpcService):
    """Management over gRPC; each response is the REST API's JSON in a string."""

    package, service, kind = MANAGEMENT, "ManagementAPIsService", "management"

    def describe(self, name: str, *, version: str | None = None) -> ModelStatus:
        request = self.message("DescribeModelRequest", model_name=name, model_version=version or "")
        return ModelStatus.from_description(json_module.loads(self.call("DescribeModel", request, timeout=30).msg)[0])

    def models(self) -> list[str]:
        answer = self.call("ListModels", self.message("ListModelsRequest", limit=1000), timeout=30).msg
        return sorted(model["modelName"] for model in json_module.loads(answer)["models"])

    def register(self, archive: str) -> str:
        """Register an archive of the model store by file name; return the server's message.

        Its workers start afterwards. Over REST, a registration blocks the thread that serves other clients'
        connections until the archive is unpacked (TorchServe 0.12).

        Raises:
            RequestFailed: Status 403: the model API is off; 400: any other reason, such as a registered version.
        """
        return str(self.call("RegisterModel", self.message("RegisterModelRequest", url=archive)).msg)

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


def open_channel(address: str, options: Sequence[tuple[str, Any]], tls: Verification | None) -> grpc.Channel:
    """Return a channel to HOST:PORT; `tls` is None for a server whose gRPC is not encrypted."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    name = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(tls.authorities()), options=[*options, *name])


def call_metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return HTTP headers as metadata. GRPCInterceptor.java reads the key `authorization`, "Bearer TOKEN"."""
    return tuple((name.lower(), value) for name, value in headers.items())


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
        for name, fields in messages.items():
            _add_fields(file.message_type.add(name=name), fields, scope=f".{package}.{name}")
        pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]
    return pool


def _add_fields(message: descriptor_pb2.DescriptorProto, fields: str, *, scope: str) -> None:
    """Add fields to a message; a descriptor spells a map as a repeated message of key and value."""
    for number, declaration in enumerate(fields.split(","), start=1):
        kind, name = declaration.split()
        field = message.field.add(name=name, number=number, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
        if kind == "map":
            entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
            entry.options.map_entry = True
            _add_fields(entry, "string key, bytes value", scope="")
            field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
            field.type_name = f"{scope}.{entry.name}"
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
        else:
            field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
