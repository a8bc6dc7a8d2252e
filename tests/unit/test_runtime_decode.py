"""Reading requests: every row of the contract's table of inputs, through TorchServe's own message parser.

The parts are those that TorchServe 0.12.0's frontend was seen to send for each `curl` command.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import warnings
from typing import Any

import msgpack
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlergen.runtime.codec.content import Decoded, decode
from handlergen.runtime.request import BadRequest, Files, Headers, Request, UploadedFile

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # ts/version.py leaves a file open
    from ts.protocol.otf_message_handler import _retrieve_input_data

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"
CURL = {"explain": "False", "Accept": "*/*", "User-Agent": "curl/8", "Host": "localhost:8080", "url_path": ""}


class Socket:
    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)

    def recv(self, size: int) -> bytes:
        return self.stream.read(size)


def parsed(name: str, content_type: str, content: bytes) -> Any:
    """A part's value as TorchServe's worker makes it from the frontend's message."""
    fields = (name.encode(), content_type.encode(), content)
    message = b"".join(struct.pack("!i", len(each)) + each for each in fields)
    return _retrieve_input_data(Socket(message))["value"]


def received(parts: dict[str, tuple[str, bytes]], headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `Service.retrieve_data_for_inference` makes of parts (name → type, content) and headers."""
    entry = {name: parsed(name, kind, content) for name, (kind, content) in parts.items()}
    properties: dict[str, Any] = {name: {"content-type": kind} for name, (kind, _) in parts.items()}
    properties.update(headers)
    return entry, properties


def body(content: bytes, content_type: str | None = None) -> Decoded:
    """A REST request with this body: the frontend passes the part's type without parameters."""
    headers = dict(CURL) if content_type is None else {**CURL, "Content-Type": content_type}
    mime = (content_type or "").partition(";")[0]
    return decode(*received({"body": (mime, content)}, headers))


def multipart(**parts: tuple[str, bytes]) -> Decoded:
    return decode(*received(parts, {**CURL, "Content-Type": MULTIPART}))


def form(fields: dict[str, bytes], length: int | None) -> Decoded:
    headers = {**CURL, "Content-Type": FORM}
    if length is not None:
        headers["Content-Length"] = str(length)
    return decode(*received({name: ("", value) for name, value in fields.items()}, headers))


def grpc(**entries: bytes) -> Decoded:
    return decode(*received({name: ("", value) for name, value in entries.items()}, {}))


def npy(array: Any) -> bytes:
    target = io.BytesIO()
    numpy.save(target, array)
    return target.getvalue()


class TestBody:
    @pytest.mark.parametrize(
        ("content", "content_type", "data"),
        [
            (b'{"a": [1, 2.5, null]}', "application/json", {"a": [1, 2.5, None]}),
            (b'"text"', "application/json", "text"),
            (b'{"a": 1}', "Application/JSON; charset=UTF-8", {"a": 1}),
            (b"\xef\xbb\xbf[1]", "application/json", [1]),
            (b'{"a": 1}', "application/vnd.api+json", {"a": 1}),
            ('"é"'.encode("latin-1"), "application/json; charset=latin-1", "é"),
            ('"é"'.encode("utf-16"), "application/json", "é"),
            (b'{"a": 1}', None, {"a": 1}),
            (b'{"a": 1}', "", {"a": 1}),
            (b" 17 ", None, 17),
            (b'{"a": 1', None, b'{"a": 1'),
            (b"tell me", None, b"tell me"),
            (b"\x89PNG\x00\xff", None, b"\x89PNG\x00\xff"),
            (b"", None, b""),
            (b"", "text/plain", ""),
            ("é€".encode(), "text/plain", "é€"),
            ("é€".encode(), "TEXT/html", "é€"),
            ("é".encode("latin-1"), "text/plain; charset=ISO-8859-1", "é"),
            ("Ã©".encode("latin-1"), 'text/csv; charset="latin-1"', "Ã©"),
            (b'{"a": 1}', "text/plain", '{"a": 1}'),
            (b"\xff\xd8", "image/jpeg", b"\xff\xd8"),
            (b'{"a": 1}', "application/octet-stream", b'{"a": 1}'),
            (msgpack.packb({"a": [1, b"x"], 3: None}), "application/x-msgpack", {"a": [1, b"x"], 3: None}),
        ],
    )
    def test_is_read_by_its_type(self, content: bytes, content_type: str | None, data: Any) -> None:
        decoded = body(content, content_type)
        assert decoded.data == data
        assert type(decoded.data) is type(data)
        assert decoded.files == []

    @pytest.mark.parametrize(
        ("content", "content_type", "message"),
        [
            (b'{"a": ', "application/json", "not valid JSON: Expecting value"),
            (b"", "application/json", "not valid JSON: it is empty"),
            (b'"\xff"', "application/json", "not UTF-8"),
            (b'"\xff"', "application/json; charset=utf-8", "not valid utf-8"),
            (b"9" * 5000, "application/json", "not valid JSON"),
            (b"[" * 100_000, "application/json", "nested too deeply"),
            (b"[" * 100_000, None, "nested too deeply"),
            (b"{} x", "application/problem+json", "not valid JSON: Extra data"),
            (b"\xff", "text/plain", "not valid utf-8"),
            (b"x", "text/plain; charset=klingon", "charset 'klingon' is not known"),
            (b"x", "text/plain; charset=zlib", "charset 'zlib' is not known"),
            (b"\xc1", "application/x-msgpack", "not valid msgpack"),
            (b"", "application/x-msgpack", "not valid msgpack"),
            (b"", "application/x-npy", r"not a valid \.npy"),
            (b"PK\x03\x04", "application/x-npy", r"not a valid \.npy"),
            (npy(numpy.arange(3))[:-1], "application/x-npy", "does not match its 23 bytes"),
            (npy(numpy.arange(3)).replace(b"(3,)", b"(9,)"), "application/x-npy", "does not match"),
            (npy(numpy.ones((2, 3))).replace(b"(2, 3)", b"(-2,-3)"), "application/x-npy", r"\.npy"),
            (npy(numpy.array([{}], dtype=object)), "application/x-npy", "objects"),
            (b'{"a":1}', "multipart/form-data", "boundary"),
        ],
    )
    def test_that_is_not_its_type_is_the_clients_fault(
        self, content: bytes, content_type: str | None, message: str
    ) -> None:
        with pytest.raises(BadRequest, match=message):
            body(content, content_type)

    @pytest.mark.parametrize(
        "array",
        [
            numpy.arange(6, dtype="int16").reshape(2, 3),
            numpy.asfortranarray(numpy.random.default_rng(1).random((3, 4))),
            numpy.array(2.5, dtype=">f4"),
            numpy.zeros((0, 3), dtype=bool),
            numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        ],
    )
    def test_npy_keeps_shape_type_and_order_and_can_be_written_to(self, array: Any) -> None:
        data = body(npy(array), "application/x-npy").data
        assert data.dtype == array.dtype
        assert data.shape == array.shape
        assert data.tolist() == array.tolist()
        assert data.flags.writeable

    def test_a_body_beside_query_parameters_is_the_body(self) -> None:
        parts = {"model_name": ("", b"m"), "body": ("application/json", b"[1]")}
        assert decode(*received(parts, {**CURL, "content-type": "application/json"})).data == [1]

    def test_is_the_same_when_torchserve_does_not_parse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
        assert body(b'{"a": 1}', "application/json").data == {"a": 1}
        assert body("é".encode(), "text/plain").data == "é"
        decoded = multipart(data=("application/json", b'{"a": 1}'), f=("application/json", b"{ }"))
        assert decoded.data == {"a": 1}
        assert decoded.files["f"].read() == b"{ }"


class TestMultipart:
    def test_data_and_files_in_order(self) -> None:
        decoded = multipart(
            b=("image/png", b"\x89PNG"), data=("", b'{"k": 3}'), a=("text/plain", b"hi\n"), plain=("", b"v")
        )
        assert decoded.data == {"k": 3}
        assert [(f.name, f.content_type, f.read()) for f in decoded.files] == [
            ("b", "image/png", b"\x89PNG"),
            ("a", "text/plain", b"hi\n"),
            ("plain", None, b"v"),
        ]
        assert decoded.files["a"] is decoded.files[1]

    def test_without_data_the_plain_fields_are_the_data(self) -> None:
        decoded = multipart(
            name=("", "Zoë".encode()),
            raw=("", b"\xff"),
            top=("", b"3"),
            img=("image/png", b"x"),
            j=("application/json", b'{"q": 1}'),
        )
        assert decoded.data == {"name": "Zoë", "raw": b"\xff", "top": "3"}
        assert [f.name for f in decoded.files] == ["img", "j"]
        assert json.loads(decoded.files["j"].read()) == {"q": 1}

    @pytest.mark.parametrize(
        ("kind", "content", "data"),
        [
            ("", b"[1, 2]", [1, 2]),
            ("", b"not JSON", "not JSON"),
            ("", b"\xff", b"\xff"),
            ("application/json", b'{"a": 1}', {"a": 1}),
            ("application/octet-stream", b'{"a": 1}', {"a": 1}),
            ("application/octet-stream", b"raw", b"raw"),
            ("text/plain", b"[1]", [1]),
            ("text/plain", b"words", "words"),
            ("image/png", b"[1]", b"[1]"),
            ("application/x-npy", npy(numpy.arange(2)), [0, 1]),
        ],
    )
    def test_the_part_named_data(self, kind: str, content: bytes, data: Any) -> None:
        found = multipart(data=(kind, content)).data
        assert (found.tolist() if isinstance(found, numpy.ndarray) else found) == data

    def test_without_fields(self) -> None:
        decoded = multipart(img=("image/png", b"x"))
        assert (decoded.data, len(decoded.files)) == ({}, 1)
        assert multipart() == Decoded({}, Files())
        with pytest.raises(BadRequest, match="not valid JSON"):
            multipart(data=("application/json", b"{"))

    def test_parts_named_like_headers_and_like_bodies_are_parts(self) -> None:
        headers = {**CURL, "Content-Type": MULTIPART}
        parts = {"Accept": ("text/plain", b"a"), "content-type": ("", b"b"), "body": ("image/png", b"c")}
        decoded = decode(*received(parts, headers))
        assert decoded.data == {"content-type": "b"}
        assert [f.read() for f in decoded.files] == [b"a", b"c"]


class TestForm:
    """Bodies that curl -d labels as a form. Fields and lengths as seen from TorchServe 0.12.0."""

    @pytest.mark.parametrize(
        ("fields", "length", "data"),
        [
            ({"a": b"1", "b": b"x y"}, 9, {"a": "1", "b": "x y"}),
            ({"data": b'{"a": "1+1=2&3"}'}, 41, {"a": "1+1=2&3"}),
            ({"hello": b""}, 6, {"hello": ""}),
            ({}, 0, b""),
            # JSON that arrived whole.
            ({'{"a": "x': b"1", "y": b'2"}'}, 16, {"a": "x=1&y=2"}),
            ({'{"a":"': b'"}'}, 9, {"a": "="}),
            ({'{"a":"x': b"", "y": b'2"}'}, 13, {"a": "x&y=2"}),
            ({'{"a":"x': b"", "y": b'2"}'}, 14, {"a": "x=&y=2"}),
            # JSON as a key, as later decoders leave it.
            ({'{"a": "b c"}': b""}, 12, {"a": "b c"}),
            ({'{"a": 1}': b""}, None, {"a": 1}),
            ({"hello there": b""}, 11, b"hello there"),
        ],
    )
    def test_fields(self, fields: dict[str, bytes], length: int | None, data: Any) -> None:
        assert form(fields, length).data == data

    @pytest.mark.parametrize(
        ("fields", "length"),
        [
            ({}, 8),  # {"a": 1}
            ({'{"a": "x': b"1", "y": b'3"}'}, 30),  # {"a": "x=1&y=2","b":"x=1&y=3"}
            ({'{"a": "x': b""}, 12),  # {"a": "x&z"}
            ({'{"a": "b': b'c",'}, 23),  # cut at a line break
            ({'{"a":"ab c': b'="}'}, 13),  # {"a":"ab+c=="}: base64
            ({'{"a":"%': b'"}'}, 12),  # {"a":"%25="}
        ],
    )
    def test_json_that_was_lost_or_changed_is_refused_with_what_to_send(
        self, fields: dict[str, bytes], length: int
    ) -> None:
        with pytest.raises(BadRequest, match="Content-Type: application/json"):
            form(fields, length)


class TestGrpc:
    def test_data_and_files(self) -> None:
        decoded = grpc(data=b'{"a": 1}', img=b"\x89PNG", other=b"")
        assert decoded.data == {"a": 1}
        assert [(f.name, f.content_type, f.read()) for f in decoded.files] == [
            ("img", None, b"\x89PNG"),
            ("other", None, b""),
        ]

    def test_without_data_the_whole_map(self) -> None:
        assert grpc(data=b"\x89PNG").data == b"\x89PNG"
        assert grpc(body=b"[1]", image=b"\xff") == Decoded({"body": b"[1]", "image": b"\xff"}, Files())
        assert grpc().data == {}


class TestRequest:
    def test_over_rest(self) -> None:
        _, properties = received(
            {"body": ("application/json", b"1")},
            {**CURL, "content-TYPE": "application/json; charset=utf-8", "url_path": "a/b", "X-Key": "1"},
        )
        request = Request(properties, "id-1")
        assert request.id == "id-1"
        assert request.content_type == "application/json; charset=utf-8"
        assert request.headers["x-kEY"] == "1"
        assert request.path == "a/b"
        assert not request.is_grpc
        request.metadata["kept"] = 1
        assert request.metadata == {"kept": 1}
        assert "body" not in request.headers

    def test_over_grpc(self) -> None:
        request = Request(received({"data": ("", b"1")}, {})[1], "id-2")
        assert request.is_grpc
        assert request.content_type is None
        assert request.path == ""
        assert len(request.headers) == 0

    def test_headers_show_no_values(self) -> None:
        headers = Headers({"Authorization": "Bearer secret", "part": {"content-type": "x"}})
        assert "secret" not in repr(headers)
        assert dict(headers) == {"Authorization": "Bearer secret"}
        assert headers.get("missing") is None
        with pytest.raises(KeyError):
            headers["missing"]

    def test_files_by_name_and_place(self) -> None:
        files = Files([UploadedFile(b"1", "a", "x/y"), UploadedFile(b"2", "b")])
        assert files[1] is files["b"]
        assert "a" in files
        assert "c" not in files
        assert files.get("c") is None
        assert files[:1] == [files[0]]
        with pytest.raises(BadRequest, match=r"no file named 'c' \(files sent: 'a', 'b'\)"):
            files["c"]

    def test_a_file_survives_pickling_with_its_name(self) -> None:
        copy = pickle.loads(pickle.dumps(UploadedFile(b"12", "a", "x/y")))
        assert (copy.read(), copy.name, copy.content_type) == (b"12", "a", "x/y")


class TestAnyValue:
    @settings(max_examples=200, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        )
    )
    def test_json_means_the_same_wherever_it_stands(self, value: Any) -> None:
        content = json.dumps(value).encode()
        assert body(content, "application/json").data == value
        assert body(content).data == value
        assert multipart(data=("", content)).data == value
        assert grpc(data=content).data == value

    @settings(max_examples=400, deadline=None)
    @given(
        st.tuples(
            st.sampled_from(["", " ", "\n\t", "\ufeff", "\x00", "\u2028"]),
            st.sampled_from(["1", '{"a":[1,NaN]}', '"\ud800"', '"é"', "[", "", "tru", '{"a":1,"a":2}', "1 2", "\x00"]),
            st.sampled_from(["", " \r\n\t", "\x0b", "\x00", ",", "\u00a0"]),
        ).map("".join),
        st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]),
    )
    def test_a_json_body_is_what_the_standard_library_makes_of_it(self, text: str, encoding: str) -> None:
        content = text.encode(encoding, "surrogatepass")
        expected, refused = "", ""
        try:
            expected = repr(json.loads(content))
        except ValueError as error:
            refused = str(error)
        if refused and content:
            with pytest.raises(BadRequest, match=re.escape(refused) if "codec" not in refused else "not UTF-8"):
                body(content, "application/json")
        elif content:
            assert repr(body(content, "application/json").data) == expected

    @settings(max_examples=200, deadline=None)
    @given(st.binary())
    def test_bytes_with_a_type_of_their_own_arrive_as_they_are(self, content: bytes) -> None:
        assert body(content, "application/octet-stream").data == content
        assert multipart(f=("image/png", content)).files["f"].read() == content
        assert grpc(data=b"1", f=content).files["f"].read() == content
