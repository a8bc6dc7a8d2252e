"""Whatever is sent: no exception out of `handle`, one answer a request, and nobody's neighbour is harmed."""

from __future__ import annotations

import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from handlergen.archives.staging import make_bundle
from handlergen.inspection.project import open_project
from handlergen.runtime.contract import Bundle
from handlergen.runtime.worker import Worker
from tests.serving import ServerContext

pytestmark = [
    # ts leaves its version file open when it is imported.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MODELS = {
    "shows": """
        def preprocess(data, files, request):
            names = [(file.name, file.content_type, len(file.read())) for file in files]
            return [type(data).__name__, repr(data), names, request.path, dict(request.headers)]
        def predict(inputs):
            return inputs
        def postprocess(outputs, input_data):
            return input_data if isinstance(input_data, int) else [outputs, repr(input_data)]
        def explain(inputs, data):
            return repr(inputs)
        """,
    "echoes": "def predict(inputs): return inputs",
    "typed": """
        from dataclasses import dataclass
        @dataclass
        class Inner:
            n: int
        @dataclass
        class Query:
            text: str = ""
            inner: list[Inner] | None = None
            table: dict[str, float] | None = None
        def preprocess(data: Query | int):
            return data
        def predict(inputs):
            return inputs
        """,
    "named": "def predict(text='', k: int = 0): return [text, k]",
    "listed": """
        def preprocess(data):
            return data
        def predict(inputs):
            return list(inputs)
        """,
}
BATCH = {"listed": "list"}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    home = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(home))
        patch.setenv("HANDLERGEN_STATE_DIR", str(home / "state"))
        found = {}
        for name, source in MODELS.items():
            path = home / f"hostile_{name}.py"
            path.write_text(textwrap.dedent(source))
            own = {"name": name, "batch": BATCH.get(name, "each"), "batch_size": 8}
            project = open_project(path, overrides=own, environ={})
            bundle = Bundle.from_json(make_bundle(project).to_json())
            found[name] = Worker(bundle, home, gpu_id=None, batch_size=8)
        yield found
        for worker in found.values():
            worker.close()
    for module in [module for module in sys.modules if module.startswith("hostile_")]:
        del sys.modules[module]


text = st.text(max_size=20)
names = st.one_of(
    text,
    st.sampled_from(["data", "body", "explain", "describe", "url_path", "content-type", "ts_stream_next"]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {
        "name": text | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | json_values,
        "datatype": st.sampled_from(["FP32", "INT8", "UINT64", "BOOL", "BYTES", "FP16", "BF16"]) | text,
    },
    optional={
        "data": json_values | st.lists(st.integers() | st.floats() | text, max_size=6),
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 12) | json_values}) | json_values,
    },
)
kserve_bodies = st.one_of(
    st.fixed_dictionaries({"instances": st.lists(json_values, max_size=5) | json_values}),
    st.fixed_dictionaries(
        {"inputs": st.lists(tensors, max_size=3) | json_values},
        optional={
            **{"id": json_values, "outputs": json_values},
            "parameters": st.just({"binary_data_output": True}) | json_values,
        },
    ),
)
bodies = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda value: json.dumps(value).encode(), json_values | kserve_bodies),
    # Cut, and nested deeper than Python's stack.
    st.builds(lambda value, cut: json.dumps(value).encode()[:cut], json_values, st.integers(0, 30)),
    st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 50_000, b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'", b"1e999", b"\xef\xbb\xbf{}"]
    ),
)
content_types = st.one_of(
    st.sampled_from(
        [
            "application/json", "application/json; charset=utf-16", "APPLICATION/JSON;charset=\u00fc", "text/plain",
            "text/plain; charset=rot13", "application/octet-stream", "application/x-npy", "application/x-msgpack",
            "multipart/form-data", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
            "application/vnd.api+json", "image/png", "", ";",
        ]
    ),
    text,
)  # fmt: skip
headers = st.dictionaries(
    names | st.sampled_from(["Content-Length", "Accept", "Explain", "content-type", "Describe"]),
    text | st.sampled_from(["True", "False", "true", "0"]),
    max_size=4,
)
parts = st.dictionaries(names, bodies, max_size=4)


def _rest(body: bytes, kind: str, sent: dict[str, str], added: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"body": bytearray(body)}, {"body": {"content-type": kind}, **sent, "Content-Type": kind, **added}


def _form(
    entry: dict[str, bytes], kinds: list[str | None], sent: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    types = dict(zip(entry, itertools.cycle(kinds)))
    properties: dict[str, Any] = {name: {"content-type": kind} for name, kind in types.items()}
    return dict(entry), {**properties, **sent, "content-type": "multipart/form-data; boundary=x", **PREDICTIONS}


def _binary(value: Any, tensors: bytes, size: str | None, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    head = json.dumps(value).encode()
    sent = {"inference-header-content-length": str(len(head)) if size is None else size}
    return _rest(head + tensors, kind, sent, {"explain": "False"})


PREDICTIONS = {"explain": "False", "url_path": ""}
# What TorchServe itself adds, by the address that a request comes to.
EXPLANATIONS = {"explain": "True", "url_path": ""}
ADDED = st.sampled_from(
    [PREDICTIONS, EXPLANATIONS, {"explain": "False"}, {"explain": "True"}, {"describe": "True"}, {}]
)
rest_requests = st.builds(_rest, bodies, content_types, headers, ADDED)
form_requests = st.builds(_form, parts, st.lists(st.none() | content_types, min_size=1, max_size=3), headers)
grpc_requests = st.builds(lambda entry: (dict(entry), {name: {"content-type": ""} for name in entry}), parts)
binary_requests = st.builds(_binary, kserve_bodies, st.binary(max_size=24), st.none() | text, content_types)
hostile = rest_requests | form_requests | grpc_requests | binary_requests
GOOD = object()


@pytest.mark.parametrize("model", MODELS)
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(batch=st.lists(hostile | st.just(GOOD), min_size=1, max_size=5))
@example(batch=[_rest(b'{"instances":[1,{"b64":"%"}]}', "application/json", {}, {"explain": "False"}), GOOD])
@example(batch=[_rest(b"[" * 100_000, "application/json", {}, PREDICTIONS), GOOD])
@example(batch=[({"explain": b"1", "url_path": b"2"}, {"explain": {"content-type": ""}}), GOOD])
def test_anything_may_be_sent(workers: dict[str, Worker], model: str, batch: list[Any]) -> None:
    numbers = range(4711, 4711 + len(batch))
    requests = [
        _rest(str(number).encode(), "application/json", {}, PREDICTIONS) if each is GOOD else each
        for number, each in zip(numbers, batch, strict=True)
    ]
    context = ServerContext([properties for _, properties in requests])
    try:
        answers = workers[model].handle([entry for entry, _ in requests], context)
    except Exception as error:
        # A gRPC request that is alone gets its status from this; TorchServe takes no other.
        assert type(error).__name__ == "PredictionException"  # noqa: PT017 - it need not be raised
        assert len(batch) == 1
        assert not any(isinstance(value, str) for value in requests[0][1].values())
        return
    assert len(answers) == len(batch)
    for index, (each, answer, status) in enumerate(zip(batch, answers, context.statuses, strict=True)):
        assert type(answer) is bytes
        if each is GOOD and model != "named":
            assert (status, json.loads(answer)) == (200, numbers[index])
        if status >= 400:
            body = json.loads(answer)
            assert body.keys() - {"error"} == {"code", "type", "message", "request_id"}
            assert (body["code"], body["request_id"]) == (status, f"r{index}")
            assert not re.search(r'File "|Traceback|hostile_|runtime/', body["message"])
        # Nothing that is sent is the model's fault. (An answer may be too deep to be sent back.)
        assert status < 500 or status == 501 or json.loads(answer)["type"] == "EncodeError", answer
