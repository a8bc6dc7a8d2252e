"""The predictor process on a real TorchServe: one of it whatever happens, and every request answered."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.cli import main
from tests.archives import make_archive
from tests.histories import SOURCE, Load, lost, overlapping, predicted, predictors, recovery_s, statuses, until, wrong

pytestmark = pytest.mark.e2e


class Site:
    """A server with `process` and `other`, each with a predictor process."""

    def __init__(self, server: Any, home: Path) -> None:
        self.server = server
        self.client = server.client
        self.home = home
        self.state = home / "state"
        self.history = home / "history"

    def predictor(self, model: str = "process 1.0") -> int:
        (pid,) = [pid for pid, name in predictors(self.state).items() if name == model]
        return pid


@pytest.fixture(scope="module")
def site(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("process")
    history = {"config": {"history": str(home / "history")}}

    def made(place: Path, name: str, **settings: Any) -> Path:
        return make_archive(
            place, name, SOURCE, predictor="process", stages="worker", lock_timeout_s=20, **history, **settings
        )

    server = torchserve_module(
        made(home, "process", workers_per_device=2),
        made(home, "other"),
        environ={"HANDLERGEN_STATE_DIR": str(home / "state"), "HANDLERGEN_TRACE_DIR": str(home / "spans")},
        model_api=True,
    )
    second = made(home / "second", "process", version="2.0")
    shutil.copy(second, server.store / "process-2.mar")
    return Site(server, home)


def test_scaling_under_load_keeps_one_predictor_and_loses_nothing(site: Site) -> None:
    before = site.predictor()
    with Load(site.client, "process", clients=8) as load:
        for workers in (1, 8, 2):
            site.client.scale("process", workers)
            assert site.predictor() == before
            time.sleep(0.3)
    assert not lost(load.asked)
    assert not wrong(load.asked)
    assert set(statuses(load.asked)) == {200}, statuses(load.asked)
    assert {each.said["predictor"] for each in load.asked} == {before}


def test_a_predictor_killed_under_load(site: Site) -> None:
    with Load(site.client, "process") as load, Load(site.client, "other", clients=2) as beside:
        time.sleep(0.5)
        killed, moment = site.predictor(), time.monotonic()
        os.kill(killed, signal.SIGKILL)
        until(lambda: recovery_s(load.asked, moment) < 60)
        time.sleep(0.5)
    assert not lost(load.asked)
    assert not wrong(load.asked)
    assert set(statuses(load.asked)) <= {200, 500}, statuses(load.asked)
    assert statuses(load.asked)[500] <= 1  # the one that was in predict
    assert site.predictor() != killed
    assert set(statuses(beside.asked)) == {200}  # another model's predictor goes on
    assert not overlapping(predicted(site.history))


def test_workers_killed_under_load(site: Site) -> None:
    before = site.predictor()
    with Load(site.client, "process") as load:
        for _ in range(2):
            time.sleep(0.5)
            killed = random.choice(site.server.worker_pids("process"))
            os.kill(killed, signal.SIGKILL)  # one at a time: without any, the predictor ends after a while

            def replaced(killed: int = killed) -> bool:
                pids = site.server.worker_pids("process")
                return len(pids) == 2 and killed not in pids

            until(replaced)
    assert not lost(load.asked)
    assert not wrong(load.asked)
    assert set(statuses(load.asked)) <= {200, 500, 503, 507}, statuses(load.asked)  # TorchServe: 507, worker died
    assert site.predictor() == before
    assert load.ask().status == 200


def test_a_new_version_has_a_predictor_of_its_own_and_the_old_one_goes(site: Site) -> None:
    with Load(site.client, "other", clients=2) as load:
        site.client.register("process-2.mar", initial_workers=1, synchronous="true")
        assert set(predictors(site.state).values()) == {"process 1.0", "process 2.0", "other 1.0"}
        assert site.client.predict("process", {"n": 7}, version="2.0").json()["predictor"] == site.predictor(
            "process 2.0"
        )
        site.client.unregister("process", version="2.0")
        until(lambda: "process 2.0" not in predictors(site.state).values())
    assert set(statuses(load.asked)) == {200}
    assert site.client.predict("process", {"n": 8}).json()["predictor"] == site.predictor()


UNSENDABLE = """
import os
import threading

def preprocess(data):
    return {"lock": threading.Lock(), "preprocessed": os.getpid()}

def predict(inputs):
    with inputs["lock"]:
        return {"preprocessed": inputs["preprocessed"], "predicted": os.getpid()}
"""


def test_values_that_cannot_be_sent_are_no_failure_and_told_in_the_log_and_by_status(site: Site) -> None:
    settings: dict[str, Any] = {"predictor": "process", "stages": "worker", "workers_per_device": 2}
    shutil.copy(make_archive(site.home / "more", "unsendable", UNSENDABLE, **settings), site.server.store)
    site.client.register("unsendable.mar", initial_workers=2, synchronous="true")
    try:
        answers = [site.client.predict("unsendable", {"n": n}).json() for n in range(8)]
        assert {(each["preprocessed"], each["predicted"]) for each in answers} == {
            (site.predictor("unsendable 1.0"),) * 2
        }
        said = site.server.describe("unsendable")["predictor"]
        assert said["stages"] == "predictor"
        assert "cannot pickle" in said["stages_because"]
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
            patch.setenv("HANDLERGEN_STATE_DIR", str(site.state))
            with pytest.raises(SystemExit, match="0"):
                main(["status", "-c", str(site.server.config)])
        assert "runs whole requests (stages: predictor): what preprocess returned" in output.getvalue()
    finally:
        site.client.unregister("unsendable")
    until(lambda: "unsendable 1.0" not in predictors(site.state).values())
    assert site.client.ping() == "Healthy"


def test_nothing_overlapped_and_nothing_is_left_of_a_killed_server(site: Site) -> None:
    assert not overlapping(predicted(site.history))
    assert len(predictors(site.state)) == 2
    os.kill(site.server.pid, signal.SIGKILL)
    # Both at once: a worker that has not noticed yet may start one more process, which finds that nobody needs it.
    locks = site.state / "locks"
    until(lambda: not predictors(site.state) and not list(locks.glob("predictor-*")))
