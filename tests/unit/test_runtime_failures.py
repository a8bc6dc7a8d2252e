"""What a client is told of a failure, and what the log keeps of it."""

from __future__ import annotations

import importlib.util
import json
import sys
import textwrap
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handlergen.runtime.codec.content import reason_phrase
from handlergen.runtime.codec.encode import encode
from handlergen.runtime.codec.errors import (
    INPUT,
    BadRequest,
    EncodeError,
    Failure,
    LockTimeout,
    failure_of,
    is_out_of_memory,
)
from handlergen.runtime.codec.redaction import user_traceback

SECRET = "/srv/models/hunter2"


class HTTPException(Exception):
    """As Starlette's and FastAPI's."""

    def __init__(self, status_code: Any, detail: Any = None, headers: Any = None) -> None:
        super().__init__(status_code, detail)
        self.status_code, self.detail, self.headers = status_code, detail, headers


class UpstreamError(Exception):
    """As an HTTP client library's: a status, and a text that was not meant for our client."""

    status_code = 502


class NotFound(Exception):
    status_code = HTTPStatus.NOT_FOUND


class PredictionException(Exception):
    """As TorchServe's (ts/utils/util.py)."""

    def __init__(self, message: str, error_code: Any = 500) -> None:
        super().__init__(message)
        self.message, self.error_code = message, error_code


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


class Person(pydantic.BaseModel):
    name: str
    age: int


def validation_error() -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        Person.model_validate({"age": SECRET})
    return caught.value


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def told(error: BaseException, hook: str = "predict", form: str = "functions") -> Failure:
    return failure_of(error, hook=hook, form=form, request_id="r-1")


class TestStatus:
    @pytest.mark.parametrize(
        ("error", "status", "kind", "message"),
        [
            (HTTPException(404, "no such label"), 404, "HTTPException", "no such label"),
            (HTTPException(503, "warming up"), 503, "HTTPException", "warming up"),
            (HTTPException(422, [{"loc": ["a"]}]), 422, "HTTPException", '[{"loc": ["a"]}]'),
            (HTTPException(400), 400, "HTTPException", "Bad Request"),
            (HTTPException(418, {1, 2}), 418, "HTTPException", "I'm a Teapot"),
            (NotFound("nobody here"), 404, "NotFound", "nobody here"),
            (NotFound(), 404, "NotFound", "Not Found"),
            (UpstreamError(SECRET), 502, "UpstreamError", "Bad Gateway"),
            (PredictionException("bad image", 415), 415, "PredictionException", "bad image"),
            (PredictionException("bad image"), 500, "PredictionException", "bad image"),
            (PredictionException("bad image", 7), 500, "PredictionException", "bad image"),
            (BadRequest("no such file"), 400, "BadRequest", "no such file"),
            (EncodeError("answer['a'] is of type bytes"), 500, "EncodeError", "answer['a'] is of type bytes"),
            (LockTimeout("held by 17"), 503, "DeviceBusy", "The device is busy; try again later"),
        ],
    )
    def test_of_what_carries_its_own(self, error: Exception, status: int, kind: str, message: str) -> None:
        failure = told(error)
        assert (failure.status, failure.type, failure.message) == (status, kind, message)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError(SECRET),
            KeyError(SECRET),
            ValueError(SECRET),
            OSError(2, "No such file", SECRET),
            SystemExit(SECRET),
            Unprintable(),
            HTTPException(200, SECRET),
            HTTPException(True, SECRET),
            HTTPException("404", SECRET),
            validation_error(),
            caused(RuntimeError(SECRET), ValueError(SECRET)),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_of_anything_else_is_500_and_shows_nothing(self, error: BaseException) -> None:
        failure = told(error)
        assert (failure.status, failure.type) == (500, "InternalError")
        assert failure.message == "The model's predict failed; the server's log says why, under request id r-1"

    @pytest.mark.parametrize(
        ("hook", "form", "status"),
        [
            ("preprocess", "functions", 400),
            ("preprocess", "module", 400),
            ("preprocess", "model-class", 500),
            ("predict", "functions", 500),
            ("postprocess", "functions", 500),
            ("encode", "functions", 500),
        ],
    )
    def test_of_a_value_error(self, hook: str, form: str, status: int) -> None:
        failure = told(ValueError("no pixels"), hook, form)
        assert failure.status == status
        assert ("no pixels" in failure.message) == (status == 400)
        if status == 400:
            error = json.JSONDecodeError("no JSON", "{", 0)
            assert told(error, hook, form).type == "JSONDecodeError"
            assert told(ValueError(), hook, form).message == "The request's data is not valid"

    @pytest.mark.parametrize(
        ("hook", "form", "status"),
        [
            (INPUT, "model-class", 400),
            ("preprocess", "model-class", 400),
            ("preprocess", "functions", 400),
            (INPUT, "functions", 400),
            ("predict", "functions", 500),
            ("postprocess", "functions", 500),
        ],
    )
    def test_of_a_validation_error(self, hook: str, form: str, status: int) -> None:
        failure = told(validation_error(), hook, form)
        assert failure.status == status
        assert SECRET not in failure.message
        if status == 400:
            assert failure.message.startswith("name: Field required; age: Input should be a valid integer")

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
            RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB)"),
            caused(RuntimeError("prediction failed"), MemoryError()),
        ],
    )
    def test_of_a_lack_of_memory_is_507(self, error: Exception) -> None:
        assert is_out_of_memory(error)
        failure = told(error)
        assert (failure.status, failure.type) == (507, "OutOfMemory")
        assert failure.message == "Out of memory; the server's log says why, under request id r-1"

    def test_of_other_cuda_errors_is_500(self) -> None:
        error = RuntimeError("CUDA error: device-side assert triggered")
        assert not is_out_of_memory(error)
        assert told(error).status == 500
        assert not is_out_of_memory(ValueError("the shop is out of memory cards"))

    def test_of_a_circle_of_causes_is_found(self) -> None:
        first, second = RuntimeError("a"), RuntimeError("b")
        first.__cause__, second.__cause__ = second, first
        assert not is_out_of_memory(first)

    def test_of_a_group_of_one_is_that_ones(self) -> None:
        class Group(Exception):  # as ExceptionGroup of Python 3.11
            exceptions = (HTTPException(409, "taken"),)

        assert told(Group()).status == 409

    def test_a_long_message_is_cut(self) -> None:
        assert len(told(HTTPException(400, "x" * 10**6)).message) < 5000


class TestHeaders:
    def test_of_a_busy_device_say_when_to_come_back(self) -> None:
        assert told(LockTimeout(retry_after_s=3)).headers == {"Retry-After": "3"}
        assert told(LockTimeout(retry_after_s=0)).headers == {"Retry-After": "1"}

    def test_of_an_exception_are_made_fit_to_send(self) -> None:
        error = HTTPException(401, "x", {"WWW-Authenticate": "Bearer\r\nX-Evil: é", "Content-Length": 3})
        assert told(error).headers == {"WWW-Authenticate": "Bearer X-Evil: ?"}
        for headers in (17, ["ab", 1]):
            assert told(HTTPException(400, "x", headers=headers)).headers == {}


class TestBody:
    def test_has_four_keys(self) -> None:
        body = {"code": 404, "type": "NotFound", "message": "weg: é\ud800", "request_id": "r-1"}
        assert json.loads(Failure(404, "NotFound", "weg: é\ud800").body("r-1")) == body

    @pytest.mark.parametrize(("status", "phrase"), [(404, "Not Found"), (507, "Insufficient Storage"), (599, "")])
    def test_phrase(self, status: int, phrase: str) -> None:
        assert reason_phrase(status) == phrase

    @given(
        st.builds(HTTPException, st.integers() | st.none(), st.text() | st.dictionaries(st.text(), st.floats()))
        | st.builds(ValueError, st.text(st.characters())),
        st.sampled_from(["preprocess", "predict", "decode", INPUT, "encode"]),
    )
    def test_any_failure_can_be_sent(self, error: Exception, hook: str) -> None:
        failure = told(error, hook)
        assert 300 <= failure.status <= 599
        assert reason_phrase(failure.status).isascii()
        body = json.loads(failure.body("r-1"))
        assert list(body) == ["code", "type", "message", "request_id"]
        assert isinstance(body["message"], str)
        assert body["message"]


Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    def write(source: str, path: str = "user_model.py") -> ModuleType:
        file = tmp_path / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
        return module

    return write


def traceback_of(call: Callable[[], Any], root: Path) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return user_traceback(caught.value, user_root=str(root))


class TestTraceback:
    def test_holds_the_users_frames_only(self, load: Load, tmp_path: Path) -> None:
        load("import json\ndef parse(text):\n    return json.loads(text)\n", "helper.py")
        model = load("import helper\ndef predict(text):\n    return helper.parse(text)\n")
        text = traceback_of(lambda: model.predict("{"), tmp_path / "root")
        assert text.splitlines()[0] == "Traceback (most recent call last):"
        assert 'user_model.py", line 3, in predict' in text
        assert 'helper.py", line 3, in parse' in text
        assert "return json.loads(text)" in text
        assert text.count('  File "') == 2
        assert text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")
        assert text.endswith("\n")

    def test_keeps_causes_and_contexts_cut_too(self, load: Load, tmp_path: Path) -> None:
        model = load(
            """
            import json
            def predict(text):
                try:
                    json.loads(text)
                except ValueError as error:
                    try:
                        {}["gone"]
                    except KeyError:
                        raise RuntimeError("could not") from error
            """
        )
        text = traceback_of(lambda: model.predict("{"), tmp_path / "root")
        assert "JSONDecodeError" in text
        assert "direct cause" in text
        assert "RuntimeError: could not" in text
        assert "KeyError" not in text  # `from` says that it does not matter
        assert text.count('  File "') == 2

    def test_leaves_out_the_runtime_the_handler_and_packages(self, load: Load, tmp_path: Path) -> None:
        load("def call(hook):\n    return hook()\n", "handlergen_handler.py")
        load("def call(hook):\n    return hook()\n", "venv/site-packages/library.py")
        model = load(
            """
            import handlergen_handler, library
            def predict():
                return library.call(lambda: 1 / 0)
            """
        )
        handler = sys.modules["handlergen_handler"]
        text = traceback_of(lambda: handler.call(model.predict), tmp_path / "root")
        assert text.count('  File "') == 2
        assert text.count("user_model.py") == 2

    def test_frames_of_no_file_are_nobody_s(self, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As those of importlib, whose name would be a file's in the working directory, which is the model's."""
        model = load("import importlib\ndef predict():\n    return importlib.import_module('broken')\n")
        (tmp_path / "root" / "broken.py").write_text("1 / 0\n")
        monkeypatch.chdir(tmp_path / "root")
        monkeypatch.syspath_prepend(str(tmp_path / "root"))
        text = traceback_of(model.predict, tmp_path / "root")
        assert "importlib._bootstrap" not in text
        assert text.count('  File "') == 2

    def test_a_fault_outside_the_users_files_is_shown_whole(self, tmp_path: Path) -> None:
        text = traceback_of(lambda: json.loads("{"), tmp_path)
        assert "decoder.py" in text

    def test_a_verdict_of_the_runtime_is_one_line(self, tmp_path: Path) -> None:
        text = traceback_of(lambda: encode(object()), tmp_path)
        assert text.count("\n") == 1
        assert text.endswith("EncodeError: The answer cannot be encoded: answer is of type object\n")

    def test_a_syntax_error_shows_the_line(self, load: Load, tmp_path: Path) -> None:
        text = traceback_of(lambda: load("def predict(:\n    pass\n", "broken.py"), tmp_path / "root")
        assert 'broken.py", line 1' in text
        assert "def predict(:" in text
        assert "SyntaxError" in text

    def test_a_deep_recursion_stays_short(self, load: Load, tmp_path: Path) -> None:
        model = load("def predict():\n    return predict()\n")
        text = traceback_of(model.predict, tmp_path / "root")
        assert "RecursionError" in text
        assert len(text) < 2000

    def test_an_exception_that_cannot_be_shown_is_named(self, tmp_path: Path) -> None:
        def fail() -> None:
            raise Unprintable

        assert "Unprintable" in traceback_of(fail, tmp_path)

    def test_through_a_link_to_the_root(self, load: Load, tmp_path: Path) -> None:
        model = load("def predict():\n    raise LookupError\n")
        (tmp_path / "link").symlink_to(tmp_path / "root")
        text = traceback_of(model.predict, tmp_path / "link")
        assert text.count('  File "') == 1

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
    def test_groups_are_cut_too(self, load: Load, tmp_path: Path) -> None:
        model = load(
            """
            import json
            def predict():
                try:
                    json.loads("{")
                except ValueError as error:
                    raise ExceptionGroup("several", [error, KeyError("k")])
            """
        )
        text = traceback_of(model.predict, tmp_path / "root")
        assert "several" in text
        assert "JSONDecodeError" in text
        assert "decoder.py" not in text
