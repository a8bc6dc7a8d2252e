"""Arbitrary bytes, forms, headers and input maps at real workers, beside requests that must not notice.

tests/unit/test_hostile_requests.py sends more of them, at the pipeline in process; here TorchServe's own decoders, the
sockets and the protocol between frontend and worker take part.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from handlergen.errors import RequestFailed
from tests.archives import make_archive

pytestmark = pytest.mark.e2e

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
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("hostile")
    batches: dict[str, Any] = {"batch_size": 4, "max_batch_delay_ms": 20}
    return shared(make_archive(home, "shows", SHOWS, **batches), make_archive(home, "query", TYPED, **batches))


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


def send_rest(server: Any, model: str, request: tuple[str, bytes, dict[str, bytes], bytes]) -> tuple[int, bytes]:
    """One request in its own connection, byte for byte as it was made up."""
    path, kind, headers, body = request
    lines = [
        f"POST {path.format(model)} HTTP/1.1".encode(),
        b"Host: x",
        f"Authorization: Bearer {server.key()}".encode(),
    ]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    lines += [b"Content-Type: " + kind, b"Content-Length: %d" % len(body)]
    port = server.settings.addresses()["inference"][1]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection, method="POST")
        try:
            response.begin()
            return response.status, response.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, b""  # the frontend hung up on what it cannot read


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
        bad = [pool.submit(send_rest, server, model, each) for each in rest]
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
