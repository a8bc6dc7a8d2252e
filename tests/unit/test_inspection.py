"""What inspection reads in a functions module: hooks, kinds, parameters and what is passed to each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from handlergen.errors import ContractError, Problem
from handlergen.inspection.source_module import parse_source
from tests.inspecting import PREDICT, inspect_source, passed, problems, read, write


def test_all_hooks_with_all_their_plain_parameters(tmp_path: Path) -> None:
    contract = read(
        tmp_path,
        """
        def setup(context): ...
        def load(ctx): ...
        def preprocess(a, b): ...
        def predict(c): ...
        def postprocess(d, e, f): ...
        def explain(g, h): ...
        def is_healthy(context, model): ...
        """,
    )
    assert (contract.form, contract.module, contract.class_name) == ("functions", "digits", None)
    assert contract.call == "positional"
    assert {role: passed(contract, role) for role in contract.hooks} == {
        "setup": [("context", "context")],
        "load": [("ctx", "context")],
        "preprocess": [("a", "data"), ("b", "files")],
        "predict": [("c", "inputs")],
        "postprocess": [("d", "outputs"), ("e", "input_data"), ("f", "files")],
        "explain": [("g", "inputs"), ("h", "data")],
        "is_healthy": [("context", "context"), ("model", "model")],
    }
    assert contract.hooks["predict"].line == 5


def test_keywords_and_defaults(tmp_path: Path) -> None:
    contract = read(
        tmp_path,
        """
        def preprocess(data, *, files): ...
        async def predict(x, *, context, device=None): ...
        def postprocess(outputs, *, files, input_data): ...
        async def load(context): ...
        """,
    )
    assert passed(contract, "preprocess") == [("data", "data"), ("files", "files")]
    assert passed(contract, "postprocess")[1:] == [("files", "files"), ("input_data", "input_data")]
    recorded = [(p.keyword_only, p.required) for p in contract.hooks["predict"].parameters]
    assert recorded == [(False, True), (True, True), (True, False)]
    assert contract.hooks["predict"].is_async
    assert contract.hooks["load"].is_async


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("model, x", [("model", "model"), ("x", "inputs")]),
        ("x, context, device, request, model", None),
        ("device, x, /", [("device", "device"), ("x", "inputs")]),
        ("x, *, model", [("x", "inputs"), ("model", "model")]),
        ("*, model, inputs", [("model", "model"), ("inputs", "inputs")]),
        ("x, context=None", [("x", "inputs"), ("context", "context")]),
        ("x: dict[str, 'Tensor'], model: 'nn.Module' = None", [("x", "inputs"), ("model", "model")]),
    ],
)
def test_named_parameters_stand_anywhere(
    parameters: str, expected: list[tuple[str, str]] | None, tmp_path: Path
) -> None:
    source = f"def load(): ...\ndef preprocess(data): ...\ndef predict({parameters}): ...\n"
    contract = read(tmp_path, source)
    names = ("x", "context", "device", "request", "model")
    assert passed(contract, "predict") == (expected or [(n, "inputs" if n == "x" else n) for n in names])


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ("def preprocess(data): return 1", "sync"),
        ("async def preprocess(data): return 1", "async"),
        ("preprocess = lambda data: data", "sync"),
        ("def preprocess(data):\n    def inner():\n        yield 1\n    return [y for y in inner()]", "sync"),
        ("def preprocess(data):\n    f = lambda: (yield)\n    return f", "sync"),
    ],
)
def test_kinds(definition: str, kind: str, tmp_path: Path) -> None:
    assert read(tmp_path, definition + PREDICT).hooks["preprocess"].kind == kind


@pytest.mark.parametrize(
    "body", ["yield x", "for y in x:\n        yield y", "z = yield from x", "await x\n    yield 1"]
)
def test_a_generator_predict_beside_a_postprocess_is_refused_at_its_yield(body: str, tmp_path: Path) -> None:
    prefix = "async " if "await" in body else ""
    source = f"\n\n{prefix}def predict(x):\n    {body}\n"
    kind = "async_generator" if prefix else "generator"
    assert inspect_source(write(tmp_path, source)).hooks["predict"].kind == kind
    path = write(tmp_path, f"{source}def postprocess(x): ...\n")
    with pytest.raises(ContractError, match="predict is a generator") as refused:
        inspect_source(path)
    (problem,) = refused.value.problems
    assert problem.line == 3 + body[: body.index("yield")].count("\n") + 1


def test_a_hook_that_is_a_context_manager_is_refused(tmp_path: Path) -> None:
    source = "import contextlib\n@contextlib.contextmanager\ndef preprocess(data):\n    yield data\n" + PREDICT
    assert problems(tmp_path, source) == ["preprocess is a context manager"]


def test_decorators_leave_the_signature_as_written(tmp_path: Path) -> None:
    contract = read(
        tmp_path,
        """
        import functools
        import torch
        from typing import overload

        @overload
        def predict(x: int) -> int: ...
        @overload
        def predict(x: str, y: int, z: int) -> str: ...
        @torch.inference_mode()
        @functools.lru_cache(maxsize=None)
        def predict(x, device): ...
        """,
    )
    assert passed(contract, "predict") == [("x", "inputs"), ("device", "device")]


@pytest.mark.parametrize(
    ("parameters", "call"),
    [
        ("x", "positional"),
        ("x, context", "positional"),
        ("x, y", "keywords"),
        ("*, x", "keywords"),
        ("x, y=1, *, context", "keywords"),
    ],
)
def test_a_predict_only_module_with_several_plain_parameters_takes_keys(
    parameters: str, call: str, tmp_path: Path
) -> None:
    contract = read(tmp_path, f"def predict({parameters}): ...")
    assert contract.call == call
    for parameter in contract.hooks["predict"].parameters:
        expected = "context" if parameter.name == "context" else "key" if call == "keywords" else "inputs"
        assert parameter.source == expected


def test_the_setting_call_decides_for_a_single_parameter(tmp_path: Path) -> None:
    contract = read(tmp_path, "def predict(prompt): ...", call="keywords")
    assert (contract.call, passed(contract, "predict")) == ("keywords", [("prompt", "key")])
    (message,) = problems(tmp_path, "def predict(context): ...", call="keywords")
    assert message == "predict takes no key of the JSON object"


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_one_predict_for_many_requests_has_no_keys_and_no_request(batch: str, tmp_path: Path) -> None:
    assert "not the keys" in problems(tmp_path, "def predict(a, b): ...", batch=batch)[0]
    assert "asks for `request`" in problems(tmp_path, "def predict(a, request): ...", batch=batch)[0]
    assert read(tmp_path, "def predict(a): ...", batch=batch).form == "functions"


def test_hooks_are_followed_through_aliases_and_the_projects_own_imports(tmp_path: Path) -> None:
    write(tmp_path, "def run(x, model): ...\nfrom deep.inner import postprocess", "helper.py")
    write(tmp_path, "", "deep/__init__.py")
    write(tmp_path, "def postprocess(y, raw): ...", "deep/inner.py")
    contract = read(
        tmp_path,
        """
        from helper import run as predict, postprocess
        def _load(context): ...
        load = _load
        """,
    )
    assert passed(contract, "predict") == [("x", "inputs"), ("model", "model")]
    assert passed(contract, "postprocess") == [("y", "outputs"), ("raw", "input_data")]
    assert contract.hooks["predict"].name == "predict"
    assert contract.hooks["predict"].line == 0
    assert contract.hooks["load"].line == 3


def test_a_package_is_read_through_its_init(tmp_path: Path) -> None:
    package = tmp_path / "reader"
    write(package, "from .hooks import *\nfrom . import other\nfrom .sub.deep import preprocess", "__init__.py")
    write(package, "def predict(x): ...\ndef _hidden(): ...", "hooks.py")
    write(package, "", "other.py")
    write(package, "", "sub/__init__.py")
    write(package, "from ..far import preprocess", "sub/deep.py")
    write(package, "async def preprocess(data): ...", "far.py")
    contract = inspect_source(package)
    assert contract.module == "reader"
    assert set(contract.hooks) == {"predict", "preprocess"}
    assert contract.hooks["preprocess"].is_async


def test_packages_of_the_settings_are_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "textutils"
    write(elsewhere, "def predict(x): ...", "__init__.py")
    project = tmp_path / "project"
    assert read(project, "from textutils import predict", packages=("../elsewhere/textutils",)).hooks
    assert "not a file of" in problems(project, "from textutils import predict")[0]


def test_imports_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path, "from b import predict", "a.py")
    write(tmp_path, "from a import predict", "b.py")
    with pytest.raises(ContractError, match="in a circle"):
        inspect_source(tmp_path / "a.py")


def test_a_helper_that_does_not_parse_is_the_problem(tmp_path: Path) -> None:
    write(tmp_path, "def run(:", "helper.py")
    (message,) = problems(tmp_path, "from helper import run as predict")
    assert "syntax error" in message


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    def predict(x): ...\nexcept ImportError:\n    def predict(x, *, context): ...",
        "import sys\nif sys.platform:\n    def predict(x): ...",
        "with open(__file__):\n    def predict(x): ...",
        "for _ in (1,):\n    def predict(x): ...",
        "match 1:\n    case _:\n        def predict(x): ...",
        "def predict(x, y, z): ...\ndef predict(x): ...",
        "def predict(x): ...\nif __name__ == '__main__':\n    def predict(a, b): ...",
        "def predict(x): ...\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    predict: int = 1",
        "def outer():\n    def predict(a, b): ...\nclass A:\n    def predict(self): ...\ndef predict(x): ...",
    ],
)
def test_what_counts_is_what_the_import_binds_last(text: str, tmp_path: Path) -> None:
    assert [p.name for p in read(tmp_path, text).hooks["predict"].parameters] == ["x"]


MODEL = "class Model:\n    def predict(self, x): ...\n"
MODULE = "import torch\nclass Base(torch.nn.Module): ...\nclass Net(Base):\n    def postprocess(self, y): ...\n"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (PREDICT, "functions"),
        (MODEL, "model-class"),
        (MODULE + "    def forward(self, x): ...\n", "module"),
        ("FLOW: list = [('python', lambda x: [x])]", "flow"),
        ("def model_fn(directory): ...\nasync def predict_fn(a, b): ...", "sagemaker"),
    ],
)
def test_each_form_is_recognised(text: str, form: str, tmp_path: Path) -> None:
    assert read(tmp_path, text).form == form


@pytest.mark.parametrize("text", [MODEL, MODULE, "FLOW = []\n", "def input_fn(a): ...\n"])
def test_two_forms_are_ambiguous_unless_one_is_named(text: str, tmp_path: Path) -> None:
    (message,) = problems(tmp_path, text + PREDICT)
    assert "ambiguous: functions (`predict`, line" in message
    assert read(tmp_path, text + PREDICT, form="functions").form == "functions"


@pytest.mark.parametrize(
    "text",
    [
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): ...\n",
        "class Model: ...\n",
        "class Helper:\n    def predict(self, x): ...\n",
        "def handle(image, size): ...\n",  # no handler of TorchServe's either
    ],
)
def test_what_is_no_form_beside_a_predict(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text + PREDICT).form == "functions"


@pytest.mark.parametrize(
    "text",
    [
        "from ts.torch_handler.base_handler import BaseHandler\nclass H(BaseHandler): ...",
        "import ts.torch_handler.base_handler as b\nclass H(b.BaseHandler): ...",
        "from ts.torch_handler.vision_handler import VisionHandler as V\nclass A(V): ...\nclass H(A): ...",
        "def handle(requests, ctx): ...\n" + PREDICT,
    ],
)
def test_torchserve_handlers_are_refused_with_the_command(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ContractError, match="already a TorchServe handler") as refused:
        inspect_source(path, name="x", weights="w.pt")
    (problem,) = refused.value.problems
    assert "torch-model-archiver --model-name x --version 1.0 --handler" in problem.fix
    assert "--serialized-file w.pt" in problem.fix


@pytest.mark.parametrize(
    ("raw", "line", "words"),
    [
        (b"def predict(x):\n    return '\xe9'\n", 2, "byte 0xe9 is not utf-8"),
        (b"# -*- coding: klingon -*-\n", 1, "unknown encoding"),
        (b"x = 1\0\n", 1, "null byte"),
        (b"x = (\n", 1, "syntax error"),
        (b"def predict(x):\nreturn x\n", 2, "syntax error"),
        (b"print 'hello'\n", 1, "syntax error"),
    ],
)
def test_files_that_are_no_python(raw: bytes, line: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "digits.py"
    path.write_bytes(raw)
    with pytest.raises(ContractError) as refused:
        inspect_source(path)
    (problem,) = refused.value.problems
    assert problem.line == line
    assert words in problem.message


@pytest.mark.parametrize(
    "raw",
    [
        b"# -*- coding: latin-1 -*-\ndef predict(x):\n    return '\xe9'\n",
        b"\xef\xbb\xbfdef predict(x):\r\n    return x\r\n",
        b"def predict(x):\n    return '\\d'\n",
        b"\xef\xbb\xbf# coding: utf-8\ndef predict(x): return x",
    ],
)
def test_encodings_are_read_as_the_interpreter_reads_them(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "digits.py"
    path.write_bytes(raw)
    assert set(inspect_source(path).hooks) == {"predict"}


def test_deep_nesting_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.py"
    path.write_text("x = " + "(" * 20_000 + ")" * 20_000, encoding="utf-8")
    assert isinstance(parse_source(path, file="deep.py"), Problem)
    path.write_text("x = " + "-" * 50_000 + "1", encoding="utf-8")
    assert isinstance(parse_source(path, file="deep.py"), Problem)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(strategies.binary(max_size=40) | strategies.text(alphabet="def predict(x,y*=/):\n \tyield#'\"\\", max_size=60))
def test_no_source_fails_in_another_way(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "digits.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        contract = inspect_source(path)
    except ContractError as refused:
        assert refused.problems  # noqa: PT017 - either way out is right
    else:
        assert "predict" in contract.hooks
