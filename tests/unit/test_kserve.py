"""KServe's protocols v1 and v2, recognised by the address that a request came to."""

from __future__ import annotations

import base64
import gzip
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

KSERVE = {"explain": "False"}
"""What TorchServe adds under /v1/models and /v2/models; under /predictions it adds `url_path` too."""

DOUBLE = """
def preprocess(data):
    if data == "bad":
        raise ValueError("no number")
    return data

def predict(inputs):
    if inputs == "burst":
        raise RuntimeError("secret")
    return inputs * 2

def explain(inputs, data):
    return {"because": data}
"""


def ask(served: Any, *bodies: Any, **headers: str) -> list[tuple[int, Any]]:
    requests = [(json.dumps(body).encode(), {**KSERVE, **headers}) for body in bodies]
    return [(status, json.loads(body)) for status, body in served.raw(*requests)]


def tensor(data: Any, shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_v1_predicts_each_instance_for_itself(serve_project: Callable[..., Any]) -> None:
    served = serve_project(DOUBLE)
    assert ask(served, {"instances": [1, "ab", [3]]}) == [(200, {"predictions": [2, "abab", [3, 3]]})]
    assert served.worker.describe()["predictor"]["predictions"] == 3
    assert served.worker.describe()["worker"]["requests"] == 1


def test_v1_requests_of_a_batch_beside_other_requests(serve_project: Callable[..., Any]) -> None:
    """TorchServe's own envelope reads only the first request of a batch."""
    served = serve_project(DOUBLE)
    answers = served.raw(
        (b'{"instances":[1,2]}', KSERVE),
        (b"5", {"explain": "False", "url_path": ""}),
        (b'{"instances":["bad"]}', KSERVE),
        (b'{"instances":[4]}', KSERVE),
    )
    assert [status for status, _ in answers] == [200, 200, 400, 200]
    assert [json.loads(body) for _, body in answers[:2]] == [{"predictions": [2, 4]}, 10]
    assert json.loads(answers[3][1]) == {"predictions": [8]}


def test_v1_one_bad_instance_fails_its_request_and_is_named(serve_project: Callable[..., Any]) -> None:
    served = serve_project(DOUBLE)
    ((status, body),) = ask(served, {"instances": [1, "bad", 2]})
    assert status == 400
    assert body["error"] == body["message"] == "instances[1]: no number"
    ((status, body),) = ask(served, {"instances": ["burst"]})
    assert status == 500
    assert "secret" not in json.dumps(body)


def test_v1_bytes_both_ways(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return inputs[::-1]")
    ((_, body),) = ask(served, {"instances": [{"b64": base64.b64encode(b"\x00\xff").decode()}]})
    assert body == {"predictions": [{"b64": base64.b64encode(b"\xff\x00").decode()}]}
    ((status, body),) = ask(served, {"instances": [{"b64": "%"}]})
    assert (status, body["message"]) == (400, "instances[0] is not valid base64")
    served = serve_project(
        "def predict(inputs): return {'type': type(inputs['image']).__name__, 'deep': inputs['deep']}"
    )
    columns = {"image": {"b64": "AP8="}, "deep": {"er": {"b64": "AP8="}}}
    ((_, body),) = ask(served, {"instances": [columns]})
    assert body == {"predictions": [{"type": "bytes", "deep": {"er": {"b64": "AP8="}}}]}


def test_v1_larger_than_the_batch_keeps_to_it(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return [len(inputs)] * len(inputs)", batch="list", batch_size=3)
    assert ask(served, {"instances": [0] * 7}) == [(200, {"predictions": [3, 3, 3, 3, 3, 3, 1]})]


def test_v1_answers_over_the_limit_together(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return 'a' * 60", max_response_bytes=100)
    ((status, body),) = ask(served, {"instances": [1, 2]})
    assert (status, body["type"]) == (500, "EncodeError")
    assert "max_response_size" in body["error"]


def test_v2_tensors_in_and_out(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        import torch
        def preprocess(data):
            return torch.as_tensor(data)
        def predict(inputs):
            return {"sum": inputs.sum(), "twice": inputs * 2}
        """
    )
    ((status, body),) = ask(served, {"id": "mine", "inputs": [tensor([[1, 2], [3, 4]], [2, 2])]})
    assert status == 200
    assert body == {
        "model_name": "m",
        "model_version": "1.0",
        "id": "mine",
        "outputs": [tensor([10.0], [1], name="sum"), tensor([2.0, 4.0, 6.0, 8.0], [2, 2], name="twice")],
    }
    wanted = {"inputs": [tensor([1.0], [1])], "outputs": [{"name": "twice"}]}
    ((_, body),) = ask(served, wanted)
    assert [output["name"] for output in body["outputs"]] == ["twice"]
    for outputs in ("twice", ["twice"], [{"name": "twice"}, {}]):
        ((status, body),) = ask(served, {**wanted, "outputs": outputs})
        assert (status, body["error"]) == (400, '"outputs" is a list of objects with a "name"')
    wanted["outputs"] = [{"name": "twice"}, {"name": "half"}]
    ((status, body),) = ask(served, wanted)
    assert (status, body["error"]) == (400, "The model has no output half; it has sum, twice")


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ("1", tensor([1], [1], "INT64", "x")),
        ("[True, False]", tensor([True, False], [2], "BOOL", "x")),
        ("[[1.5], [2.5]]", tensor([1.5, 2.5], [2, 1], "FP64", "x")),
        ("'text'", tensor(["text"], [1], "BYTES", "x")),
        ("['a', 'b']", tensor(["a", "b"], [2], "BYTES", "x")),
        ("[{'a': 1}]", tensor(['{"a":1}'], [1], "BYTES", "x")),
        ("[[1], [2, 3]]", tensor(["[1]", "[2,3]"], [2], "BYTES", "x")),
        ("None", tensor(["null"], [1], "BYTES", "x")),
        ("float('nan')", tensor([None], [1], "FP64", "x")),
        ("{'y': 2}", tensor([2], [1], "INT64", "y")),
    ],
)
def test_v2_answers_of_every_kind(serve_project: Callable[..., Any], answer: str, output: dict[str, Any]) -> None:
    served = serve_project(f"def predict(inputs): return {answer}")
    ((status, body),) = ask(served, {"inputs": [tensor([1], [1])]})
    assert (status, body["outputs"]) == (200, [output])


@pytest.mark.parametrize(
    ("datatype", "data", "numpy_type"),
    [
        ("BOOL", [True, False], "bool"),
        ("UINT8", [0, 255], "uint8"),
        ("INT64", [-(2**63), 2**63 - 1], "int64"),
        ("UINT64", [2**64 - 1, 0], "uint64"),
        ("FP16", [0.5, 2], "float16"),
        ("FP64", [1e300, -1], "float64"),
    ],
)
def test_v2_datatypes(serve_project: Callable[..., Any], datatype: str, data: list[Any], numpy_type: str) -> None:
    served = serve_project("def predict(inputs): return {'type': inputs.dtype.name, 'same': inputs}")
    ((_, body),) = ask(served, {"inputs": [tensor(data, [2], datatype)]})
    assert body["outputs"][0]["data"] == [numpy_type]
    assert body["outputs"][1] == {"name": "same", "shape": [2], "datatype": datatype, "data": data}


def test_v2_an_open_size_is_what_the_others_leave(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return {'shape': list(inputs.shape)}")
    ((_, body),) = ask(served, {"inputs": [tensor([1, 2, 3, 4, 5, 6], [-1, 2])]})
    assert body["outputs"][0]["data"] == [3, 2]
    served = serve_project("def predict(inputs): return inputs")
    ((_, body),) = ask(served, {"inputs": [tensor(["text"], [-1], "BYTES")]})
    assert body["outputs"][0]["data"] == ["text"]


def test_v2_text_several_inputs_and_keywords(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return sorted(inputs) + inputs['text']")
    body = {"inputs": [tensor(["a", "ü"], [2], "BYTES", "text"), tensor([1], [1], "INT8", "k")]}
    assert ask(served, body)[0][1]["outputs"][0]["data"] == ["k", "text", "a", "ü"]
    served = serve_project("def predict(text): return text", call="keywords")
    assert ask(served, {"inputs": body["inputs"][:1]})[0][1]["outputs"][0]["data"] == ["a", "ü"]


BAD_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"shape": [3]}, "inputs[0] has 2 elements, which do not fit shape [3]"),
    ({"shape": [-2, 2]}, 'inputs[0]: "shape" is a list of whole numbers'),
    ({"shape": [-1, -1]}, 'inputs[0]: "shape" has more than one -1'),
    ({"shape": [-1, 3]}, "inputs[0] has 2 elements, which do not fit shape [-1, 3]"),
    ({"shape": [10**30, 0], "data": []}, "do not fit shape"),
    ({"shape": [1] * 200 + [2]}, "do not fit shape"),
    ({"datatype": "FP128"}, "datatype 'FP128' is not one of BOOL, INT8"),
    ({"datatype": "INT8", "data": [1, 300]}, 'inputs[0]: "data" is not INT8'),
    ({"datatype": "INT8", "data": [1, 1.5]}, 'inputs[0]: "data" is not INT8'),
    ({"datatype": "BOOL"}, 'inputs[0]: "data" is not BOOL'),
    ({"data": ["a", "b"]}, 'inputs[0]: "data" is not FP32'),
    ({"data": [[1], [2, 3]]}, 'inputs[0]: "data" is not FP32'),
    ({"data": [None, {}]}, 'inputs[0]: "data" is not FP32'),
    ({"datatype": "BYTES"}, 'inputs[0]: "data" is not BYTES'),
    ({"name": 3}, 'inputs[0] has no "name"'),
]


def test_v2_tensors_that_are_none(serve_project: Callable[..., Any]) -> None:
    served = serve_project(DOUBLE)
    for change, message in BAD_TENSORS:
        bad, good = ask(served, {"inputs": [{**tensor([1, 2], [2]), **change}]}, {"inputs": [tensor([1], [1])]})
        assert bad[0] == 400, change
        assert message in bad[1]["error"]
        assert good[0] == 200, change


def test_what_is_neither_protocol(serve_project: Callable[..., Any]) -> None:
    served = serve_project(DOUBLE)
    for body in ({}, [], 1, "x", {"instances": 3}, {"instances": []}, {"inputs": []}, {"inputs": {"a": 1}}):
        ((status, answer),) = ask(served, body)
        assert status == 400
        assert set(answer) == {"error", "code", "type", "message", "request_id"}


def test_a_kserve_body_under_predictions_is_the_module_s_own(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(inputs): return inputs")
    body = {"instances": [1]}
    assert ask(served, body, url_path="") == [(200, body)]


@pytest.mark.parametrize(("version", "body_decides"), [("0.9.0", True), ("0.11.1", True), ("0.12.0", False)])
def test_before_torchserve_0_12_the_body_decides(
    serve_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, version: str, body_decides: bool
) -> None:
    """Those versions send the same headers under `/predictions` and under KServe's addresses."""
    served = serve_project("def preprocess(data): return data\n\ndef predict(inputs): return inputs\n")
    monkeypatch.setitem(sys.modules, "ts", SimpleNamespace(__version__=version))
    own = ([1], {"instances": 1}, {"inputs": ["text"]}, {"inputs": []}, {"inputs": [{"name": "x", "shape": [1]}]})
    assert [status for status, _ in ask(served, *own)] == [200 if body_decides else 400] * len(own)
    if body_decides:
        assert [answer for _, answer in ask(served, *own)] == list(own)
    packed = gzip.compress(b'{"instances":[1]}')
    answers = served.raw((packed, {**KSERVE, "content-encoding": "gzip"}), (b'{"instances":[2]}', KSERVE))
    assert [json.loads(body) for _, body in answers] == [{"predictions": [1]}, {"predictions": [2]}]
    assert ask(served, {"inputs": [tensor([1.5], [1])]})[0][1]["outputs"][0]["data"] == [1.5]
    assert ask(served, {"instances": [1]}, url_path="") == [(200, {"instances": [1]})]  # the client's own header
    (status, answer), (broken, message) = served.raw(
        (b"no JSON", KSERVE), (packed, {**KSERVE, "content-encoding": "br"})
    )
    assert (status, broken) == (400, 415)
    assert ("error" in json.loads(answer), "error" in json.loads(message)) == (not body_decides, not body_decides)


def test_explanations_by_both_protocols(serve_project: Callable[..., Any]) -> None:
    served = serve_project(DOUBLE)
    explanations = [{"because": 1}, {"because": 2}]
    assert ask(served, {"instances": [1, 2]}, explain="True") == [(200, {"explanations": explanations})]
    ((status, body),) = ask(served, {"inputs": [tensor([7], [1], "INT32")]}, explain="True")
    assert (status, body["outputs"]) == (200, [tensor([7], [1], "INT32", "because")])
    served = serve_project("def predict(inputs): return inputs")
    ((status, body),) = ask(served, {"instances": [1]}, explain="True")
    assert (status, body["error"]) == (501, body["message"])
