"""What inspection reads in a functions module: hooks, kinds, parameters and what is passed to each."""

from __future__ import annotations

import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from handlergen.errors import ContractError, Problem
from handlergen.inspection import inspect_source, read_source
from handlergen.runtime.contract import Contract
from handlergen.settings import Settings
from handlergen.source_module import parse_source
from handlergen.weights_file import weights_format


def write(directory: Path, text: str, name: str = "digits.py") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def read(directory: Path, text: str, **settings: Any) -> Contract:
    return inspect_source(write(directory, text), settings=Settings(**settings))


def problems(directory: Path, text: str, **settings: Any) -> list[str]:
    with pytest.raises(ContractError) as refused:
        read(directory, text, **settings)
    assert list(refused.value.problems) == sorted(refused.value.problems)
    return [problem.message for problem in refused.value.problems]


def warnings(directory: Path, text: str, **settings: Any) -> list[str]:
    path = write(directory, text)
    return read_source(path, form=None, settings=Settings(**settings), root=directory).warnings


def passed(contract: Contract, hook: str) -> list[tuple[str, str]]:
    return [(p.name, p.source) for p in contract.hooks[hook].parameters]


PREDICT = "\ndef predict(x): ...\n"


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
    assert (contract.form, contract.module, contract.call, contract.class_name) == (
        "functions",
        "digits",
        "positional",
        None,
    )
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


def test_keyword_only_and_defaults_are_recorded(tmp_path: Path) -> None:
    contract = read(tmp_path, "def predict(x, *, context, device=None): ...")
    recorded = [(p.keyword_only, p.required) for p in contract.hooks["predict"].parameters]
    assert recorded == [(False, True), (True, True), (True, False)]


def test_files_and_input_data_by_keyword(tmp_path: Path) -> None:
    contract = read(
        tmp_path,
        """
        def preprocess(data, *, files): ...
        def predict(x): ...
        def postprocess(outputs, *, files, input_data): ...
        """,
    )
    assert passed(contract, "preprocess") == [("data", "data"), ("files", "files")]
    assert passed(contract, "postprocess") == [
        ("outputs", "outputs"),
        ("files", "files"),
        ("input_data", "input_data"),
    ]


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


def test_async_predict_and_load_are_taken(tmp_path: Path) -> None:
    contract = read(tmp_path, "async def predict(x): ...\nasync def load(context): ...")
    assert contract.hooks["predict"].is_async
    assert contract.hooks["load"].is_async


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
    source = (
        "import contextlib\n@contextlib.contextmanager\ndef preprocess(data):\n    yield data\n" + PREDICT
    )
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


# ---- keys of a JSON object ----


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
    assert contract.call == "keywords"
    assert passed(contract, "predict") == [("prompt", "key")]


def test_the_setting_call_cannot_make_keys_of_what_preprocess_returns(tmp_path: Path) -> None:
    (message,) = problems(tmp_path, "def preprocess(data): ...\ndef predict(a): ...", call="keywords")
    assert "without preprocess" in message


def test_keys_need_parameters(tmp_path: Path) -> None:
    assert problems(tmp_path, "def predict(context): ...", call="keywords") == [
        "predict takes no key of the JSON object"
    ]


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_one_predict_for_many_requests_has_no_keys_and_no_request(batch: str, tmp_path: Path) -> None:
    assert "not the keys" in problems(tmp_path, "def predict(a, b): ...", batch=batch)[0]
    assert "asks for `request`" in problems(tmp_path, "def predict(a, request): ...", batch=batch)[0]
    assert read(tmp_path, "def predict(a): ...", batch=batch).form == "functions"


# ---- where hooks come from ----


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
    write(
        package, "from .hooks import *\nfrom . import other\nfrom .sub.deep import preprocess", "__init__.py"
    )
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
    ("text", "found"),
    [
        ("try:\n    def predict(x): ...\nexcept ImportError:\n    def predict(x, *, context): ...", ["x"]),
        ("import sys\nif sys.platform:\n    def predict(x): ...", ["x"]),
        ("with open(__file__):\n    def predict(x): ...", ["x"]),
        ("for _ in (1,):\n    def predict(x): ...", ["x"]),
        ("match 1:\n    case _:\n        def predict(x): ...", ["x"]),
        ("def predict(x, y, z): ...\ndef predict(x): ...", ["x"]),
        ("def predict(x): ...\nif __name__ == '__main__':\n    def predict(a, b): ...", ["x"]),
        (
            "def predict(x): ...\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    predict: int = 1",
            ["x"],
        ),
        (
            "def outer():\n    def predict(a, b): ...\nclass A:\n    def predict(self): ...\ndef predict(x): ...",
            ["x"],
        ),
    ],
)
def test_what_counts_is_what_the_import_binds_last(text: str, found: list[str], tmp_path: Path) -> None:
    assert [p.name for p in read(tmp_path, text).hooks["predict"].parameters] == found


@pytest.mark.parametrize(
    "text", ["predict = make()", "predict, other = make()", "predict = torch.jit.load('x')"]
)
def test_what_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    (message,) = problems(tmp_path, text)
    assert "`predict` is an expression" in message


# ---- weights ----


def torchscript(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version"):
            archive.writestr(name, "")
    return path


def state_dict(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/byteorder", "m/data/0", "m/version"):
            archive.writestr(name, "")
    return path


def test_formats_of_weights(tmp_path: Path) -> None:
    assert weights_format(torchscript(tmp_path / "a.pt")) == "torchscript"
    assert weights_format(state_dict(tmp_path / "b.pt")) == "state_dict"
    (tmp_path / "old.pth").write_bytes(b"\x80\x02")
    assert weights_format(tmp_path / "old.pth") == "state_dict"
    assert weights_format(tmp_path / "c.pt2") == "exported"
    assert weights_format(tmp_path / "c.ONNX") == "onnx"
    assert weights_format(tmp_path / "c.safetensors") == "safetensors"
    assert weights_format(tmp_path / "c.joblib") == "other"
    assert weights_format(tmp_path / "missing.pt") is None


def test_formats_of_what_torch_itself_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    assert weights_format(tmp_path / "a.pt") == "state_dict"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2),)), tmp_path / "c.pt2")
    assert weights_format(tmp_path / "c.pt2") == "exported"


def test_executable_weights_need_no_predict_and_no_load(tmp_path: Path) -> None:
    torchscript(tmp_path / "net.pt")
    contract = read(tmp_path, "def preprocess(data): ...", weights="net.pt")
    assert set(contract.hooks) == {"preprocess"}
    assert read(tmp_path, "", weights="net.pt").hooks == {}
    assert set(read(tmp_path, "def predict(x, model): ...", weights="net.pt").hooks) == {"predict"}


def test_a_state_dict_needs_a_load(tmp_path: Path) -> None:
    state_dict(tmp_path / "net.pt")
    assert "nothing loads the weights" in problems(tmp_path, "def predict(x): ...", weights="net.pt")[0]
    both = problems(tmp_path, "", weights="net.pt")
    assert len(both) == 2
    assert read(tmp_path, "def predict(x): ...\ndef load(): ...", weights="net.pt").hooks


def test_the_setting_says_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(b"?")
    assert read(tmp_path, "", weights="net.bin", weights_format="torchscript").hooks == {}


# ---- forms ----

MODEL = "class Model:\n    def predict(self, x): ...\n"
MODULE = (
    "import torch\nclass Base(torch.nn.Module): ...\nclass Net(Base):\n    def postprocess(self, y): ...\n"
)


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
    assert inspect_source(tmp_path / "digits.py", form="functions").form == "functions"


@pytest.mark.parametrize(
    "text",
    [
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x): ...\n",
        "class Model: ...\n",
        "class Helper:\n    def predict(self, x): ...\n",
    ],
)
def test_classes_that_are_no_form(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text + PREDICT).form == "functions"


@pytest.mark.parametrize(
    "text",
    [
        "from ts.torch_handler.base_handler import BaseHandler\nclass H(BaseHandler): ...",
        "import ts.torch_handler.base_handler as b\nclass H(b.BaseHandler): ...",
        "from ts.torch_handler.vision_handler import VisionHandler as V\nclass A(V): ...\nclass H(A): ...",
        "def handle(data, context): ...",
        "def handle(requests, ctx): ...\n" + PREDICT,
    ],
)
def test_torchserve_handlers_are_refused_with_the_command(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ContractError, match="already a TorchServe handler") as refused:
        inspect_source(path, settings=Settings(name="x", weights="w.pt"))
    (problem,) = refused.value.problems
    assert "torch-model-archiver --model-name x --version 1.0 --handler" in problem.fix
    assert "--serialized-file w.pt" in problem.fix


def test_a_helper_named_handle_is_no_handler(tmp_path: Path) -> None:
    assert read(tmp_path, "def handle(image, size): ...\n" + PREDICT).form == "functions"


# ---- warnings ----


def test_slips_in_hook_names_are_hints_only_where_the_hook_is_missing(tmp_path: Path) -> None:
    (hint,) = warnings(tmp_path, "def Preprocess(data): ...\n" + PREDICT)
    assert "`Preprocess` is not called" in hint
    assert warnings(tmp_path, "def pre_process(d): ...\ndef preprocess(data): ...\n" + PREDICT) == []
    assert (
        warnings(tmp_path, "def process(d): ...\ndef upload(): ...\ndef _preprocess(): ...\n" + PREDICT) == []
    )


def test_own_files_that_nothing_packs(tmp_path: Path) -> None:
    write(tmp_path, "", "helper.py")
    write(tmp_path, "", "models/net.py")
    text = "import helper\nimport json, torch\nfrom models import net\n" + PREDICT
    assert len(warnings(tmp_path, text)) == 1  # models/ has no __init__.py: it may be anything
    assert warnings(tmp_path, text, extra_files=("helper.py",)) == []
    assert warnings(tmp_path, text, extra_files=("*.py",)) == []
    write(tmp_path, "", "models/__init__.py")
    assert "packages: [models]" in warnings(tmp_path, text, extra_files=("helper.py",))[0]
    assert warnings(tmp_path, text, extra_files=("helper.py",), packages=("models",)) == []
    assert warnings(tmp_path, text, extra_files=("helper.py", "models/")) == []


# ---- text ----


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


@hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)
@given(
    strategies.binary(max_size=40)
    | strategies.text(alphabet="def predict(x,y*=/):\n \tyield#'\"\\", max_size=60)
)
def test_no_source_fails_in_another_way(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "digits.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        contract = inspect_source(path)
    except ContractError as refused:
        assert refused.problems  # noqa: PT017 - either way out is right
    else:
        assert "predict" in contract.hooks


def test_nothing_of_the_users_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, "raise SystemExit('imported')\n" + PREDICT, "never_imported.py")
    assert inspect_source(path).hooks
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "try:\n    import nope\n    def predict(x, context): ...\nexcept ImportError:\n    def predict(x): ...",
            "3, 5",
        ),
        ("if FAST:\n    def predict(x, device): ...\nelse:\n    def predict(x): ...", "2, 4"),
        ("def predict(x): ...\nif FAST:\n    async def predict(x): ...", "1, 3"),
    ],
)
def test_definitions_that_do_not_take_the_same_are_told(tmp_path: Path, text: str, lines: str) -> None:
    (warning,) = warnings(tmp_path, text)
    assert f"predict is defined 2 times (lines {lines}), with different parameters" in warning


@pytest.mark.parametrize(
    "text",
    [
        "if FAST:\n    def predict(x): ...\nelse:\n    def predict(x): ...",
        "def predict(x, context): ...\n\ndef predict(x): ...",
        "if FAST:\n    def predict(x, context): ...\n\ndef predict(x): ...",
        "if FAST:\n    def predict(x: int): ...\nelse:\n    def predict(y): ...",
        "if typing.TYPE_CHECKING:\n    def predict(x, y): ...\nelse:\n    def predict(x): ...",
    ],
)
def test_definitions_of_which_one_counts_for_certain_are_not(tmp_path: Path, text: str) -> None:
    assert warnings(tmp_path, text) == []


def test_a_hook_that_is_deleted_is_none(tmp_path: Path) -> None:
    text = "def preprocess(data): ...\ndef predict(x): ...\ndef postprocess(x): ...\ndel preprocess, postprocess\n"
    assert list(read(tmp_path, text).hooks) == ["predict"]
    kept = "def preprocess(data): ...\ndef predict(x): ...\nif RAW:\n    del preprocess\n"
    assert list(read(tmp_path, kept).hooks) == ["preprocess", "predict"]


WRAPPERS = """
def fewer(function):
    def wrapper(inputs):
        return function(inputs, 3)
    return wrapper

def adds(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, extra=3, **kwargs)
    return wrapper

def made(extra):
    def decorate(function):
        return lambda inputs: function(inputs, extra)
    return decorate

def same(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        print(args)
        return function(*args, **kwargs)
    return wrapper

def renames(function):
    def wrapper(x, *rest):
        return function(x, *rest)
    return wrapper

def registers(function):
    HOOKS.append(function)
    return function
"""


@pytest.mark.parametrize("decorator", ["fewer", "adds", "made(3)"])
@pytest.mark.parametrize("imported", [True, False])
def test_a_decorator_that_passes_arguments_of_its_own_is_told(
    tmp_path: Path, decorator: str, imported: bool
) -> None:
    write(tmp_path, WRAPPERS, "wrappers.py")
    start, at = ("import wrappers\n", f"@wrappers.{decorator}") if imported else (WRAPPERS, f"@{decorator}")
    found = warnings(
        tmp_path, f"{start}\n{at}\ndef predict(inputs, extra): ...\n", extra_files=("wrappers.py",)
    )
    (warning,) = found
    assert f"{at.partition('(')[0]} calls predict(inputs, extra) with arguments of its own" in warning


@pytest.mark.parametrize(
    "hook",
    [
        "@same\ndef predict(inputs, extra): ...",
        "@renames\ndef predict(inputs): ...",
        "@registers\ndef predict(inputs, extra): ...",
        "@fewer\ndef predict(x): ...",
        "@functools.cache\ndef predict(x, y): ...",
        "@absent(1)\ndef predict(x, y): ...",
    ],
)
def test_a_decorator_that_takes_the_same_is_not(tmp_path: Path, hook: str) -> None:
    assert warnings(tmp_path, f"import functools\n{WRAPPERS}\n{hook}\n") == []


def test_a_decorated_method_is_told_too(tmp_path: Path) -> None:
    text = WRAPPERS.replace("(inputs)", "(self, inputs)").replace("(inputs, ", "(self, inputs, ")
    model = "class Model:\n    @fewer\n    def predict(self, inputs, request: Request): ...\n"
    model += "    @same\n    def load(self): ..."
    (warning,) = warnings(tmp_path, f"import functools\n{text}\n{model}\n")
    assert "@fewer calls predict(self, inputs, request: Request) with arguments of its own" in warning
