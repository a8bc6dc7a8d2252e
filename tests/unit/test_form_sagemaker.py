"""The form `sagemaker`: what the toolkit's functions are called with, and its defaults for missing ones."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.runtime.codec.content import decode
from handlergen.runtime.forms.sagemaker import default_input, default_output, received
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.request import Request

# TorchScript is deprecated since torch 2.13, and what the toolkit's default loads.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Serve = Callable[..., Any]

MODEL_FN = "def model_fn(model_dir):\n    return lambda x: x * 2\n"


def problems(directory: Path, text: str, **settings: Any) -> str:
    (directory / "inference.py").write_text(textwrap.dedent(text))
    with pytest.raises(ContractError) as refused:
        open_project(directory / "inference.py", overrides=settings, environ={})
    return "\n".join(str(problem) for problem in refused.value.problems)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """`model.pth`: (N, 2) to (N, 1), the row's sum."""
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data.fill_(1)
    traced: Any = torch.jit.trace(linear, torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, tmp_path / "model.pth")  # type: ignore[no-untyped-call]
    return tmp_path / "model.pth"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def model_fn(): ...", "model_fn takes 0 parameters, not 1 or 2"),
        (MODEL_FN + "def output_fn(prediction, accept):\n    yield 1", "output_fn is a generator"),
    ],
)
def test_what_is_wrong_with_a_function(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, text)


def test_the_default_model_fn_loads_torchscript_only(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "model.pt")
    found = problems(tmp_path, "def input_fn(d, c): ...", weights="model.pt")
    assert "its default loads TorchScript: the weights model.pt have the format state_dict" in found


ECHO = """
    from types import SimpleNamespace
    calls = []
    def model_fn(model_dir, context):
        return {"dir": model_dir, "gpu": context.system_properties["gpu_id"]}
    def input_fn(request_body, request_content_type):
        return [type(request_body).__name__, request_body, request_content_type]
    def predict_fn(data, model):
        return [*data, model]
    def output_fn(prediction, accept):
        return str([*prediction, accept])
    """


@pytest.mark.parametrize(
    ("body", "headers", "seen"),
    [
        ({"a": 1}, {"content-type": "application/json"}, ["str", '{"a": 1}', "application/json"]),
        ({"a": 1}, {"content-type": "application/json; charset=utf-8"}, ["str", '{"a": 1}']),
        ("1,2\n", {"content-type": "text/csv"}, ["str", "1,2\n", "text/csv"]),
        ("text", {"content-type": "text/plain"}, ["bytes", b"text", "text/plain"]),
        (bytearray(b"\xff\x00"), {"content-type": "image/jpeg"}, ["bytes", b"\xff\x00", "image/jpeg"]),
    ],
)
def test_the_body_and_its_type(
    tmp_path: Path, serve_project: Serve, body: Any, headers: dict[str, str], seen: list[Any]
) -> None:
    ((status, answer),) = serve_project(ECHO).raw((body, headers))
    assert status == 200
    found = eval(answer)
    assert found[: len(seen)] == seen
    assert found[3] == {"dir": str(tmp_path), "gpu": None}
    assert found[4] == "application/json"


@pytest.mark.parametrize(
    ("entry", "headers", "seen"),
    [
        ({"data": bytearray(b'{"a": 1}')}, {}, ('{"a": 1}', "application/json")),  # gRPC has no headers
        ({"data": bytearray(b"\xff")}, {}, (b"\xff", "application/octet-stream")),
        ({"body": bytearray(b"[1]")}, {"host": "h"}, ("[1]", "application/json")),
        (
            {'{"a": 1}': bytearray(b"")},
            {"host": "h", "content-type": "application/x-www-form-urlencoded"},
            ('{"a": 1}', "application/json"),
        ),
        (
            {"image": bytearray(b"x"), "n": bytearray(b"1")},
            {"host": "h", "content-type": "multipart/form-data; boundary=b", "image": {"content-type": "image/png"}},
            ({"image": b"x", "n": "1"}, "multipart/form-data; boundary=b"),
        ),
    ],
)
def test_bodies_without_a_type_of_their_own(entry: Any, headers: dict[str, str], seen: Any) -> None:
    item = Item(0, entry, headers, Request(headers, "r0"))
    decoded = decode(entry, headers)
    item.data, item.files = decoded.data, decoded.files
    assert received(item) == seen


@pytest.mark.parametrize(
    ("accept", "seen", "content_type"),
    [
        (None, "application/json", "application/json"),
        ("*/*", "application/json", "application/json"),
        ("text/csv", "text/csv", "text/csv"),
        ("text/csv;q=0.9, */*", "text/csv;q=0.9, */*", "text/csv"),
    ],
)
def test_accept_reaches_output_fn_and_names_the_answers_type(
    serve_project: Serve, accept: str | None, seen: str, content_type: str
) -> None:
    model = serve_project(MODEL_FN + "def output_fn(prediction, accept):\n    return accept\n")
    ((status, answer),) = model.raw(([1.0], {"accept": accept} if accept else {}))
    assert (status, answer) == (200, seen.encode())
    assert model.context.headers[0]["content-type"] == content_type


def test_the_accept_of_the_environment(serve_project: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv")
    ((_, answer),) = serve_project(MODEL_FN).raw(([[1.0, 2.0]], {}))
    assert answer == b"2.0,4.0\n"


@pytest.mark.parametrize("prefix", ["", "async "])
def test_output_fn_may_name_the_type_and_set_status_and_headers(serve_project: Serve, prefix: str) -> None:
    model = serve_project(
        MODEL_FN
        + textwrap.dedent(f"""
        {prefix}def output_fn(prediction, accept, context):
            context.set_response_header(0, "x-seen", context.get_request_header(0, "X-Trace"))
            context.set_response_status(code=202, phrase="Accepted", idx=0)
            return b"PNG", "image/png"
        """)
    )
    ((status, answer),) = model.raw(([1.0], {"x-trace": "t1"}))
    assert (status, answer) == (202, b"PNG")
    assert model.context.headers[0] == {"content-type": "image/png", "x-seen": "t1"}


def test_every_function_may_take_the_context(serve_project: Serve) -> None:
    model = serve_project("""
        order = []
        def pre_model_fn(model_dir):
            order.append("pre_model_fn")
        def model_fn(model_dir, context):
            order.append("model_fn")
            return 10
        def model_warmup_fn(model_dir, model, context):
            order.append(f"warmup {model}")
        def input_fn(data, content_type, context):
            return float(data) + context.config["add"]
        def predict_fn(data, model, context):
            return data * model
        async def output_fn(prediction, accept, context):
            return {"y": prediction, "order": order, "name": context.manifest["model"]["modelName"]}
        """, config={"add": 1})  # fmt: skip
    ((status, answer),) = model.raw((4, {}))
    assert status == 200
    assert json.loads(answer) == {"y": 50, "order": ["pre_model_fn", "model_fn", "warmup 10"], "name": "m"}


def test_one_bad_body_is_a_400_and_harms_nobody_else(serve_project: Serve) -> None:
    model = serve_project(MODEL_FN)
    assert model([1.0], [[1.0], [1.0, 2.0]], [3.0])[0::2] == [(200, [2.0]), (200, [6.0])]
    assert model([[1.0], [1.0, 2.0]])[0][0] == 400


def test_only_weights_and_one_function(serve_project: Serve, weights: Path) -> None:
    """Default model_fn, predict_fn and output_fn around an own input_fn."""
    model = serve_project(
        "import torch, json\ndef input_fn(data, content_type):\n    return torch.tensor(json.loads(data)['x'])\n",
        weights="model.pth",
    )
    assert model({"x": [[1.0, 2.0]]}, {"x": [[3.0, 4.0]]}) == [(200, [[3.0]]), (200, [[7.0]])]


def npy(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ([[1, 2], [3, 4]], "application/json"),
        ("1,2\n3,4\n", "text/csv"),
        (bytearray(npy(np.array([[1, 2], [3, 4]], dtype=np.float32))), "application/x-npy"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-npy"])
def test_types_in_and_out(serve_project: Serve, weights: Path, body: Any, content_type: str, accept: str) -> None:
    model = serve_project("def output_fn_unused(): ...\ndef predict_fn(d, m):\n    return m(d)\n", weights="model.pth")
    ((status, answer),) = model.raw((body, {"content-type": content_type, "accept": accept}))
    assert status == 200
    assert model.context.headers[0]["content-type"] == accept
    read = {
        "application/json": lambda: json.loads(answer),
        "text/csv": lambda: [[float(row)] for row in answer.decode().split()],
        "application/x-npy": lambda: np.load(io.BytesIO(answer)).tolist(),
    }[accept]
    assert read() == [[3.0], [7.0]]


def test_unsupported_types_are_415_and_406(serve_project: Serve) -> None:
    model = serve_project(MODEL_FN)
    ((status, answer),) = model.raw((bytearray(b"..."), {"content-type": "image/jpeg"}))
    assert (status, "image/jpeg" in json.loads(answer)["message"]) == (415, True)
    ((status, answer),) = model.raw(([1.0], {"accept": "image/png"}))
    assert (status, "application/x-npy" in json.loads(answer)["message"]) == (406, True)


@pytest.mark.parametrize(("body", "kind"), [
    ("", "text/csv"),
    ('{"a": 1}', "application/json"),
    ("[1" + "0" * 400 + "]", "application/json"),
    ("[" * 100_000, "application/json"),
    (npy(np.array(["text"])), "application/x-npy"),
    (npy(np.array([{"a": 1}], dtype=object)), "application/x-npy"),  # no pickle is loaded for a client
    (b"", "application/x-npy"),
])  # fmt: skip
def test_the_defaults_refuse_what_they_cannot_read(body: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=r"the (CSV|JSON|NPY)|allow_pickle=False"):
        default_input(body, kind)


def test_nested_predictions_are_answered_as_json() -> None:
    reply = default_output({"scores": torch.ones(2)}, "application/json, text/csv")
    assert reply.media_type == "application/json"
    assert default_output(torch.ones(2), "image/png, text/csv;q=0.5").body == "1.0\n1.0\n"


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ({"inputs": "good bad"}, "dict"),
        ("good", "str"),
        (["good", "1"], "list"),
        (["1", "2"], "list"),
        ([[1], [1, 2]], "list"),
        ([{"a": 1}], "list"),
        (None, "NoneType"),
        (True, "bool"),
        ([True, False], "list"),
        ([[1, 2.5], [3, 4]], "Tensor"),
        (1.5, "Tensor"),
        ([], "Tensor"),
    ],
)
def test_a_predict_fn_without_input_fn_gets_json_decoded(value: Any, right: str) -> None:
    assert type(default_input(json.dumps(value), "application/json", decodes=True)).__name__ == right
