"""Hostile and broken clients at a real server: each is answered or cut off in time, and the next one is served.

First arbitrary bytes, forms, headers and input maps beside requests that must not notice, then the cases with a name.
tests/unit/test_hostile_requests.py sends more of these at the pipeline in process; here TorchServe's own decoders, the
sockets and the protocol between frontend and worker take part.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from handlergen.errors import RequestFailed
from tests.archives import make_archive

pytestmark = pytest.mark.e2e

LARGEST = 200_000
"""Bytes of a request; a small limit, so that the tests need not send megabytes."""

BOUND_S = 30.0
"""No answer may take longer, on however busy a machine; a good request's takes milliseconds."""

ECHO = """
def preprocess(data, files):
    return [len(files), len(data) if isinstance(data, (bytes, str, dict, list)) else data]

def predict(inputs):
    return inputs
"""

IMAGE = """
from io import BytesIO
from PIL import Image, UnidentifiedImageError

def preprocess(data):
    try:
        return list(Image.open(BytesIO(data)).convert("L").resize((2, 2)).size)
    except (TypeError, UnidentifiedImageError) as error:
        raise ValueError("send a PNG image") from error

def predict(inputs):
    return inputs
"""


SHOWS = """
def preprocess(data, files, request):
    return data, [(file.name, len(file.read())) for file in files], request.path

def predict(inputs):
    return inputs

def postprocess(outputs):
    data, files, path = outputs
    return data if isinstance(data, int) else [repr(data), files, path]

def explain(inputs, data):
    return repr(data)
"""

TYPED = """
from dataclasses import dataclass

@dataclass
class Query:
    text: str
    n: int = 0

def predict(inputs: Query | int):
    return inputs
"""

MODELS = ("shows", "query")


@pytest.fixture(scope="module")
def server(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("clients")
    archives = [make_archive(home, name, source, devices="cpu") for name, source in (("echo", ECHO), ("image", IMAGE))]
    batches: dict[str, Any] = {"batch_size": 4, "max_batch_delay_ms": 20}
    archives += [make_archive(home, "shows", SHOWS, **batches), make_archive(home, "query", TYPED, **batches)]
    return torchserve_module(*archives, token_authorization=False, max_request_size=LARGEST)


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(server: Any) -> Iterator[None]:
    """After each: a good request is answered, by the workers that were there before."""
    before = server.worker_pids("echo"), server.worker_pids("image")
    yield
    assert server.client.predict("echo", "good").json() == [0, 4]
    assert (server.worker_pids("echo"), server.worker_pids("image")) == before


@contextlib.contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    port = server.settings.addresses()["inference"][1]
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND_S) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body; status 0 when the server closed the connection instead."""
    response = http.client.HTTPResponse(connection, method="POST")
    try:
        response.begin()
        return response.status, response.read()
    except (ConnectionError, http.client.HTTPException):
        return 0, b""
    finally:
        response.close()


def post(
    server: Any,
    body: bytes,
    *headers: bytes,
    path: str = "/predictions/echo",
    kind: bytes = b"application/json",
    length: bytes | None = None,
) -> tuple[int, bytes]:
    """One request in a connection of its own, whose headers are sent as they are."""
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Content-Type: " + kind]
    lines += [b"Content-Length: " + (b"%d" % len(body) if length is None else length), *headers]
    with connected(server) as connection:
        # The server may answer and hang up before it has read everything.
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        return answer(connection)


def told(body: bytes) -> dict[str, Any]:
    """The error body that the model's own answers have."""
    value: dict[str, Any] = json.loads(body)
    assert set(value) == {"code", "type", "message", "request_id"}
    return value


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_!~", min_size=1, max_size=12)
NAMES = TOKEN | st.sampled_from(["explain", "describe", "url_path", "ts_stream_next", "Content-Type", "data", "body"])
VALUES = st.binary(max_size=20).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b""))
PATHS = st.sampled_from(
    [
        "/predictions/{}", "/predictions/{}/1.0/a/b", "/explanations/{}", "/v1/models/{}:predict",
        "/v1/models/{}:explain", "/v2/models/{}/infer", "/models/{}/invoke", "/{}/predict",
    ]
)  # fmt: skip
TYPES = st.sampled_from(
    [
        b"application/json", b"text/plain; charset=nonsense", b"multipart/form-data; boundary=x",
        b"multipart/form-data",
        b"application/x-www-form-urlencoded", b"application/x-npy", b"application/x-msgpack", b"\xff\xfe", b"",
    ]
) | VALUES  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FORM = st.lists(st.tuples(NAMES, st.binary(max_size=30)), max_size=3).map(
    lambda fields: (
        b"".join(
            b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name.encode(), content)
            for name, content in fields
        )
        + b"--x--\r\n"
    )
)
BODIES = st.one_of(
    st.binary(max_size=80),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"instances": st.lists(JSON, max_size=3)}).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"inputs": st.lists(JSON, max_size=3)}).map(lambda value: json.dumps(value).encode()),
    FORM,
    FORM.map(lambda body: body[: len(body) // 2]),
    st.sampled_from([b"[" * 50_000, b'{"a": 1}', b"a=1&b=%zz&=&=", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1}"]),
)
REST = st.tuples(PATHS, TYPES, st.dictionaries(NAMES, VALUES, max_size=3), BODIES)
GRPC = st.tuples(st.booleans(), st.dictionaries(st.text(max_size=8) | NAMES, st.binary(max_size=40), max_size=3))


def send_grpc(server: Any, model: str, request: tuple[bool, dict[str, bytes]]) -> tuple[int, bytes]:
    streams, entries = request
    try:
        if streams:
            return 200, b"".join(server.client.grpc.predict_stream(model, entries, timeout=30))
        return 200, server.client.grpc.predict(model, entries, timeout=30)
    except RequestFailed as error:
        return error.status, error.body


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # an unanswered request takes long: no search for a smaller one
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    model=st.sampled_from(MODELS),
    rest=st.lists(REST, max_size=2),
    grpc=st.lists(GRPC, max_size=2),
    number=st.integers(0, 9999),
)
def test_nobody_notices(server: Any, model: str, rest: list[Any], grpc: list[Any], number: int) -> None:
    pids = [server.worker_pids(name) for name in MODELS] if number % 10 == 0 else None
    with ThreadPoolExecutor(6) as pool:
        bad = [
            pool.submit(
                post,
                server,
                body,
                *(name.encode() + b": " + value for name, value in headers.items()),
                path=path.format(model),
                kind=kind,
            )
            for path, kind, headers, body in rest
        ]
        bad += [pool.submit(send_grpc, server, model, each) for each in grpc]
        good = [pool.submit(server.client.predict, model, number + index) for index in range(2)]
        for index, each in enumerate(good):
            assert each.result().json() == number + index
        for answered in bad:
            status, content = answered.result()
            if status >= 500 and b"request_id" in content:
                # The model's own answer; TorchServe's frontend may say 500 to what it cannot read at all.
                assert json.loads(content)["type"] in ("NotSupported", "EncodeError"), content
            assert b"Traceback" not in content
            assert b"Worker died" not in content
    if pids is not None:
        assert [server.worker_pids(name) for name in MODELS] == pids


def test_workers_are_those_that_started(server: Any) -> None:
    """After all of the above: nothing was restarted, and the log has no failure of a worker."""
    for name in MODELS:
        assert len(server.worker_pids(name)) == 1
    text = server.log_text()
    for sign in ("Worker died", "Worker disconnected", "Backend worker error", "NullPointerException"):
        assert sign not in text


def test_without_token_authorization_nothing_is_asked_for(server: Any) -> None:
    """As all of these tests: none of their requests has a token."""
    assert not (server.directory / "key_file.json").exists()
    assert post(server, b"1") == (200, b"[0,1]")
    assert server.client.grpc_management.models() == ["echo", "image", "query", "shows"]


def test_a_body_of_the_greatest_size_is_taken_and_a_larger_one_is_not(server: Any) -> None:
    text = b'"' + b"a" * (LARGEST - 2) + b'"'
    assert post(server, text) == (200, b"[0,%d]" % (LARGEST - 2))
    for size in (LARGEST + 1, 3 * LARGEST):
        status, _ = post(server, b'"' + b"a" * (size - 2) + b'"')
        assert status in (0, 413)


@pytest.mark.parametrize("length", [b"%d" % (1 << 40), b"-1", b"1e3", b"abc", b"99999999999999999999999", b"5, 6"])
def test_lengths_that_are_none_or_were_only_promised(server: Any, length: bytes) -> None:
    status, _ = post(server, b"", length=length)
    assert status in ((0, 413) if length.startswith(b"10") else (0, 400, 413))


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-%d: %s" % (number, b"a" * 100) for number in range(1000)],
        [b"X: " + b"a" * 100_000],
        [b"a" * 100_000 + b": x"],
        [b"X: y"] * 5000,
    ],
    ids=["many", "a long value", "a long name", "one again and again"],
)
def test_header_floods(server: Any, headers: list[bytes]) -> None:
    status, _ = post(server, b"1", *headers)
    assert status in (0, 400, 413, 414, 431)


NOT_JSON = {
    "open lists": b"[" * 100_000,
    "lists": b"[" * 90_000 + b"]" * 90_000,
    "objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "open objects": b'{"a":' * 20_000,
    "not UTF-8": b'"\xff\xfe"',
    "half a character": b"\xc3",
    "zeros": b"\x00" * 100,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_json_that_is_nested_too_deeply_or_not_utf_8_is_a_400(server: Any, body: bytes) -> None:
    status, said = post(server, body)
    assert (status, told(said)["type"]) == (400, "BadRequest")


NEARLY_JSON = {
    "a long number": b"9" * 100_000,
    "a large number": b"1e400",
    "a large negative number": b"-1e999999999",
    "many digits": b"0." + b"1" * 100_000,
    "NaN": b'{"a": NaN, "b": -Infinity}',
    "a key NaN": b"{NaN: 1}",
    "a key twice": b'{"NaN": 1, "NaN": 2}',
    # Half a surrogate pair is not UTF-8, but what JSON itself can write: Python reads both.
    "half a pair": b'{"\xed\xa0\x80": 1}',
    "half a pair, escaped": b'"\\ud800"',
}


@pytest.mark.parametrize("body", NEARLY_JSON.values(), ids=NEARLY_JSON)
def test_json_that_some_parsers_read_is_answered_with_json(server: Any, body: bytes) -> None:
    status, said = post(server, body)
    assert status in (200, 400)
    json.loads(said, parse_constant=pytest.fail)


@pytest.mark.parametrize("length", [b"-65536", b"-9223372036854775808"])
def test_a_negative_length_keeps_its_own_connection_waiting_and_no_other(server: Any, length: bytes) -> None:
    """TorchServe's frontend waits for such a body as for any that does not come: it answers nothing."""
    start = b"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Length: "
    with connected(server) as waiting:
        waiting.sendall(start + length + b"\r\n\r\n")
        for number in range(10):
            assert server.client.predict("echo", number).json() == [0, number]


def multipart(count: int) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
    return b"".join(part % number for number in range(count)) + b"--x--\r\n"


@pytest.mark.parametrize("count", [2500, 3000])
def test_thousands_of_parts(server: Any, count: int) -> None:
    status, said = post(server, multipart(count), kind=b"multipart/form-data; boundary=x")
    assert (status, said) == (200, b"[0,%d]" % count)


@pytest.mark.parametrize(
    "body",
    [
        b"--x\r\n" * 30_000,
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"y" * 10_000,
        b"--x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="' + b"n" * 100_000 + b'"\r\n\r\n1\r\n--x--\r\n',
    ],
    ids=["boundaries", "no end", "part headers", "a long name"],
)
def test_broken_forms(server: Any, body: bytes) -> None:
    status, said = post(server, body, kind=b"multipart/form-data; boundary=x")
    assert status in (0, 200, 400, 413, 500)
    assert b"Traceback" not in said


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    head = struct.pack(">2L5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_that_unpack_to_gigabytes_do_not(server: Any) -> None:
    good = png(2, 2, zlib.compress(b"\0\1\2" * 2))
    assert post(server, good, path="/predictions/image", kind=b"image/png") == (200, b"[2,2]")
    # PIL refuses what has more than 179 million pixels (Image.MAX_IMAGE_PIXELS, twice).
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        bomb = png(width, height, zlib.compress(bytes(1 << 20), 9))
        status, said = post(server, bomb, path="/predictions/image", kind=b"image/png")
        assert status in (400, 500)
        told(said)
    # A text chunk that unpacks to 100 megabytes; PIL's own limit is one.
    text = zlib.compress(bytes(100 << 20), 9)
    assert len(text) < LARGEST
    content = b"key\0\0" + text
    ztxt = struct.pack(">L", len(content)) + b"zTXt" + content + struct.pack(">L", zlib.crc32(b"zTXt" + content))
    status, said = post(server, good[:33] + ztxt + good[33:], path="/predictions/image", kind=b"image/png")
    assert status in (200, 400, 500)
    status, said = post(server, b"no image", path="/predictions/image", kind=b"image/png")
    assert (status, told(said)["message"]) == (400, "send a PNG image")


@pytest.mark.parametrize("kind", [b"application/x-npy", b"application/x-msgpack", b"application/octet-stream"])
def test_a_pickle_is_never_opened(server: Any, tmp_path: Path, kind: bytes) -> None:
    import pickle

    import numpy

    class Opened:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "canary",))

    array = io.BytesIO()
    numpy.save(array, numpy.array([Opened()], dtype=object), allow_pickle=True)
    for body in (pickle.dumps(Opened()), array.getvalue()):
        status, _ = post(server, body, kind=kind)
        assert status in (200, 400, 415)
    assert not (tmp_path / "canary").exists()
    numpy.load(io.BytesIO(array.getvalue()), allow_pickle=True)  # the control: somebody who opens it
    assert (tmp_path / "canary").exists()


def test_slow_clients_keep_nobody_waiting(server: Any) -> None:
    """Fifty that send a header and a half, fifty whose body does not come, and ten that read no answer."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(110)]
        start = b"POST /predictions/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for connection in slow[:50]:
            connection.sendall(start + b"X-Sl")
        for connection in slow[50:100]:
            connection.sendall(start + b"Content-Length: 1000\r\n\r\n[")
        for connection in slow[100:]:
            connection.sendall(start + b"Content-Length: 1\r\n\r\n1")
        for number in range(20):
            for connection in slow[:100:10]:
                connection.sendall(b"o")
            begun = time.monotonic()
            assert server.client.predict("echo", number).json() == [0, number]
            assert time.monotonic() - begun < BOUND_S
        assert [answer(connection) for connection in slow[100:]] == [(200, b"[0,1]")] * 10


def test_clients_that_leave_midway(server: Any) -> None:
    for part in (b"POST", b"POST /predictions/echo HTTP/1.1\r\n", b"X: y\r\nContent-Length: 100\r\n\r\nabc"):
        for _ in range(20):
            with connected(server) as connection:
                connection.sendall(part)
                # RST rather than a polite end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 1000,
        b"POST /predictions/echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n",
        b"POST /predictions/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /predictions/" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["TLS", "version", "HTTP/2", "blank lines", "two lengths", "path", "long path"],
)
def test_what_is_no_request(server: Any, raw: bytes) -> None:
    with connected(server) as connection:
        with contextlib.suppress(OSError):  # it may have hung up already
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        status, said = answer(connection)
    assert status == 0 or 400 <= status < 600
    assert b"root:" not in said


def test_all_of_it_at_once(server: Any) -> None:
    """Six hostile clients at a time beside good ones, each of which gets its own answer."""
    bodies = [b"[" * 50_000, b'"\xff"', b"9" * 50_000, b'"' + b"a" * 2 * LARGEST + b'"', b"{", multipart(500)]
    stop = threading.Event()

    def attack(body: bytes) -> None:
        while not stop.is_set():
            post(server, body)

    attackers = [threading.Thread(target=attack, args=(body,)) for body in bodies]
    for attacker in attackers:
        attacker.start()
    try:
        for number in range(30):
            assert server.client.predict("echo", number).json() == [0, number]
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join(BOUND_S)
    assert not any(attacker.is_alive() for attacker in attackers)
