"""TorchServe's published gRPC services, described as data and built at run time.

No generated code and no copy of a .proto file: the tables below name the services, methods, messages and
field numbers of TorchServe 0.12.0 (`inference.proto` and `management.proto` in its model-server.jar); protobuf
makes the message classes from them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory

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

#: service -> method -> (request, response); a leading "stream " marks a streamed answer.
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


@cache
def message_class(package: str, name: str) -> Any:
    """The protobuf message class `package.name`, in a descriptor pool of our own.

    A pool of our own, since a program may have TorchServe's generated modules imported as well, and one pool
    refuses two descriptions of one message.
    """
    if name == "google.protobuf.Empty":
        return empty_pb2.Empty
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{package}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for package, messages in _MESSAGES.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"handlergen/{package}.proto", package=package, syntax="proto3"
        )
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
    """A `map<string, bytes>` field: on the wire and in a descriptor a repeated message of key and value."""
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
