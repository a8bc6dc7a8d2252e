"""What happens to requests when the predictor process or the user's code in it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.histories import until
from tests.processes.conftest import Crew, CrewWorker
from tests.processes.faults import MODULE

Crews = Callable[..., Crew]


def while_waiting(found: Crew, workers: list[CrewWorker], **fault: Any) -> tuple[Any, list[Any]]:
    """The answer to a request with a fault, and to those that waited behind it."""
    blocker = workers[0].later({"predict": 1.0, "n": -1})
    time.sleep(0.3)
    culprit = workers[1].later({"n": 0, **fault})
    time.sleep(0.2)
    behind = [worker.later({"n": n}) for n, worker in enumerate(workers[2:], 1)]
    assert blocker.result(30)[0] == 200
    return culprit.result(30), [each.result(30) for each in behind]


@pytest.mark.parametrize("death", ["kill", "segfault", "exit"])
def test_a_death_in_predict_fails_its_request_and_no_other(crew: Crews, death: str) -> None:
    found = crew(MODULE)
    workers = found.ready(5)
    before = found.predictor()
    (status, body), behind = while_waiting(found, workers, predict=death)
    assert (status, body["code"]) == (500, 500)
    assert [(status, body.get("n"), body.get("message")) for status, body in behind] == [
        (200, n, None) for n in (1, 2, 3)
    ]
    (after,) = {body["predictor"] for _, body in behind}
    assert after != before
    assert workers[0].describe()["predictor"]["restarts"] == 1
    if death == "segfault":
        until(lambda: "Segmentation fault" in found.log())


def test_with_its_stages_there_a_death_in_preprocess_fails_its_request_and_no_other(crew: Crews) -> None:
    found = crew(MODULE, stages="predictor")
    workers = found.ready(4)
    blocker = workers[0].later({"predict": 1000})  # in predict: it dies too
    time.sleep(0.5)
    waiting = workers[1].later({"n": 5})  # has been preprocessed, and waits
    time.sleep(0.2)
    status, body = workers[2].ask({"pre": "segfault"})
    assert (status, body["code"]) == (500, 500)
    assert blocker.result(20)[0] == 500
    status, body = waiting.result(20)
    assert (status, body["n"]) == (200, 5)
    assert body["worker"] == body["predictor"] == found.predictor()


def test_a_request_that_kills_every_process_it_waits_in_is_not_tried_for_ever(crew: Crews) -> None:
    found = crew(MODULE)
    worker, other = found.ready(2)
    began = time.monotonic()
    statuses = [worker.ask({"predict": "exit"})[0] for _ in range(4)]
    assert statuses == [500] * 4
    assert time.monotonic() - began > 3  # back-off: 0, 1, 2 s
    assert other.ask({"n": 1})[0] == 200


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_a_predict_that_does_not_return_is_killed_in_time(crew: Crews, stages: str) -> None:
    found = crew(MODULE, predict_timeout_s=1.5, stages=stages)
    workers = found.ready(4)
    (status, body), behind = while_waiting(found, workers, predict="spin")
    assert (status, body["code"]) == (504, 504)
    assert "1.5 s" in body["message"]
    assert [status for status, _ in behind] == [200, 200]
    until(lambda: "predict_timeout_s" in found.log())
    assert len(found.predictors()) == 1


def test_a_stopped_predictor_gives_way_to_the_next(crew: Crews) -> None:
    found = crew(MODULE, lock_timeout_s=1)
    worker = found.worker()
    os.kill(predictor := found.predictor(), signal.SIGSTOP)
    began = time.monotonic()
    status, body = worker.ask({"n": 1})
    assert (status, body["code"]) == (503, 503)
    assert time.monotonic() - began < 15
    described = worker.describe()["predictor"]
    assert "unavailable" in described
    os.kill(predictor, signal.SIGCONT)
    assert worker.ask({"n": 2})[0] == 200


def test_a_model_that_cannot_be_loaded_says_why_once(crew: Crews) -> None:
    found = crew(MODULE)
    (found.model / "cannot-load").write_text("the weights are missing")
    worker = found.worker()
    assert worker.failure is not None
    assert "RuntimeError: the weights are missing" in worker.failure
    until(lambda: "RuntimeError: the weights are missing" in found.log())
    assert found.log().count("Traceback") == 1
    until(lambda: not found.predictors())


def test_a_model_that_dies_while_it_loads_fails_the_worker(crew: Crews) -> None:
    found = crew(MODULE)
    (found.model / "cannot-load").write_text('"segfault"')
    worker = found.worker()
    assert worker.failure is not None
    assert "its predictor process was ended by signal 11 (SIGSEGV) while it loaded the model" in worker.failure
    until(lambda: "Segmentation fault" in found.log())


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_a_model_that_cannot_be_loaded_again_is_503_until_it_can(crew: Crews, stages: str) -> None:
    found = crew(MODULE, stages=stages)
    worker = found.worker()
    (found.model / "cannot-load").write_text("the weights have gone")
    os.kill(found.predictor(), signal.SIGKILL)
    until(lambda: "the weights have gone" in found.log())
    ((status, headers, body),) = worker.batch([{"n": 1}])
    assert status == 503
    assert "the weights have gone" in json.loads(body)["message"]
    assert 1 <= int(headers["Retry-After"]) <= 30
    (found.model / "cannot-load").unlink()
    until(lambda: worker.ask({"n": 2})[0] == 200)


@pytest.mark.parametrize("stages", ["worker", "predictor"])
def test_errors_of_the_model_leave_the_process_as_it_is(crew: Crews, stages: str) -> None:
    found = crew(MODULE, stages=stages)
    worker = found.worker()
    before = found.predictor()
    expected = {"memory": 507, "cuda memory": 507, "system exit": 500, "cancelled": 500, "error": 500}
    assert {what: worker.ask({"predict": what})[0] for what in expected} == expected
    assert worker.ask({"pre": "memory"})[0] == 507
    assert worker.ask({"n": 9})[1]["predictor"] == before
    until(lambda: "CancelledError" in found.log())
    until(lambda: "as asked" in found.log())  # once: the worker does not repeat it
    time.sleep(0.3)
    assert found.log().count("RuntimeError: as asked") == 1


def test_a_device_that_does_not_answer_any_more_costs_the_process_and_one_request(crew: Crews) -> None:
    found = crew(MODULE)
    workers = found.ready(4)
    before = found.predictor()
    (status, _), behind = while_waiting(found, workers, predict="broken")
    assert status == 500
    assert [status for status, _ in behind] == [200, 200]
    assert all(body["predictor"] != before for _, body in behind)
    until(lambda: "the device does not answer any more" in found.log())


def test_a_worker_that_dies_while_its_request_waits_is_skipped(crew: Crews) -> None:
    found = crew(MODULE)
    workers = found.ready(3)
    blocker = workers[0].later({"predict": 1.0, "n": 1})
    time.sleep(0.3)
    workers[1].later({"n": 2})
    behind = workers[2].later({"n": 3})
    time.sleep(0.2)
    workers[1].kill()
    assert [blocker.result(20)[0], behind.result(20)[0]] == [200, 200]
    assert [span[1] for span in found.history()] == [1, 3]
