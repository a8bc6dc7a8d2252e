"""One predictor process, never two, never none that is needed, none that is not; and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from handlergen.runtime.predictor_process.run_directory import StatusFile, remove_orphans
from tests.histories import until
from tests.processes.conftest import Crew
from tests.processes.faults import MODULE

Crews = Callable[..., Crew]


def without_orphans(found: Crew) -> bool:
    """Whether none is left; a process that is killed holds its lock until the kernel has taken it apart."""
    remove_orphans(found.state / "locks")
    return found.homes == []


def test_twenty_workers_that_start_at_once_start_one_predictor(crew: Crews) -> None:
    found = crew(MODULE)
    workers = found.ready(20)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda worker: worker.ask({"n": worker.pid, "predict": 0.01}), workers))
    assert [(status, body["n"], body["worker"]) for status, body in answers] == [
        (200, worker.pid, worker.pid) for worker in workers
    ]
    assert {body["predictor"] for _, body in answers} == {found.predictor()}
    assert len((found.model / "loads").read_text().split()) == 1
    children = {child.pid for worker in workers for child in psutil.Process(worker.pid).children()}
    assert children == {found.predictor()}  # no process that was to be one, and was not needed
    assert not found.overlapping()
    assert not any(worker.tell("cuda") for worker in workers[:2])


def test_a_worker_killed_while_it_starts_the_predictor(crew: Crews) -> None:
    found = crew(MODULE)
    for _ in range(3):
        found.launch()
        connection = found.accept_unready()
        (home,) = until(lambda: found.homes)
        until((home / "start.lock").exists)
        for process in psutil.Process(found.server.pid).children():
            process.kill()
        connection.close()
    worker = found.worker()
    assert worker.failure is None
    assert worker.ask({"n": 1})[0] == 200
    until(lambda: len(found.predictors()) == 1)
    time.sleep(0.5)
    assert worker.ask({"n": 2})[1]["predictor"] == found.predictor()


def test_a_start_that_takes_long_is_not_time_without_workers(crew: Crews) -> None:
    """Importing torch takes a loaded machine longer than a process without workers lives."""
    found = crew(MODULE)
    found.launch()
    connection = found.accept_unready()
    (predictor,) = until(found.predictors)
    (home,) = found.homes
    until((home / "socket").exists)
    os.kill(predictor, signal.SIGSTOP)
    for process in psutil.Process(found.server.pid).children():
        process.kill()
    connection.close()
    time.sleep(6)
    os.kill(predictor, signal.SIGCONT)
    until(lambda: StatusFile.open(home / "status").look().state == "idle")
    time.sleep(0.5)
    worker = found.worker()
    assert worker.ask({"n": 1})[1]["predictor"] == predictor


def test_it_outlives_the_worker_that_started_it_and_ends_with_the_last(crew: Crews) -> None:
    found = crew(MODULE)
    first, second = found.ready(2)
    predictor = found.predictor()
    first.kill()
    assert second.ask({"n": 1})[1]["predictor"] == predictor
    time.sleep(3)
    assert second.ask({"n": 2})[1]["predictor"] == predictor
    second.kill()
    until(lambda: not found.predictors())
    assert found.homes == []


@pytest.mark.parametrize("busy", ["hang", "spin"])
def test_it_ends_when_the_server_is_gone(crew: Crews, busy: str) -> None:
    found = crew(MODULE)
    worker = found.worker()
    assert worker.ask({})[0] == 200
    worker.later({"predict": busy})
    time.sleep(0.5)
    found.stop_server()
    worker.kill()
    if busy == "spin":  # nothing in a process runs that lets no other thread run
        os.kill(found.predictor(), signal.SIGKILL)
        until(lambda: without_orphans(found))
    else:
        until(lambda: not found.predictors())
        assert found.homes == []


def test_sigterm_ends_it_in_the_middle_of_a_predict(crew: Crews) -> None:
    found = crew(MODULE)
    worker, other = found.ready(2)
    predictor = found.predictor()
    asked = worker.later({"predict": 1000})
    time.sleep(0.5)
    os.kill(predictor, signal.SIGTERM)
    until(lambda: predictor not in found.predictors())
    assert asked.result(20)[0] == 500
    status, body = other.ask({"n": 1})  # they are still here: the next process serves them
    assert status == 200
    assert body["predictor"] != predictor
    until(lambda: f"loaded by {body['predictor']}" in found.log())


def test_sigterm_to_the_last_one_leaves_nothing(crew: Crews) -> None:
    found = crew(MODULE)
    worker = found.worker()
    os.kill(worker.pid, signal.SIGSTOP)  # or it would start the next
    os.kill(found.predictor(), signal.SIGTERM)
    until(lambda: not found.predictors())
    assert found.homes == []
    os.kill(worker.pid, signal.SIGCONT)
    assert worker.ask({"n": 1})[0] == 200


def test_a_predictor_whose_directory_is_deleted_gives_way_to_the_next(crew: Crews) -> None:
    found = crew(MODULE)
    worker = found.worker()
    before = found.predictor()
    shutil.rmtree(found.homes[0])
    until(lambda: before not in found.predictors())
    later = found.worker()
    assert worker.ask({"n": 1})[1]["predictor"] == later.ask({"n": 2})[1]["predictor"] == found.predictor()


def test_what_a_dead_server_left_goes_with_the_next_start(crew: Crews) -> None:
    found = crew(MODULE)
    worker = found.worker()
    os.kill(found.predictor(), signal.SIGKILL)
    worker.kill()
    found.stop_server()
    until(lambda: not found.predictors())
    assert len(found.homes) == 1
    until(lambda: without_orphans(found))


def test_user_code_that_forks_keeps_neither_connections_nor_locks(crew: Crews) -> None:
    found = crew(MODULE)
    worker, other = found.ready(2)
    assert worker.ask({"predict": "fork"})[0] == 200
    assert worker.ask({"pre": "fork"})[0] == 200
    predictor = found.predictor()
    children = psutil.Process(predictor).children() + psutil.Process(worker.pid).children()
    forked = [child for child in children if child.pid != predictor]
    assert len(forked) == 2
    try:
        os.kill(predictor, signal.SIGKILL)
        status, body = other.ask({"n": 1})
        assert status == 200, body
        assert body["predictor"] != predictor
        worker.kill()
        other.kill()
        until(lambda: body["predictor"] not in found.predictors())
    finally:
        for child in forked:
            child.kill()


def test_a_pool_of_processes_in_predict_ends_its_own_processes(crew: Crews) -> None:
    found = crew(
        """
        import multiprocessing
        import os

        def square(x):
            return x * x

        def predict(inputs):
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return {"squares": pool.map(square, inputs), "predictor": os.getpid()}
        """
    )
    worker = found.worker()
    for _ in range(3):
        status, body = worker.ask([1, 2, 3])
        assert status == 200, (body, found.log())
        assert (body["squares"], body["predictor"]) == ([1, 4, 9], found.predictor())


def test_with_the_whole_lock_directory_deleted_the_next_process_starts(crew: Crews) -> None:
    found = crew(MODULE)
    worker = found.worker()
    assert worker.ask({"n": 1})[0] == 200
    pid = found.predictor()
    shutil.rmtree(found.state / "locks")
    os.kill(pid, signal.SIGKILL)  # so that nobody but the worker can make it again
    assert worker.ask({"n": 1})[0] == 200
    assert found.predictor() != pid
    assert (found.state / "locks").stat().st_mode & 0o777 == 0o700


def test_a_signal_to_a_child_of_the_users_is_not_the_predictors(crew: Crews) -> None:
    """A pool ends its children by SIGTERM, at times before they have come to care for signals themselves.

    What Python does then in the child, which still has the predictor's wakeup descriptor, the child does here.
    """
    found = crew(
        """
        import os
        import signal

        def load():
            return 1

        def predict(inputs):
            descriptor = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
            child = os.fork()
            if child == 0:
                os.write(descriptor, bytes([signal.SIGTERM]))
                os._exit(0)
            os.waitpid(child, 0)
            return os.getpid()
        """
    )
    worker = found.worker()
    (_, pid) = worker.ask(1)
    time.sleep(0.5)  # the predictor process looks ten times a second
    assert worker.ask(1) == (200, pid)
    os.kill(pid, signal.SIGTERM)
    until(lambda: found.predictors() != [pid])
    (_, next_pid) = worker.ask(1)
    assert next_pid != pid


def test_describe_tells_the_memory_that_is_held_not_what_loading_took(crew: Crews) -> None:
    found = crew(
        """
        def load():
            file = b"x" * (256 << 20)  # read, turned into a model, and let go
            return file[:1]

        def predict(inputs):
            return inputs
        """
    )
    about = found.worker().describe()["predictor"]
    resident = psutil.Process(about["pid"]).memory_info().rss
    assert abs(about["memory_bytes"] - resident) < 64 << 20
