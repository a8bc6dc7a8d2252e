"""Parts of a request on the command line: sent as they were typed, or refused before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen.cli.invoke import _grpc_inputs, _rest_body
from handlergen.cli.printing import writable
from handlergen.cli.requests import field_of, headers_of
from handlergen.client.client import payload
from handlergen.errors import HandlergenError
from handlergen.local.requests import form_request
from handlergen.performance.bench.measure import of_fields, of_json_text

NO_TEXT = os.fsdecode(b"caf\xe9")


@pytest.fixture
def refusal(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    def refuse(*arguments: str) -> str:
        status, _, said = run(*arguments)
        assert status == 2
        return said

    return refuse


def test_data_that_is_no_text_is_sent_as_it_was_typed() -> None:
    assert _rest_body(NO_TEXT, None, (), content_type=None, headers={})["content"] == b"caf\xe9"
    assert _grpc_inputs(NO_TEXT, None, ()) == {"data": b"caf\xe9"}
    assert of_json_text(NO_TEXT).content == b"caf\xe9"


def test_a_field_that_is_no_text_is_sent_as_it_was_typed() -> None:
    field = dict([field_of(f"name={NO_TEXT}")])
    assert _grpc_inputs(None, None, (f"name={NO_TEXT}",)) == {"name": b"caf\xe9"}
    assert payload(fields=field)[1]["files"] == [("name", (None, b"caf\xe9"))]
    assert form_request(field)[0] == {"name": bytearray(b"caf\xe9")}
    assert b"caf\xe9" in of_fields(field).content


def test_predict_sends_data_that_is_no_text(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    status, _, said = run("predict", str(tmp_path / "echo.py"), NO_TEXT)
    assert status == 6
    assert "not UTF-8" in said


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("x:ü", "is not printable ASCII"),
        ("x:a\x00b", "is not printable ASCII"),
        ("x:a\r\ny: b", "is not printable ASCII"),
        ("x y:1", "'x y' is not a valid header name"),
        ("ü:1", "is not a valid header name"),
        ("content-length: 5", "content-length follows from the body"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding follows from the body"),
    ],
)
@pytest.mark.parametrize("verb", ["invoke", "predict"])
def test_a_header_that_no_request_carries_is_refused(
    tmp_path: Path, refusal: Callable[..., str], verb: str, header: str, message: str
) -> None:
    (tmp_path / "echo.py").touch()
    assert message in refusal(verb, str(tmp_path / "echo.py"), "--data", "1", "--header", header)


def test_usual_headers_pass() -> None:
    given = ["X-User: me", "traceparent:00-0af7-b7ad-01", 'x:"a; b=c"', "empty:"]
    found = {"X-User": "me", "traceparent": "00-0af7-b7ad-01", "x": '"a; b=c"', "empty": ""}
    assert headers_of(given) == found


def test_a_name_of_a_field_that_is_no_text_is_refused(refusal: Callable[..., str]) -> None:
    said = refusal("invoke", "digits", "--field", f"{NO_TEXT}=1")
    assert "a field's name must be UTF-8" in said


@pytest.mark.parametrize("seconds", ["-1", "0", "inf", "1e12"])
@pytest.mark.parametrize("verb", [("invoke", "digits", "--data", "1"), ("scale", "digits", "--workers", "1")])
def test_a_timeout_that_means_nothing_is_refused(
    refusal: Callable[..., str], verb: tuple[str, ...], seconds: str
) -> None:
    assert "Invalid value for '--timeout'" in refusal(*verb, "--timeout", seconds)


def test_output_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    assert writable(tmp_path / "x") == tmp_path / "x"
    with pytest.raises(HandlergenError, match="there is no directory"):
        writable(tmp_path / "no" / "x")
