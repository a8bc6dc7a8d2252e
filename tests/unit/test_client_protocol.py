"""The gRPC messages built at run time are those of the installed TorchServe."""

from __future__ import annotations

import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from handlergen.client.grpc import INFERENCE, MANAGEMENT, METHODS, message_class
from handlergen.client.results import error_of


def _published(file: str) -> str:
    """A .proto file out of TorchServe's jar, without comments."""
    spec = find_spec("ts")
    assert spec is not None
    assert spec.submodule_search_locations
    jar = Path(spec.submodule_search_locations[0]) / "frontend" / "model-server.jar"
    with zipfile.ZipFile(jar) as archive:
        return re.sub(r"//.*", "", archive.read(f"proto/{file}").decode())


def _published_messages(text: str) -> dict[str, dict[str, tuple[int, str]]]:
    messages = {}
    for name, body in re.findall(r"message (\w+) \{(.*?)\n\}", text, re.DOTALL):
        found = re.findall(r"(?:optional )?([\w.]+(?:<[^>]+>)?) (\w+) = (\d+);", body)
        messages[name] = {field: (int(number), kind) for kind, field, number in found}
    return messages


@pytest.mark.parametrize(("package", "file"), [(INFERENCE, "inference.proto"), (MANAGEMENT, "management.proto")])
def test_every_field_has_the_published_number_and_type(package: str, file: str):
    published = _published_messages(_published(file))
    assert published
    for name, fields in published.items():
        built = message_class(package, name).DESCRIPTOR
        for field in built.fields:
            number, kind = fields[field.name]
            assert field.number == number
            if kind.startswith("map<"):
                entry = field.message_type
                assert entry.GetOptions().map_entry
                assert [f.type for f in entry.fields] == [field.TYPE_STRING, field.TYPE_BYTES]
            else:
                assert field.type == getattr(field, f"TYPE_{kind.upper()}")
        # What only StreamPredictions2 needs is left out.
        assert set(fields) - {f.name for f in built.fields} <= {"sequence_id", "status"}


@pytest.mark.parametrize(("package", "file"), [(INFERENCE, "inference.proto"), (MANAGEMENT, "management.proto")])
def test_every_method_is_published_with_these_messages(package: str, file: str):
    text = _published(file)
    published = {
        method: (request, response)
        for method, request, response in re.findall(r"rpc (\w+)\((.+?)\) returns \((.+?)\)", text)
    }
    (service,) = [name for name in METHODS if name.startswith(package)]
    assert f"service {service.removeprefix(package + '.')} " in text
    for method, messages in METHODS[service].items():
        assert published[method] == messages


def test_a_request_survives_the_wire():
    request = message_class(INFERENCE, "PredictionsRequest")(
        model_name="digits", input={"data": b"\x00\xff", "other": b""}
    )
    again = message_class(INFERENCE, "PredictionsRequest").FromString(request.SerializeToString())
    assert dict(again.input) == {"data": b"\x00\xff", "other": b""}
    # Field 1, length-delimited, "digits": what any other gRPC client would send.
    assert request.SerializeToString().startswith(b"\n\x06digits")


@pytest.mark.parametrize(
    ("body", "is_error"),
    [
        (b'{"code":400,"type":"ValueError","message":"m","request_id":"r"}', True),
        (b'{"code":400,"type":"ValueError","message":"m","request_id":"r","more":1}', False),
        (b'{"code":"A4","type":"t","message":"m","request_id":"r"}', False),
        (b'{"code":400', False),
        (b'{"label":"cat"}', False),
        (b"", False),
    ],
)
def test_an_error_s_body_is_told_from_an_answer(body: bytes, is_error: bool) -> None:
    assert (error_of(body) is not None) is is_error
