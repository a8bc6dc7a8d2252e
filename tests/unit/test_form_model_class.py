"""The model-class form: what Truss's own documentation shows, read and run in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen.errors import ModuleFailed
from handlergen.local.model import LocalModel
from handlergen.runtime.request import HttpRequest, Request
from tests.inspecting import passed, read, warnings

Load = Callable[..., LocalModel]


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("self", []),
        ("self, config", ["config"]),
        ("self, *, secrets, data_dir", ["data_dir", "secrets"]),
        ("self, config, threads=4", ["config"]),
        ("self, **kwargs", ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]),
        ("self, *args, **kwargs", ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]),
        ("self, environment, **others", ["config", "data_dir", "environment", "lazy_data_resolver", "secrets"]),
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
    "preprocess": {"def": "return x + 1", "async def": "return x + 1"},
    "predict": {"def": "return x * 10", "async def": "return x * 10"},
    "postprocess": {"def": "return [x]", "async def": "return [x]", "def ": "yield x", "async def ": "yield x"},
}


@pytest.mark.parametrize("kinds", [*itertools.product(*HOOKS.values())])
def test_hooks_of_every_kind_mix(model: Load, kinds: tuple[str, str, str]) -> None:
    source = "class Model:\n"
    for (name, bodies), kind in zip(HOOKS.items(), kinds, strict=True):
        source += f"    {kind.strip()} {name}(self, x):\n        {bodies[kind]}\n"
    loaded = model(source)
    assert loaded.predict(1) == [20]
    if "yield" in source:
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
    hooks = read(tmp_path, source).hooks
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
    source = f"{imports}\nclass Model:\n    def predict(self, inputs, req: {annotation}):\n        return inputs\n"
    found = read(tmp_path, source)
    assert passed(found, "predict") == [("inputs", "inputs"), ("req", "http_request")]
    # A parameter of that name is data.
    found = read(tmp_path, "class Model:\n    def predict(self, request: dict):\n        return request\n")
    assert passed(found, "predict") == [("request", "inputs")]


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


def test_a_base_from_elsewhere_is_warned_about(tmp_path: Path) -> None:
    source = "from lib import Base\nclass Model(Base):\n    def predict(self, x):\n        return x\n"
    (warning,) = warnings(tmp_path, source)
    assert warning.endswith(
        "Model inherits from lib.Base, which handlergen does not read: hooks that are defined there are not called"
    )
