"""The model-class form: what Truss's own documentation shows, read and run in this process."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ModuleFailed, RequestFailed
from handlergen.inspection.project import open_project
from handlergen.local.model import LocalModel, load
from handlergen.runtime.request import HttpRequest, Request
from tests.inspecting import inspect_source

Load = Callable[..., LocalModel]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """`model(source, **settings)` loads it; closed after the test."""
    opened: list[LocalModel] = []

    def make(source: str, **settings: Any) -> LocalModel:
        file = tmp_path / "mymodel.py"
        file.write_text(textwrap.dedent(source))
        opened.append(load(file, **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def contract(tmp_path: Path, source: str) -> Any:
    file = tmp_path / "read_only.py"
    file.write_text(textwrap.dedent(source))
    return inspect_source(file)


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("self", []),
        ("self, config", ["config"]),
        ("self, *, secrets, data_dir", ["data_dir", "secrets"]),
        ("self, config, threads=4", ["config"]),
        ("self, **kwargs", ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]),
        ("self, *args, **kwargs", ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]),
        (
            "self, environment, **others",
            ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"],
        ),
    ],
)
def test_the_constructor_receives_what_it_names(model: Load, signature: str, names: list[str]) -> None:
    loaded = model(f"""
        class Model:
            def __init__({signature}):
                self.given = dict(locals())
                self.given.update(self.given.pop("kwargs", {{}}))
                self.given.update(self.given.pop("others", {{}}))
            def predict(self, _):
                return sorted(set(self.given) - {{"self", "args", "threads"}})
    """)
    assert loaded.predict(None) == names


def test_what_the_constructor_receives(model: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("key_one", "1")
    monkeypatch.setenv("TRUSS_SECRET_key_two", "22")
    monkeypatch.setenv("HANDLERGEN_ENVIRONMENT", "staging")
    loaded = model(
        """
        class Model:
            def __init__(self, config, data_dir, secrets, environment, lazy_data_resolver):
                self.seen = {
                    "config": config["top"],
                    "data_dir": data_dir.is_dir(),
                    "resolved": lazy_data_resolver.block_until_download_complete() == data_dir,
                    "secrets": [secrets["key_one"], secrets["key_two"]],
                    "environment": environment,
                }
            def setup_environment(self, environment):
                self.seen["set up"] = environment["name"]
            def predict(self, _):
                return self.seen
        """,
        config={"top": 3},
        secrets=("key_one", "key_two"),
    )
    assert loaded.predict(0) == {
        "config": 3,
        "data_dir": True,
        "resolved": True,
        "secrets": ["1", "22"],
        "environment": {"name": "staging"},
        "set up": "staging",
    }
    assert (tmp_path / "data").is_dir()


def test_a_missing_secret_is_named_at_load(model: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nobody_sets_this", raising=False)
    with pytest.raises(ModuleFailed, match="nobody_sets_this"):
        model("class Model:\n    def predict(self, x):\n        return x\n", secrets=("nobody_sets_this",))


def test_load_is_tried_once_more(
    model: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("handlergen.runtime.forms.model_class._RETRY_AFTER_S", 0.0)
    source = """
        class Model:
            tries = 0
            {kind} load(self):
                Model.tries += 1
                if Model.tries <= {failures}:
                    raise OSError("the hub is away")
            def predict(self, _):
                return Model.tries
    """
    for kind in ("def", "async def"):
        loaded = model(source.format(kind=kind, failures=1))
        assert loaded.predict(0) == 2
        assert "the hub is away" in caplog.text
        loaded.close()
    with pytest.raises(ModuleFailed, match="the hub is away"):
        model(source.format(kind="def", failures=2))


HOOKS = {
    "preprocess": {
        "def": "def preprocess(self, x):\n        return x + 1",
        "async": "async def preprocess(self, x):\n        return x + 1",
    },
    "predict": {
        "def": "def predict(self, x):\n        return x * 10",
        "async": "async def predict(self, x):\n        return x * 10",
    },
    "postprocess": {
        "def": "def postprocess(self, x):\n        return [x]",
        "async": "async def postprocess(self, x):\n        return [x]",
        "generator": "def postprocess(self, x):\n        yield x",
        "async generator": "async def postprocess(self, x):\n        yield x",
    },
}


@pytest.mark.parametrize("post", HOOKS["postprocess"])
@pytest.mark.parametrize("predict", HOOKS["predict"])
@pytest.mark.parametrize("pre", HOOKS["preprocess"])
def test_hooks_of_every_kind_mix(model: Load, pre: str, predict: str, post: str) -> None:
    bodies = [HOOKS["preprocess"][pre], HOOKS["predict"][predict], HOOKS["postprocess"][post]]
    loaded = model("class Model:\n    " + "\n    ".join(bodies) + "\n")
    assert loaded.predict(1) == [20]
    if "generator" in post:
        assert b"".join(loaded.stream(1)) == b"20\n"


def test_hooks_are_inherited_from_a_base_in_the_file(model: Load, tmp_path: Path) -> None:
    source = """
        class Root:
            def load(self):
                self.factor = 3
        class Base(Root):
            def preprocess(self, inputs):
                return inputs["x"]
            def predict(self, x):
                return None
        class Model(Base):
            def predict(self, x):
                return self.factor * x
    """
    assert model(source).predict({"x": 5}) == 15
    hooks = contract(tmp_path, source).hooks
    assert {role: hook.line for role, hook in hooks.items()} == {"load": 3, "preprocess": 6, "predict": 11}


@pytest.mark.parametrize(
    ("imports", "annotation"),
    [
        ("from starlette.requests import Request", "Request"),
        ("from fastapi import Request", "Request"),
        ("import fastapi", "fastapi.Request"),
        ("import starlette.requests", "starlette.requests.Request"),
        ("from fastapi import Request as R", "R"),
        ("", '"Request"'),
        ("from starlette.requests import Request", "Request | None"),
        ("from typing import Optional", "Optional['Request']"),
    ],
)
def test_a_second_parameter_annotated_request_is_the_request(tmp_path: Path, imports: str, annotation: str) -> None:
    found = contract(
        tmp_path,
        f"{imports}\nclass Model:\n    def predict(self, inputs, req: {annotation}):\n        return inputs\n",
    )
    assert [(p.name, p.source) for p in found.hooks["predict"].parameters] == [
        ("inputs", "inputs"),
        ("req", "http_request"),
    ]


def test_a_parameter_named_request_is_data(tmp_path: Path) -> None:
    found = contract(
        tmp_path,
        "from typing import Dict\nclass Model:\n    def predict(self, request: Dict):\n        return request\n",
    )
    assert [p.source for p in found.hooks["predict"].parameters] == ["inputs"]


def test_the_request_is_one_object_for_all_hooks(model: Load) -> None:
    loaded = model("""
        class Model:
            async def preprocess(self, inputs, request: "Request"):
                request.state.seen = [request.headers["X-Trace"], request.method, await request.is_disconnected()]
                assert await request.json() == inputs
                return inputs
            def predict(self, inputs, request: "Request"):
                request.state.seen.append(request.url.path)
                return inputs
            def postprocess(self, outputs, request: "Request"):
                return [*request.state.seen, request.query_params.get("missing", "none"), request.cookies["a"]]
    """)
    answer = loaded.request({"x": 1}, headers={"x-trace": "t1", "Cookie": "a=b; c=d"})
    assert answer.value == ["t1", "POST", False, "/predictions", "none", "b"]


def test_a_hook_may_take_the_request_alone(model: Load) -> None:
    loaded = model("""
        class Model:
            async def preprocess(self, request: "Request"):
                return (await request.body()).decode()
            def predict(self, text):
                return text.upper()
    """)
    assert loaded.request(b"abc").value == "ABC"


def test_bodies_of_the_request() -> None:
    async def all_of(request: HttpRequest) -> tuple[bytes, bytes]:
        return await request.body(), b"".join([part async for part in request.stream()])

    for entry, body in (
        ({"body": bytearray(b'{"a": 1}')}, b'{"a": 1}'),
        ({"body": {"a": 1}}, b'{"a": 1}'),
        ({"body": "text"}, b"text"),
        ({"data": bytearray(b"[1]")}, b"[1]"),
        ({"field": bytearray(b"x")}, b'{"field": "x"}'),
    ):
        assert asyncio.run(all_of(HttpRequest(Request({}, "r"), entry))) == (body, body)
    deeper = HttpRequest(Request({"url_path": "v1/chat"}, "r"), {})
    assert str(deeper.url) == "/predictions/v1/chat"


def test_inputs_annotated_with_a_pydantic_model(model: Load) -> None:
    loaded = model("""
        from pydantic import BaseModel
        class Question(BaseModel):
            text: str
            times: int = 1
        class Model:
            def predict(self, inputs: Question):
                return inputs.text * inputs.times
    """)
    assert loaded.predict({"text": "a", "times": 3}) == "aaa"
    with pytest.raises(RequestFailed, match="text") as failed:
        loaded.predict({"times": 3})
    assert failed.value.status == 400


def test_a_base_from_elsewhere_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "inherits.py"
    file.write_text("from lib import Base\nclass Model(Base):\n    def predict(self, x):\n        return x\n")
    (warning,) = open_project(file, environ={}).warnings
    assert warning.endswith(
        "Model inherits from Base, which handlergen does not read: hooks that are defined there are not called"
    )
