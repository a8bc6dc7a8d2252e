"""The value of a secret is nowhere but in the environment and where the user's own code puts it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from handlergen.errors import RequestFailed
from handlergen.performance.recordings import of_stage, read_spans
from tests.archives import make_archive
from tests.histories import until

pytestmark = pytest.mark.e2e

SECRET = "Tr0ub4dor&3/+zebra"

SOURCE = """
class Refused(Exception):
    status_code = 402

    def __init__(self, detail):
        self.detail = detail

def setup(context):
    context.logger.warning("set up with %s", context.secrets["API_KEY"])

def load(context):
    context.logger.warning("loaded with %s", context.secrets["API_KEY"])
    return context.secrets["API_KEY"]

def preprocess(data, context):
    key = context.secrets["API_KEY"]
    if data == "value":
        raise ValueError("no connection to https://example.org/?key=" + key)
    if data == "refused":
        raise Refused({"key": key})
    if data == "other":
        raise RuntimeError(key)
    return data

def predict(inputs, model):
    key = model
    if inputs == "predict":
        raise ConnectionError("401 for the header " + repr({"Authorization": key})) from KeyError(key)
    if inputs == "unsendable":
        return {key: object()}
    return inputs

def postprocess(outputs, context):
    if outputs == "postprocess":
        raise MemoryError(context.secrets["API_KEY"])
    return len(context.secrets["API_KEY"]) if outputs == "good" else outputs

def is_healthy(context):
    raise RuntimeError(context.secrets["API_KEY"])
"""


PREDICTORS = ("worker", "process")
"""Who predicts, and the model's name: the worker itself, or a process beside it, which is given the secrets, too."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def server(torchserve_module: Callable[..., Any], place: Path) -> Any:
    keyed: dict[str, Any] = {"environ": {"API_KEY": SECRET}, "secrets": ["API_KEY"], "devices": "cpu"}
    return torchserve_module(
        *[make_archive(place, name, SOURCE, predictor=name, **keyed) for name in PREDICTORS],
        environ={
            "API_KEY": SECRET,
            "HANDLERGEN_TRACE_DIR": str(place / "spans"),
            "HANDLERGEN_STATE_DIR": str(place / "state"),
        },
    )


def spellings(value: str) -> set[bytes]:
    return {
        value.encode(),
        quote(value, safe="").encode(),
        quote(value).encode(),
        json.dumps(value)[1:-1].encode(),
        base64.b64encode(value.encode()),
    }


def files(*directories: Path) -> Iterator[tuple[str, bytes]]:
    for directory in directories:
        for path in directory.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()


def arguments(processes: list[psutil.Process]) -> Iterator[tuple[str, bytes]]:
    for process in processes:
        yield f"arguments of {process.pid}", "\0".join(process.cmdline()).encode()


@pytest.mark.parametrize("model", PREDICTORS)
def test_a_secret_is_in_no_archive_log_answer_span_or_argument(server: Any, place: Path, model: str) -> None:
    seen: list[tuple[str, bytes]] = []
    statuses = {}
    for data in ("value", "refused", "other", "predict", "unsendable", "postprocess"):
        with pytest.raises(RequestFailed) as caught:
            server.client.predict(model, data)
        statuses[data] = caught.value.status
        seen.append((f"answer to {data!r}", caught.value.body))
    assert statuses == {
        "value": 400, "refused": 402, "other": 500, "predict": 500, "unsendable": 500, "postprocess": 507,
    }  # fmt: skip
    assert server.client.predict(model, "good").json() == len(SECRET)  # it does have it
    described = server.describe(model)
    assert "settings" in described  # the model's own part is there
    seen += [("describe", json.dumps(described).encode())]
    # A predictor process writes its spans a moment after the answers.
    until(lambda: len(of_stage(read_spans(place / "spans", model=model), "predict")) >= 4)
    seen += files(place / "store", server.directory / "logs", server.directory, place / "spans", place / "state")
    seen += arguments(server.processes())
    assert len(list(arguments(server.processes()))) >= 2  # the frontend and a worker
    found = [(name, spelling) for name, content in seen for spelling in spellings(SECRET) if spelling in content]
    assert not found
    # The search looks where it should: all of these are told with the secret's name in its place.
    log = server.log_text()
    assert "set up with [secret API_KEY]" in log
    assert "loaded with [secret API_KEY]" in log
    assert "401 for the header {'Authorization': '[secret API_KEY]'}" in log
    bodies = {name: content for name, content in seen if name.startswith("answer")}
    assert b"?key=[secret API_KEY]" in bodies["answer to 'value'"]
    assert set(json.loads(bodies["answer to 'other'"])) == {"code", "type", "message", "request_id"}


def test_a_server_as_it_starts_is_closed_to_others(server: Any, place: Path) -> None:
    """Loopback only, tokens wanted, and nobody else may look into what it keeps."""
    ours = {process.pid for process in server.processes()}
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert listening
    for url in (
        f"{server.settings.inference_address}/ping",
        f"{server.settings.inference_address}/predictions/worker",
        f"{server.settings.management_address}/models",
    ):
        refused = httpx.get(url, trust_env=False)
        assert (refused.status_code, refused.json()["type"]) == (400, "InvalidKeyException")
    private = [server.directory / ".handlergen", Path(server.running.state.temp_dir), place / "state", place / "spans"]
    for directory in private:
        assert directory.stat().st_mode & 0o777 == 0o700, directory


def test_a_secret_that_is_not_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "keyed.py").write_text(SOURCE)
    program = (
        "import sys, handlergen\n"
        f"try:\n    handlergen.load({str(tmp_path / 'keyed.py')!r}, secrets=['API_KEY', 'OTHER_KEY'])\n"
        "except handlergen.HandlergenError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={"OTHER_KEY": SECRET}
    )
    assert "secret not set: API_KEY" in done.stdout, done.stderr
    assert SECRET not in done.stdout + done.stderr
