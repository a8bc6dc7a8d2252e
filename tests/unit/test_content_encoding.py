"""Bodies with a Content-Encoding: decompressed within the server's limit, or refused with a message that names it."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

ECHO = """
def predict(inputs):
    return {"type": type(inputs).__name__, "size": len(inputs)}
"""
OCTETS = {"content-type": "application/octet-stream"}
RAW = zlib.compressobj(wbits=-15)
RAW_DEFLATE = RAW.compress(b'{"a": 1}') + RAW.flush()


def ask(served: Any, body: bytes, coding: str, **headers: str) -> tuple[int, Any]:
    ((status, answer),) = served.raw((body, {"Content-Encoding": coding, **headers}))
    return status, json.loads(answer)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(b'{"a": 1}'), "gzip"),
        (gzip.compress(b'{"a": 1}'), "X-GZip"),
        (gzip.compress(b'{"a"') + gzip.compress(b": 1}"), "gzip"),
        (zlib.compress(b'{"a": 1}'), "deflate"),
        (RAW_DEFLATE, "deflate"),
        (gzip.compress(zlib.compress(b'{"a": 1}')), "deflate, gzip"),
        (b'{"a": 1}', "identity"),
        (b'{"a": 1}', ""),
    ],
)
def test_json_is_read_however_it_is_compressed(serve_project: Callable[..., Any], body: bytes, coding: str) -> None:
    assert ask(serve_project(ECHO), body, coding) == (200, {"type": "dict", "size": 1})


def test_bytes(serve_project: Callable[..., Any]) -> None:
    assert ask(serve_project(ECHO), gzip.compress(bytes(5000)), "gzip", **OCTETS) == (
        200,
        {"type": "bytes", "size": 5000},
    )


@pytest.mark.parametrize("coding", ["br", "gzip, zstd"])
def test_another_encoding_is_named(serve_project: Callable[..., Any], coding: str) -> None:
    served = serve_project(ECHO)
    status, body = ask(served, b"...", coding)
    assert (status, body["type"]) == (415, "UnsupportedEncoding")
    assert f"The Content-Encoding '{coding[-2:] if coding == 'br' else 'zstd'}' is not supported" in body["message"]
    assert served.context.headers[0]["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b'{"a": 1}', "gzip"),
        (gzip.compress(b"[1]")[:-9], "gzip"),
        (zlib.compress(b"[1]")[:-5], "deflate"),
        (b"", "gzip"),
    ],
)
def test_a_broken_body_is_the_clients_fault(serve_project: Callable[..., Any], body: bytes, coding: str) -> None:
    status, answer = ask(serve_project("def predict(inputs): return 1"), body, coding)
    if body:
        assert (status, answer["type"]) == (400, "BadRequest")
        assert f"The body is not valid {coding}, which its Content-Encoding names" in answer["message"]
    else:
        assert status == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_without_its_memory(
    serve_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, coding: str
) -> None:
    monkeypatch.setenv("TS_MAX_REQUEST_SIZE", "100000")
    body = (gzip if coding == "gzip" else zlib).compress(bytes(100_000_000))
    served = serve_project(ECHO)
    tracemalloc.start()
    try:
        status, answer = ask(served, body, coding, **OCTETS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (status, answer["type"]) == (413, "BodyTooLarge")
    assert "larger than the 100000 bytes that the server accepts (max_request_size)" in answer["message"]
    assert peak < 5_000_000


def test_a_form_is_refused_because_the_server_reads_it(serve_project: Callable[..., Any]) -> None:
    status, answer = ask(serve_project(ECHO), b"--x", "gzip", **{"content-type": "multipart/form-data; boundary=x"})
    assert (status, answer["type"]) == (415, "UnsupportedEncoding")
    assert "Send the form uncompressed" in answer["message"]


def test_kserve(serve_project: Callable[..., Any]) -> None:
    body = gzip.compress(b'{"instances": [[1, 2], [3]]}')
    assert ask(serve_project("def predict(inputs): return sum(inputs)"), body, "gzip", explain="False") == (
        200,
        {"predictions": [3, 3]},
    )


def test_locally_and_in_a_request_hook(model: Callable[..., Any]) -> None:
    loaded = model(
        """
        class Model:
            async def predict(self, inputs, request: "Request"):
                return [inputs, (await request.body()).decode()]
        """
    )
    answer = loaded.request(
        gzip.compress(b"[1]"), content_type="application/json", headers={"content-encoding": "gzip"}
    )
    assert answer.value == [[1], "[1]"]
