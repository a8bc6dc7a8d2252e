"""KServe v2's binary tensors, in requests and answers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from handlergen.runtime.codec.kserve_v2 import read_body, read_inputs

SIZE = "Inference-Header-Content-Length"
ECHO = "def predict(inputs): return inputs"

TRITON_HEAD = (
    b'{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
    b'{"name":"text","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}},'
    b'{"name":"half","shape":[2],"datatype":"BF16","parameters":{"binary_data_size":4}},'
    b'{"name":"n","shape":[1],"datatype":"INT64","data":[7]}],"parameters":{"binary_data_output":true}}'
)
TRITON_TENSORS = b"\x00\x00\xc0?\x00\x00\x00\xc0\x01\x00\x00\x00a\x02\x00\x00\x00\xc3\xbc\xc0?\x00\xc0"
"""What tritonclient.http 2.73.0 sends (`InferenceServerClient.generate_request_body`), byte for byte."""


def tensor(size: int, shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


def request(head: Any, tensors: bytes, **headers: str) -> tuple[bytes, dict[str, str]]:
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    return head + tensors, {"explain": "False", "content-type": "", SIZE.lower(): str(len(head)), **headers}


def ask(served: Any, head: Any, tensors: bytes, **headers: str) -> tuple[int, Any, bytes]:
    """The answer's status, JSON and binary tensors."""
    ((status, body),) = served.raw(request(head, tensors, **headers))
    size = int(served.context.headers[0].get(SIZE, len(body)))
    binary = served.context.headers[0]["content-type"] == "application/octet-stream"
    assert binary == (SIZE in served.context.headers[0])
    return status, json.loads(body[:size]), body[size:]


def test_a_request_of_tritonclient(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        def predict(inputs):
            kinds = [type(each).__name__ + str(getattr(each, "dtype", "")) for each in inputs.values()]
            return {**inputs, "kinds": kinds}
        """
    )
    kinds = b"".join(
        len(kind).to_bytes(4, "little") + kind
        for kind in (b"ndarrayfloat32", b"list", b"Tensortorch.bfloat16", b"ndarrayint64")
    )
    status, answer, tensors = ask(served, TRITON_HEAD, TRITON_TENSORS)
    assert (status, answer["id"]) == (200, "7")
    assert answer["outputs"] == [
        *(tensor(8, [1, 2]), tensor(11, [2], "BYTES", "text"), tensor(4, [2], "BF16", "half")),
        *(tensor(8, [1], "INT64", "n"), tensor(len(kinds), [4], "BYTES", "kinds")),
    ]
    assert tensors == TRITON_TENSORS + (7).to_bytes(8, "little") + kinds


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(-3, 3).astype(name).reshape(2, 3) for name in ("int8", "int16", "int32", "int64")),
        *(np.arange(6).astype(name).reshape(2, 3) for name in ("uint8", "uint16", "uint32", "uint64")),
        *(np.array([0.5, np.inf, np.nan], name) for name in ("float16", "float32", "float64")),
        *(np.array([True, False]), np.zeros((0, 3), "float32")),
    ],
    ids=lambda array: array.dtype.name,
)
def test_numbers_of_every_type(serve_project: Callable[..., Any], array: Any) -> None:
    served = serve_project(
        """
        def predict(inputs):
            assert inputs.flags.writeable and inputs.flags.aligned and inputs.dtype.isnative
            return inputs[::-1]
        """
    )
    kinds = {"b": "BOOL", "i": f"INT{array.itemsize * 8}", "u": f"UINT{array.itemsize * 8}"}
    datatype = kinds.get(array.dtype.kind, f"FP{array.itemsize * 8}")
    entry = tensor(array.nbytes, list(array.shape), datatype)
    for blanks in range(2):  # so that an address is unaligned
        head = {"inputs": [entry], "parameters": {"binary_data_output": True, " " * blanks: 0}}
        status, answer, tensors = ask(served, head, array.tobytes())
        assert (status, answer["outputs"], tensors) == (200, [entry], array[::-1].tobytes())


def test_arrays_are_over_the_request_s_own_bytes() -> None:
    body, headers = request({"inputs": [tensor(4, [4], "UINT8")]}, b"\1\2\3\4")
    owned = bytearray(body)
    value, tensors = read_body({"body": owned}, headers)
    read_inputs(value["inputs"], tensors, keywords=False)[0] = 9
    assert owned[-4:] == b"\x09\2\3\4"


def test_which_outputs_are_binary(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return {'a': inputs, 'b': ['ü', b'\\xff'], 'c': 1}")
    inputs = {"inputs": [tensor(2, [2], "INT8")]}
    binary, no = {"binary_data": True}, {"binary_data": False}
    wanted = [{"name": "b", "parameters": binary}, {"name": "c"}, {"name": "a", "parameters": binary}]
    status, answer, tensors = ask(served, {**inputs, "outputs": wanted}, b"\1\2")
    assert (status, [each["name"] for each in answer["outputs"]]) == (200, ["b", "c", "a"])
    assert answer["outputs"][1] == {"name": "c", "shape": [1], "datatype": "INT64", "data": [1]}
    assert tensors == b"\2\0\0\0\xc3\xbc\1\0\0\0\xff\1\2"
    some = {"outputs": [{"name": "a", "parameters": no}, {"name": "c"}], "parameters": {"binary_data_output": True}}
    status, answer, tensors = ask(served, {**inputs, **some}, b"\1\2")
    assert (answer["outputs"][0]["data"], tensors) == ([1, 2], (1).to_bytes(8, "little"))
    status, answer, tensors = ask(served, {**inputs, "outputs": [{"name": "a"}]}, b"\1\2")
    assert (answer["outputs"][0]["data"], tensors) == ([1, 2], b"")
    status, answer, tensors = ask(served, inputs, b"\1\2")  # all outputs, as JSON
    assert (status, "ask for binary data" in answer["error"]) == (500, True)


def test_bytes_are_text_where_all_are_utf_8(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return repr(inputs)")
    text, picture = b"\1\0\0\0a\0\0\0\0", b"\1\0\0\0a\1\0\0\0\xff"
    assert ask(served, {"inputs": [tensor(9, [2, 1], "BYTES")]}, text)[1]["outputs"][0]["data"] == ["[['a'], ['']]"]
    assert ask(served, {"inputs": [tensor(10, [2], "BYTES")]}, picture)[1]["outputs"][0]["data"] == [r"[b'a', b'\xff']"]
    served = serve_project("import numpy\n\ndef predict(inputs): return numpy.array([['a'], ['ü']])")
    head = {"inputs": [tensor(0, [0], "BYTES")], "parameters": {"binary_data_output": True}}
    status, answer, tensors = ask(served, head, b"")
    assert (status, answer["outputs"][0]["shape"], tensors) == (200, [2, 1], b"\1\0\0\0a\2\0\0\0\xc3\xbc")


def test_a_compressed_body(serve_project: Callable[..., Any]) -> None:
    served = serve_project(ECHO)
    body, headers = request(TRITON_HEAD, TRITON_TENSORS, **{"content-encoding": "gzip"})
    ((status, answer),) = served.raw((gzip.compress(body), headers))
    assert (status, answer[int(served.context.headers[0][SIZE]) :][:23]) == (200, TRITON_TENSORS)


MALFORMED: list[tuple[Any, bytes, str]] = [
    ([tensor(8, [2])], bytes(7), 'inputs[0]: "binary_data_size" is 8; it must be a whole number, at most 7'),
    ([tensor(8, [2])], bytes(9), "The body goes on after the last tensor; bytes left: 1"),
    ([tensor(4, [1]), tensor(8, [2], name="y")], bytes(8), 'inputs[1]: "binary_data_size" is 8'),
    ([tensor(-1, [2])], bytes(8), '"binary_data_size" is -1'),
    ([{**tensor(0, [2]), "parameters": {"binary_data_size": "8"}}], bytes(8), "\"binary_data_size\" is '8'"),
    ([tensor(7, [2])], bytes(7), '"binary_data_size" is 7; it must be a multiple of 4, the size of FP32'),
    ([tensor(8, [3])], bytes(8), "inputs[0] has 2 elements, which do not fit shape [3]"),
    ([tensor(8, [2], "FP8")], bytes(8), "datatype 'FP8' is not one of"),
    ([{**tensor(8, [2]), "data": [1, 2]}], bytes(8), 'inputs[0] must have either "data" or, in its "parameters"'),
    ([tensor(5, [1], "BYTES")], b"\2\0\0\0a", "element 0 of its BYTES does not end within the tensor's bytes"),
    ([tensor(8, [2], "BYTES")], b"\1\0\0\0a\0\0\0", "element 1 of its BYTES does not end"),
]


def test_malformed_tensors(serve_project: Callable[..., Any]) -> None:
    served = serve_project(ECHO)
    for inputs, tensors, message in MALFORMED:
        bad, good = served.raw(request({"inputs": inputs}, tensors), request({"inputs": [tensor(8, [2])]}, bytes(8)))
        assert (bad[0], good[0]) == (400, 200), message
        assert message in json.loads(bad[1])["error"]


def test_malformed_sizes_of_the_json(serve_project: Callable[..., Any]) -> None:
    served = serve_project(ECHO)
    for size in ("0", "-1", "1e1", "²", "9" * 5000, "10000"):
        status, answer, _ = ask(served, {"inputs": [tensor(8, [2])]}, bytes(8), **{SIZE.lower(): size})
        assert (status, "it must be the size in bytes of the JSON" in answer["error"]) == (400, True), size
    status, answer, _ = ask(served, {"inputs": [tensor(8, [2])]}, bytes(8), **{SIZE.lower(): "20"})
    assert (status, "not valid JSON" in answer["error"]) == (400, True)
    ((status, body),) = served.raw((json.dumps({"inputs": [tensor(8, [2])]}).encode(), {"explain": "False"}))
    assert (status, "has no header" in json.loads(body)["error"]) == (400, True)
