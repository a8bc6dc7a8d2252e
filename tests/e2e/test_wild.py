"""Modules as people bring them, on a real TorchServe: what is right in plain Python is right here."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from handlergen.archives.build import archive
from tests.archives import make_archive
from tests.contexts import MODULE, answer, requests
from tests.histories import until

pytestmark = pytest.mark.e2e

OWN_LOGGING = """
    import logging.config

    logging.config.dictConfig({
        "version": 1,
        "handlers": {"out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
        "root": {"level": "DEBUG", "handlers": ["out"]},
    })


    def load(context):
        context.logger.warning("load speaks")
        return 3


    def predict(inputs, model):
        if inputs < 0:
            raise RuntimeError("no score below zero")
        return inputs * model
    """

BODIES = """
    def predict(inputs):
        return {"type": type(inputs).__name__, "size": len(inputs)}
    """

TOWNS = """
    import sqlite3

    DB = sqlite3.connect(":memory:", check_same_thread=False)
    DB.execute("create table towns (code text, name text)")
    DB.execute("insert into towns values ('1', 'Tokyo')")


    def name_of(code):
        return DB.execute("select name from towns where code = ?", (code,)).fetchone()[0]


    def load(context):
        return name_of


    def preprocess(data):
        return data["code"], name_of(data["code"])


    def predict(inputs, model):
        code, before = inputs
        return [before, model(code)]
    """

ASYNC = """
    import asyncio


    async def setup(context):
        global LOCK
        LOCK = asyncio.Lock()
        async with LOCK:
            pass


    async def load(context):
        queue = asyncio.Queue()
        await queue.put("token")
        return queue


    async def preprocess(data):
        async with LOCK:
            await asyncio.sleep(0)
            return data


    async def predict(inputs, model):
        token = await model.get()
        await model.put(token)
        return [inputs, token]
    """

EVENTS = """
    class StreamingResponse:
        '''As Starlette's.'''

        def __init__(self, body_iterator, media_type):
            self.body_iterator, self.media_type = body_iterator, media_type
            self.status_code, self.headers, self.background = 200, {}, None


    class Model:
        async def _events(self, count):
            for number in range(count):
                yield f"data: {number}\\n\\n"

        def predict(self, model_input):
            return StreamingResponse(self._events(model_input["count"]), media_type="text/event-stream")
    """

UNSENDABLE = """
    import threading


    def load(context):
        return 2


    def preprocess(data):
        return data, threading.Lock()


    def predict(inputs, model):
        number, lock = inputs
        with lock:
            return number * model
    """

LIBRARY = """
    import mimetypes


    def load(context):
        mimetypes.add_type("image/x-scan", ".scan")
        return 1


    def preprocess(data):
        return mimetypes.guess_type("a.scan")[0]


    def predict(inputs, model):
        return inputs
    """

HELPED = {
    "config.yaml": "model_name: helped\n",
    "model/__init__.py": "",
    "model/helper.py": "def double(x):\n    return 2 * x\n",
    "model/model.py": """\
import helper
import model.helper

from .helper import double


class Model:
    def predict(self, model_input):
        x = model_input["x"]
        return [helper.double(x), model.helper.double(x), double(x)]
""",
}


@pytest.fixture(scope="module")
def served(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("wild")
    truss = home / "helped"
    for name, text in HELPED.items():
        (truss / name).parent.mkdir(parents=True, exist_ok=True)
        (truss / name).write_text(text)
    mars = [
        make_archive(home, "ownlog", OWN_LOGGING),
        make_archive(home, "ownlogw", OWN_LOGGING, predictor="worker"),
        make_archive(home, "bodies", BODIES),
        make_archive(home, "towns", TOWNS, batch_size=4, max_batch_delay_ms=50),
        make_archive(home, "contexts", MODULE, batch_size=4, max_batch_delay_ms=50),
        make_archive(home, "asynchronous", ASYNC),
        make_archive(home, "events", EVENTS),
        make_archive(home, "unsendable", UNSENDABLE),
        make_archive(home, "library", LIBRARY),
        archive(truss, model_store=home / "store", name="helped", workers_per_device=1).path,
    ]
    return shared(*mars)


def post(server: Any, name: str, body: Any, **headers: str) -> httpx.Response:
    host, port = server.settings.addresses()["inference"]
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key()}", **headers}
    content = body if isinstance(body, bytes) else json.dumps(body)
    return httpx.post(f"http://{host}:{port}/predictions/{name}", content=content, headers=sent, timeout=60)


def at_once(server: Any, name: str, values: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda value: post(server, name, value).json(), values))


@pytest.mark.parametrize("name", ["ownlog", "ownlogw"])
def test_the_modules_own_logging_hides_no_failure(served: Any, name: str) -> None:
    assert post(served, name, 2).json() == 6
    failed = post(served, name, -1)
    assert failed.status_code == 500
    until(lambda: failed.json()["request_id"] in served.log_text())
    text = served.log_text().partition(failed.json()["request_id"])[2]
    assert until(lambda: text.count("RuntimeError: no score below zero")) == 1
    assert "load speaks" in served.log_text()


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(served: Any, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    headers = {"Content-Encoding": encoding}
    assert post(served, "bodies", compress(b'{"a": 1}'), **headers).json() == {"type": "dict", "size": 1}
    headers["Content-Type"] = "application/octet-stream"
    assert post(served, "bodies", compress(bytes(5000)), **headers).json() == {"type": "bytes", "size": 5000}
    bomb = compress(bytes(served.settings.max_request_size + 1))
    assert post(served, "bodies", bomb, **headers).status_code == 413
    refused = post(served, "bodies", b"x", **{**headers, "Content-Encoding": "br"})
    assert refused.status_code == 415
    assert "br" in refused.json()["message"]


def test_a_connection_that_any_thread_may_use(served: Any) -> None:
    assert at_once(served, "towns", [{"code": "1"}] * 12) == [["Tokyo", "Tokyo"]] * 12


def test_each_request_has_its_own_context(served: Any) -> None:
    wanted = requests(7, 24)
    assert at_once(served, "contexts", wanted) == [answer(request) for request in wanted]


def test_async_hooks_share_what_setup_and_load_made(served: Any) -> None:
    assert at_once(served, "asynchronous", [*range(16)]) == [[number, "token"] for number in range(16)]


def test_a_response_that_streams(served: Any) -> None:
    answered = post(served, "events", {"count": 3})
    assert answered.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert answered.headers["Content-Type"].startswith("text/event-stream")


def test_values_that_cannot_cross(served: Any) -> None:
    assert at_once(served, "unsendable", [*range(8)]) == [2 * number for number in range(8)]


def test_what_load_sets_up_in_a_library(served: Any) -> None:
    assert at_once(served, "library", [1] * 4) == ["image/x-scan"] * 4


def test_files_beside_a_truss_s_model(served: Any) -> None:
    assert post(served, "helped", {"x": 2}).json() == [4, 4, 4]
