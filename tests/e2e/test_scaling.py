"""Workers that are ended under load answer what they have first: no request is lost, over REST and gRPC."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import RequestFailed, ServerError
from tests.archives import make_archive
from tests.histories import (
    SOURCE,
    Load,
    lost,
    overlapping,
    predicted,
    refused_by_the_queue,
    statuses,
    until,
    wrong,
)

pytestmark = pytest.mark.e2e

BATCHES = SOURCE.replace("def predict(", "def predict_one(").replace(
    "def postprocess(",
    "def predict(inputs, model):\n    return [predict_one(each, model) for each in inputs]\n\n\ndef postprocess(",
)

STREAM = """
import time

def predict(inputs):
    for number in range(inputs):
        yield str(number)
        time.sleep(0.1)
"""


class Site:
    def __init__(self, server: Any, home: Path) -> None:
        self.server = server
        self.client = server.client
        self.home = home

    def history(self, model: str) -> Path:
        return self.home / f"{model}.history"

    @contextmanager
    def load(self, model: str, clients: int = 16) -> Iterator[Load]:
        with Load(self.client, model, clients, grpc=4) as load:
            until(lambda: statuses(load.asked)[200] > 20)
            yield load
        assert not lost(load.asked)
        assert not wrong(load.asked)
        assert not overlapping(predicted(self.history(model)))


@pytest.fixture(scope="module")
def site(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("scaling")

    def made(place: Path, name: str, source: str = SOURCE, **settings: Any) -> Path:
        history = {"history": str(home / f"{name}.history")}
        return make_archive(place, name, source, config=history, lock_timeout_s=60, lock="model", **settings)

    server = torchserve_module(
        made(home, "single", predictor="worker", queue_size=8),
        made(home, "batches", BATCHES, predictor="process", stages="worker", batch="list", batch_size=8),
        made(home, "stream", STREAM, predictor="worker", workers_per_device=2),
        environ={"HANDLERGEN_STATE_DIR": str(home / "state")},
        model_api=True,
    )
    shutil.copy(made(home / "second", "single", predictor="worker", version="2.0"), server.store / "single-2.mar")
    return Site(server, home)


@pytest.mark.parametrize("model", ["single", "batches"])
def test_no_request_is_lost(site: Site, model: str) -> None:
    site.client.scale(model, 3)
    with site.load(model) as load:
        for workers in (1, 3, 2, 1):
            site.client.scale(model, workers)
    others = [each for each in load.asked if each.status != 200]
    if model == "single":  # eight places in the queue for sixteen clients
        others = [each for each in others if not refused_by_the_queue(each)]
    assert not others


def test_a_stream_ends_before_its_worker(site: Site) -> None:
    chunks: list[bytes] = []
    reader = threading.Thread(target=lambda: chunks.extend(site.client.stream("stream", 40)))
    other = threading.Thread(target=lambda: list(site.client.stream("stream", 40)))
    for thread in (reader, other):
        thread.start()
    until(lambda: chunks)
    assert len(site.client.scale("stream", 1).workers) == 1
    for thread in (reader, other):
        thread.join(20)
    assert b"".join(chunks) == "".join(map(str, range(40))).encode()


def test_a_worker_that_stays_busy_is_not_ended_unless_it_must(site: Site) -> None:
    site.client.scale("single", 2)
    before = site.server.worker_pids("single")
    notices: list[str] = []
    with Load(site.client, "single", 0) as load:
        hanging = [threading.Thread(target=load.ask, kwargs={"pre": 9}) for _ in range(2)]
        for thread in hanging:
            thread.start()
        time.sleep(0.5)
        with pytest.raises(ServerError, match="still busy with a request: no worker was ended"):
            site.client.scale("single", 1, timeout=6, notice=notices.append)
        assert site.server.worker_pids("single") == before
        assert [each.startswith("waiting until worker process") for each in notices] == [True]
        for thread in hanging:
            thread.join(20)
        assert statuses(load.asked) == {200: 2}
        until(lambda: not site.client.command("single", wait_s=10)["holding"], within_s=20)
        assert statuses([load.ask() for _ in range(4)]) == {200: 4}  # both answer again
        last = threading.Thread(target=load.ask, kwargs={"pre": 30})
        last.start()
        time.sleep(0.5)
        site.client.scale("single", 1, now=True)
    assert len(site.server.worker_pids("single")) == 1


def test_scaled_to_nothing_and_back(site: Site) -> None:
    site.client.scale("single", 2)
    with Load(site.client, "single", 4) as load:
        until(lambda: statuses(load.asked)[200] > 20)
    assert site.client.scale("single", 0).workers == ()
    assert load.ask().status == 503
    site.client.scale("single", 1)
    assert load.ask().status == 200
    assert statuses(load.asked).keys() == {200, 503}
    assert not wrong(load.asked)


def test_the_old_version_answers_what_it_has_before_it_goes(site: Site) -> None:
    site.client.scale("single", 2)
    with site.load("single") as load:
        site.client.register("single-2.mar", initial_workers=1)
        site.client.scale("single", 2, version="2.0")
        site.client.set_default("single", "2.0")
        site.client.unregister("single", version="1.0")
    assert not [each for each in load.asked if each.status != 200 and not refused_by_the_queue(each)]
    with pytest.raises(RequestFailed, match="404"):
        site.client.predict("single", {"n": 1}, version="1.0")
