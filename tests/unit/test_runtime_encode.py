"""Encoding answers: every row of the contract's table of answers, with orjson and without."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import io
import json
import math
import pathlib
import re
import threading
import types
import uuid
from typing import Any, NamedTuple

import numpy
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from handlergen.runtime.codec import encode as encoding
from handlergen.runtime.codec.encode import Encoded, encode
from handlergen.runtime.codec.errors import EncodeError

NAN, INF = math.nan, math.inf


@pytest.fixture(params=["orjson", "standard library"], autouse=True)
def _encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "orjson":
        monkeypatch.setattr(encoding, "orjson", None)


@dataclasses.dataclass
class Box:
    corner: tuple[int, int]
    _note: str = "n"
    inner: Any = None


class Label(pydantic.BaseModel):
    name: str
    when: datetime.date | None = None
    score: float = 0.5


class Foreign(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    array: numpy.ndarray


class Colour(enum.Enum):
    RED = "red"
    BOTH = (1, NAN)


class Text(str, enum.Enum):
    A = "a"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Answer:
    status_code: Any
    body: Any
    headers: Any = None
    media_type: str | None = None


UTC = datetime.timezone.utc
CASES: list[tuple[Any, str]] = [
    ({"a": [1, 2.5, None, True, "é€\u2028\x7f"]}, '{"a":[1,2.5,null,true,"é€\u2028\x7f"]}'),
    ("text", '"text"'),
    (None, "null"),
    ((1, (2,)), "[1,[2]]"),
    ([0.1, 1e16, 1e22, -0.0, 123456789012345680.0], "[0.1,1e+16,1e+22,-0.0,1.2345678901234568e+17]"),
    (2**70, str(2**70)),
    ({1: "a", 2.5: "b", None: "c", False: "d"}, '{"1":"a","2.5":"b","null":"c","false":"d"}'),
    ({Text.A: 1, Colour.RED: 2, Level.HIGH: 3, numpy.int64(4): 4}, '{"a":1,"red":2,"3":3,"4":4}'),
    ({datetime.date(2020, 1, 2): uuid.UUID(int=1)}, '{"2020-01-02":"00000000-0000-0000-0000-000000000001"}'),
    ("lone \ud800", '"lone \\ud800"'),
    ({"\udfff": ["\ud800"]}, '{"\\udfff":["\\ud800"]}'),
    # NaN at any depth
    (NAN, "null"),
    ([1.0, NAN, [INF, {"a": -INF}]], '[1.0,null,[null,{"a":null}]]'),
    ({"a": Colour.BOTH}, '{"a":[1,null]}'),
    # numpy
    (numpy.arange(4).reshape(2, 2), "[[0,1],[2,3]]"),
    (numpy.arange(200, dtype=">i2"), json.dumps(list(range(200)), separators=(",", ":"))),
    (numpy.asfortranarray(numpy.arange(100.0).reshape(2, 50))[:, ::49], "[[0.0,49.0],[50.0,99.0]]"),
    (numpy.array([1.5, NAN, INF]), "[1.5,null,null]"),
    (numpy.array(NAN), "null"),
    (numpy.array(3), "3"),
    (numpy.zeros((2, 0)), "[[],[]]"),
    (numpy.array([0.1], dtype="float32"), "[0.10000000149011612]"),
    (numpy.array([0.5], dtype="float16"), "[0.5]"),
    (numpy.array([0.5], dtype="longdouble"), "[0.5]"),
    (numpy.float32(0.1), "0.10000000149011612"),
    ({"a": numpy.float64(1.5), "b": numpy.int8(3), "c": numpy.bool_(True)}, '{"a":1.5,"b":3,"c":true}'),
    ([numpy.float32(NAN), numpy.float64(NAN)], "[null,null]"),
    (numpy.array([True, False]), "[true,false]"),
    (numpy.array(["a", "b"]), '["a","b"]'),
    (numpy.array([{"a": numpy.float32(0.5)}, None], dtype=object), '[{"a":0.5},null]'),
    (numpy.array(["2020-01-01", "NaT"], dtype="M8[D]"), '["2020-01-01",null]'),
    (numpy.datetime64("2020-01-01T00:00:01.5"), '"2020-01-01T00:00:01.500"'),
    (numpy.timedelta64(1500, "ms"), "1.5"),
    (numpy.ma.masked_array([1.0, 2.0], mask=[True, False]), "[null,2.0]"),
    # tensors
    (torch.tensor(2), "2"),
    (torch.tensor(0.5, requires_grad=True), "0.5"),
    (torch.tensor([True]), "[true]"),
    (torch.tensor([0.1], dtype=torch.bfloat16), "[0.10009765625]"),
    (torch.tensor([1.5, NAN]), "[1.5,null]"),
    (torch.nn.Parameter(torch.ones(2)), "[1.0,1.0]"),
    (torch._neg_view(torch.ones(2)), "[-1.0,-1.0]"),
    (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "[[1.0],[1.0,1.0]]"),
    (torch.eye(2).to_sparse(), "[[1.0,0.0],[0.0,1.0]]"),
    (torch.arange(6).reshape(2, 3).T, "[[0,3],[1,4],[2,5]]"),
    (torch.ones(2).to(torch.float8_e4m3fn), "[1.0,1.0]"),
    ({"a": [torch.tensor([1]), {"b": torch.tensor(2.0)}]}, '{"a":[[1],{"b":2.0}]}'),
    (torch.max(torch.tensor([[1, 3]]), 1), "[[3],[1]]"),
    (torch.Size([1, 2]), "[1,2]"),
    # other types
    (Box((1, 2), inner=Box((3, 4))), '{"corner":[1,2],"_note":"n","inner":{"corner":[3,4],"_note":"n","inner":null}}'),
    (Label(name="x", when=datetime.date(2020, 1, 2)), '{"name":"x","when":"2020-01-02","score":0.5}'),
    ([Label(name="x", score=NAN)], '[{"name":"x","when":null,"score":null}]'),
    (Foreign(array=numpy.ones(2)), '{"array":[1.0,1.0]}'),
    (pydantic.RootModel[list[int]]([1]), "[1]"),
    (datetime.datetime(2020, 1, 2, 3, 4, 5, 6, UTC), '"2020-01-02T03:04:05.000006+00:00"'),
    ([datetime.time(1, 2), datetime.timedelta(seconds=90)], '["01:02:00",90.0]'),
    ([Colour.RED, Text.A, Level.HIGH], '["red","a",3]'),
    (pathlib.PurePosixPath("a/b"), '"a/b"'),
    ([decimal.Decimal("1.50"), decimal.Decimal("1e3"), decimal.Decimal("NaN")], "[1.5,1000,null]"),
    ({"s": {3, 1, 2}, "f": frozenset("a"), "d": collections.deque([1])}, '{"s":[1,2,3],"f":["a"],"d":[1]}'),
    ([Point(1, 2), range(2), {"a": 1}.keys()], '[[1,2],[0,1],["a"]]'),
    (types.MappingProxyType({"a": collections.OrderedDict(b=1)}), '{"a":{"b":1}}'),
    (collections.UserDict(a=collections.Counter("a")), '{"a":{"a":1}}'),
]


class TestJson:
    @pytest.mark.parametrize(("answer", "text"), CASES, ids=lambda value: type(value).__name__)
    def test_has_one_compact_text(self, answer: Any, text: str) -> None:
        assert encode(answer) == Encoded(text.encode("utf-8", "surrogatepass"), "application/json")

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ({"a": [1, {"b": b"x"}]}, r"answer\['a'\]\[1\]\['b'\] is of type bytes; encode it as text"),
            (object(), "answer is of type object"),
            ([(x for x in ())], r"answer\[0\] is of type generator; return a list"),
            ({"z": 1j}, r"answer\['z'\] is of type complex"),
            ({"z": numpy.ones(2, complex)}, r"answer\['z'\] is a ndarray that cannot be converted"),
            ({"z": torch.ones(100, dtype=torch.complex64)}, r"answer\['z'\] is a Tensor that cannot be converted"),
            ({"m": torch.ones(2, device="meta")}, r"answer\['m'\] is a Tensor that cannot be converted"),
            ({"n": numpy.array([b"x"])}, r"answer\['n'\]\[0\] is of type bytes"),
            ({"k": {(1, 2): 3}}, r"answer\['k'\] has a key of type tuple"),
            ({"k": {b"b": 3}}, r"answer\['k'\] has a key of type bytes"),
            ({"image": Image.new("L", (1, 1))}, r"answer\['image'\] is of type PIL.Image.Image; return the image"),
            ([threading.Lock()], r"answer\[0\] is of type _thread.lock"),
            ([10**5000], r"answer\[0\] is a number of too many digits"),
            ({"t": int}, r"answer\['t'\] is of type type"),
            ({"k" * 100: b""}, r"answer\['k{37}\.\.\.'\]"),
        ],
        ids=lambda value: None,
    )
    def test_names_type_and_place_of_what_it_cannot_hold(self, answer: Any, message: str) -> None:
        with pytest.raises(EncodeError, match=message):
            encode(answer)

    def test_names_where_a_circle_closes(self) -> None:
        circle: dict[str, Any] = {"a": []}
        circle["a"].append(circle)
        with pytest.raises(EncodeError, match=r"answer\['a'\]\[0\] is a dict that contains itself"):
            encode(circle)
        box = Box((1, 2))
        box.inner = [box]
        with pytest.raises(EncodeError, match=r"answer\['inner'\]\[0\] is a Box that contains itself"):
            encode(box)

    def test_the_same_value_twice_is_no_circle(self) -> None:
        shared = [NAN]
        assert encode([shared, shared]).body == b"[[null],[null]]"

    def test_nesting(self) -> None:
        def nested(depth: int) -> list[Any]:
            value: list[Any] = [NAN]
            for _ in range(depth):
                value = [value]
            return value

        assert encode(nested(240)).body.count(b"[") == 241
        with pytest.raises(EncodeError, match="nested deeper than 250 levels"):
            encode(nested(100_000))

    def test_a_conversion_that_fails_shows_no_values(self) -> None:
        class Secretive(pydantic.BaseModel):
            def model_dump(self, **_: Any) -> Any:
                raise RuntimeError("token=hunter2")

        with pytest.raises(EncodeError, match="Secretive that cannot be converted") as caught:
            encode({"a": Secretive()})
        assert "hunter2" not in str(caught.value)
        assert isinstance(caught.value.__cause__, RuntimeError)

    @pytest.mark.parametrize("size", [3, 1000])
    def test_nan_can_be_refused(self, size: int) -> None:
        array = numpy.zeros(size)
        assert encode({"a": array, "b": None}, nan="error").body.endswith(b'0.0],"b":null}')
        array[2] = NAN
        with pytest.raises(EncodeError, match=r"answer\['a'\]\[2\] is nan.*nan: error"):
            encode({"a": array}, nan="error")
        with pytest.raises(EncodeError, match="answer is inf"):
            encode(INF, nan="error")

    def test_several_large_arrays_keep_their_places(self) -> None:
        first, second = numpy.arange(500), torch.linspace(0, 1, 300)
        answer = {"a": first, "b": "\0[", "c": [second, first[:70]]}
        assert json.loads(encode(answer).body) == {
            "a": first.tolist(),
            "b": "\0[",
            "c": [second.tolist(), first[:70].tolist()],
        }


class TestOther:
    @pytest.mark.parametrize("answer", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
    def test_bytes_stay(self, answer: Any) -> None:
        encoded = encode(answer)
        assert encoded == Encoded(b"\x00\xff", "application/octet-stream")
        assert type(encoded.body) is bytes

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "F", "HSV"])
    def test_images_become_png(self, mode: str) -> None:
        encoded = encode(Image.new(mode, (3, 2)))
        assert encoded.content_type == "image/png"
        copy = Image.open(io.BytesIO(encoded.body))
        assert (copy.format, copy.size) == ("PNG", (3, 2))

    def test_an_answer_over_the_limit_is_refused_with_both_sizes(self) -> None:
        assert encode("x" * 8, limit=10).body == b'"xxxxxxxx"'
        with pytest.raises(EncodeError, match="has 11 bytes; the server sends at most 10"):
            encode("x" * 9, limit=10)
        with pytest.raises(EncodeError, match="at most 1 "):
            encode(b"12", limit=1)


class TestResponse:
    @pytest.mark.parametrize(
        ("answer", "encoded"),
        [
            (Answer(200, b"x"), Encoded(b"x", "application/octet-stream")),
            (Answer(201, "é", media_type="text/html"), Encoded("é".encode(), "text/html", 201)),
            (Answer(418, "short"), Encoded(b"short", "text/plain; charset=utf-8", 418)),
            (Answer(200, {"a": NAN}), Encoded(b'{"a":null}', "application/json")),
            (Answer(200, None), Encoded(b"", "text/plain; charset=utf-8")),
            (Answer(204, b"ignored"), Encoded(b"", "text/plain; charset=utf-8", 204)),
            (
                Answer(200, b"x", {"Content-Type": "a/b", "X-One": 1, "content-length": "9", "Bad Name": "x"}),
                Encoded(b"x", "a/b", 200, {"X-One": "1"}),
            ),
            (
                Answer(200, b"x", [(b"x-a", b"1"), (b"X-A", b"2"), (b"Set-Cookie", b"3"), (b"set-cookie", b"4")]),
                Encoded(b"x", "application/octet-stream", 200, {"x-a": "1, 2", "Set-Cookie": "4"}),
            ),
            (
                Answer(200, b"x", {"X-Split": "a\r\nX-Evil: 1", "X-Uni": "naïve €", "ts_stream_next": "true"}),
                Encoded(b"x", "application/octet-stream", 200, {"X-Split": "a X-Evil: 1", "X-Uni": "na?ve ?"}),
            ),
            (Answer(200, b"x", media_type="text/plain\r\nX-Evil: é"), Encoded(b"x", "text/plain X-Evil: ?")),
        ],
    )
    def test_brings_its_status_and_headers(self, answer: Answer, encoded: Encoded) -> None:
        assert encode(answer) == encoded

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (Answer(99, b""), "status 99"),
            (Answer(600, b""), "status 600"),
            (Answer(200, {"a": object()}), r"answer\['a'\] is of type object"),
            (Answer(200, b"", [1]), "headers of Answer"),
        ],
    )
    def test_that_cannot_be_sent(self, answer: Answer, message: str) -> None:
        with pytest.raises(EncodeError, match=message):
            encode(answer)

    def test_a_dataclass_without_both_is_data(self) -> None:
        assert encode(Answer("ok", b"".decode())).body.startswith(b'{"status_code":"ok"')


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.booleans(), inner, max_size=5)
    ),
    max_leaves=30,
)
SCALARS = st.sampled_from([numpy.float32(0.1), numpy.array([NAN, 1]), torch.tensor([0.5]), b"x", Colour.RED])
ODD = SCALARS | st.builds(object) | st.datetimes() | st.decimals() | st.uuids() | st.complex_numbers()
ANYTHING = st.recursive(
    PLAIN | ODD,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.dates() | st.binary(max_size=1), inner, max_size=3)
        | st.builds(Box, st.just((1, 2)), inner=inner)
    ),
    max_leaves=12,
)


def strict(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def nulls(value: Any) -> Any:
    """What a JSON reader should get back of plain data."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): nulls(item) for key, item in value.items()}
    return [nulls(item) for item in value] if isinstance(value, list | tuple) else value


SMALL_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.]*e-\d+|-?0\.0000\d+')


def one_spelling(text: bytes) -> bytes:
    """Numbers below 0.0001 as Python writes them: the one place where the two encoders' texts differ."""
    return SMALL_NUMBER.sub(lambda m: m[0] if m[0][:1] == b'"' else repr(float(m[0])).encode(), text)


class TestAnything:
    @settings(max_examples=300, deadline=None)
    @given(PLAIN)
    def test_plain_data_comes_back(self, value: Any) -> None:
        read = json.loads(encode(value).body, parse_constant=strict)
        assert read == nulls(value)

    @settings(max_examples=300, deadline=None)
    @given(ANYTHING)
    def test_is_encoded_or_refused_alike_with_and_without_orjson(self, value: Any) -> None:
        results = []
        for library in (encoding.importlib.import_module("orjson"), None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(encoding, "orjson", library)
                try:
                    body = encode([value]).body
                except EncodeError as error:
                    results.append(str(error).encode())
                else:
                    json.loads(body, parse_constant=strict)
                    results.append(one_spelling(body))
        assert results[0] == results[1]
