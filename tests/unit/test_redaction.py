"""Secrets in what user code raises and logs: replaced by their names, whoever formats them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from handlergen.runtime.codec import redaction
from handlergen.runtime.codec.redaction import hide, without_secrets

SECRET = "s3cr3t/+value é\"'"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests hide is hidden from these tests only."""
    monkeypatch.setattr(redaction, "_names", {})
    monkeypatch.setattr(redaction, "_pattern", None)


@pytest.mark.parametrize(
    "written", [SECRET, quote(SECRET), quote(SECRET, safe=""), repr(SECRET), json.dumps(SECRET), f"x{SECRET}{SECRET}y"]
)
def test_a_secret_is_found_however_it_is_quoted(written: str) -> None:
    assert without_secrets(written) == written
    hide({"KEY": SECRET})
    found = without_secrets(f"https://example.org/?key={written}&a=1")
    assert "[secret KEY]" in found
    assert "s3cr3t" not in found
    assert found.startswith("https://example.org/?key=")


def test_each_line_of_a_long_secret_is_one() -> None:
    hide({"PEM": "-----BEGIN-----\nMIIabcdefgh\nMIIijklmnop\n-----END-----\n", "OTHER": "abcdef"})
    assert without_secrets("    MIIabcdefgh") == "    [secret PEM]"
    assert without_secrets("MIIxyz abcdef") == "MIIxyz [secret OTHER]"


def test_what_is_too_short_to_be_one_is_left() -> None:
    hide({"SHORT": "abc", "EMPTY": "", "BLANK": "        "})
    assert without_secrets("abc        abc") == "abc        abc"


RAISES = """
def setup(context):
    context.logger.info("starting with %s", context.secrets["API_KEY"])
    try:
        raise LookupError(f"early {context.secrets['API_KEY']}")
    except LookupError:
        context.logger.exception("went on")

class Refused(Exception):
    status_code = 403
    def __init__(self, detail):
        self.detail = detail

def preprocess(data, context):
    key = context.secrets["API_KEY"]
    if data == "value":
        raise ValueError(f"GET https://example.org/?key={key} failed")
    if data == "refused":
        raise Refused({"key": key})
    if data == "long":
        raise ValueError("x" * 3990 + key)
    return data, key

def predict(inputs):
    data, key = inputs
    if data == "predict":
        raise RuntimeError(f"401 for {key}") from KeyError(key)
    return data
"""


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        ("value", 400, "GET https://example.org/?key=[secret API_KEY] failed"),
        ("refused", 403, '{"key": "[secret API_KEY]"}'),
        ("predict", 500, "The model's predict failed; the server's log says why, under request id r0"),
        ("long", 400, None),
    ],
)
def test_errors_name_the_secret_and_do_not_tell_it(
    data: str,
    status: int,
    message: str | None,
    serve_project: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("API_KEY", "tops3cr3tvalue")
    with caplog.at_level(logging.INFO):
        served = serve_project(RAISES, secrets=["API_KEY"])
        ((seen, body),) = served(data)
    assert seen == status
    if message is not None:
        assert body["message"] == message
    # Not even the part of it that a message's greatest length would leave.
    assert "tops3" not in json.dumps(body)
    assert "starting with [secret API_KEY]" in caplog.text
    assert "early [secret API_KEY]" in caplog.text
    assert "tops3cr3t" not in caplog.text
    if status == 500:
        assert "401 for [secret API_KEY]" in caplog.text
        assert "KeyError: '[secret API_KEY]'" in caplog.text


def test_a_failed_load_does_not_tell_it(tmp_path: Any, serve_project: Any, monkeypatch: Any) -> None:
    from handlergen.runtime.codec.redaction import user_traceback

    monkeypatch.setenv("API_KEY", "tops3cr3tvalue")
    with pytest.raises(OSError, match="no model") as caught:
        serve_project(
            "def load(context):\n    raise OSError('no model at ' + context.secrets['API_KEY'])\n"
            "def predict(inputs, model):\n    return inputs\n",
            secrets=["API_KEY"],
        )
    shown = user_traceback(caught.value, user_root=str(tmp_path))
    assert "no model at [secret API_KEY]" in shown
    assert "tops3cr3t" not in shown
