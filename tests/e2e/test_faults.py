"""Faults on a real TorchServe while sixteen clients ask: each placement of predict, one server for all of it.

What must hold of every fault: each request is answered in its time, with its own answer, byte by byte; no two predicts
run at once; the next right answer comes within ten seconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlergen.performance.recordings import of_stage, read_spans
from handlergen.performance.recordings import overlapping as spans_overlapping
from handlergen.server.ports import free_port_settings
from tests.archives import make_archive
from tests.full_disk import Disk, files_limited, small_disk
from tests.histories import (
    SOURCE,
    Asked,
    Load,
    in_predict,
    lost,
    overlapping,
    predicted,
    predictors,
    recovery_s,
    refused_by_the_queue,
    statuses,
    until,
    wrong,
)

pytestmark = pytest.mark.e2e

PLACEMENTS = ("worker", "process")
WORKERS = {"worker": 3, "process": 2}
LOCK_TIMEOUT_S, PREDICT_TIMEOUT_S, RESPONSE_TIMEOUT_S = 2.0, 5.0, 8
LIMIT_S = 30.0
"""How long a client waits: sixteen requests, of which each may wait for the device as long as the lock lets it."""
RECOVERY_S = 30.0
"""The soak holds 10 s, on a machine of its own; this machine may be busy."""
DIED = {500, 503, 507}
"""What TorchServe says of a request whose worker, and handlergen of one whose predictor process, has died."""


class Site:
    """A server with two models on one device: `worker`, a copy in each worker, and `process`, a predictor process."""

    def __init__(self, start: Callable[..., Any], mars: list[Path], home: Path, disk: Disk) -> None:
        self._start, self._mars = start, mars
        self.disk = disk
        self.state, self.spans = disk.directory / "state", disk.directory / "spans"
        self.history = home / "history"
        self._ports = free_port_settings()
        self.serve()

    def serve(self) -> None:
        """Start the server; again, in the same place, when it has died."""
        self.server = self._start(
            *self._mars,
            directory=self.disk.directory / "server",
            environ={"HANDLERGEN_STATE_DIR": str(self.state), "HANDLERGEN_TRACE_DIR": str(self.spans)},
            model_api=True,
            **self._ports,
        )
        self.client = self.server.running.client(timeout=LIMIT_S)

    def whole(self, model: str) -> bool:
        """Whether all of a model's workers are there."""
        return len(self.server.worker_pids(model)) == WORKERS[model]

    @contextmanager
    def load(self, model: str, clients: int = 16) -> Iterator[Load]:
        """Clients that ask all the time; what must hold of every answer is looked at in the end."""
        until(lambda: self.whole(model))
        with Load(self.client, model, clients, LIMIT_S) as load:
            time.sleep(0.3)
            yield load
        assert not lost(load.asked)
        assert not wrong(load.asked)
        assert not overlapping(predicted(self.history))
        assert set(statuses(load.asked)) <= {200, 404, 500, 503, 504, 507}, statuses(load.asked)
        assert statuses(load.asked)[200] > 20


@pytest.fixture(scope="module")
def site(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("faults")

    def made(place: Path, model: str, version: str) -> Path:
        own = {"stages": "worker", "predict_timeout_s": PREDICT_TIMEOUT_S} if model == "process" else {}
        return make_archive(
            place,
            model,
            SOURCE,
            predictor=model,
            version=version,
            workers_per_device=WORKERS[model],
            config={"history": str(home / "history")},
            lock_timeout_s=LOCK_TIMEOUT_S,
            response_timeout_s=RESPONSE_TIMEOUT_S,
            queue_size=24,
            **own,
        )

    mars = [made(home, model, "1.0") for model in PLACEMENTS]
    with small_disk(home / "disk") as disk:
        (disk.directory / "server").mkdir(parents=True)
        site = Site(torchserve_module, mars, home, disk)
        for model in PLACEMENTS:
            shutil.copy(made(home / "second", model, "2.0"), site.server.store / f"{model}-2.mar")
        try:
            yield site
        finally:
            site.client.close()
            site.server.stop()


def beside(load: Load, **extra: Any) -> tuple[threading.Thread, list[Asked]]:
    """One more request, in a thread of its own."""
    answers: list[Asked] = []
    thread = threading.Thread(target=lambda: answers.append(load.ask(**extra)), daemon=True)
    thread.start()
    return thread, answers


def since(load: Load, moment_s: float) -> list[Asked]:
    """What was answered after a moment."""
    return [each for each in list(load.asked) if each.ended_s > moment_s]


def orphans(site: Site) -> list[psutil.Process]:
    """The server's processes that serve nobody."""
    until(lambda: all(map(site.whole, PLACEMENTS)))
    serving = {pid for model in PLACEMENTS for pid in site.server.worker_pids(model)}
    serving |= {site.server.pid, site.client.predict("process", {"n": 0}).json()["predictor"]}
    return [process for process in site.server.processes() if process.pid not in serving]


def answers_since(moment_s: float, *loads: Load, least: int = 300) -> int:
    """How many requests were answered after a moment, when they are enough to tell much from little; else 0."""
    answered = sum(each.status == 200 for load in loads for each in since(load, moment_s))
    return answered if answered >= least else 0


def pages_of(file: Path) -> int:
    """How many blocks of 4 KiB a file takes."""
    return -(-file.stat().st_size // 4096)


def until_refused(load: Load) -> bytes:
    """The body of the first 503 from now on, which comes in time."""
    moment = time.monotonic()

    def found() -> list[Asked]:
        return [each for each in since(load, moment) if each.status == 503]

    return bytes(until(found, within_s=LOCK_TIMEOUT_S + 20)[0].said)


def assert_recovers(load: Load) -> None:
    """The next right answer comes in time."""
    moment = time.monotonic()
    until(lambda: recovery_s(list(load.asked), moment) <= RECOVERY_S, within_s=RECOVERY_S + 1)


@pytest.mark.parametrize("model", PLACEMENTS)
def test_processes_that_end_inside_and_outside_predict(site: Site, model: str) -> None:
    with site.load(model) as load:
        statuses_of_errors = [load.ask(predict=what).status for what in ("memory", "cuda memory", "error")]
        assert statuses_of_errors == [507, 507, 500]
        for what in ("exit", "segfault", "kill"):
            for hook in ("pre", "predict"):
                assert load.ask(**{hook: what}).status in DIED
                assert_recovers(load)
            until(lambda: site.whole(model))


@pytest.mark.parametrize("model", PLACEMENTS)
def test_a_holder_of_the_device_that_is_stopped(site: Site, model: str) -> None:
    for ending in (signal.SIGCONT, signal.SIGKILL):
        with site.load(model) as load:
            thread, answers = beside(load, predict=0.6)
            os.kill(victim := until(lambda: in_predict(site.history)), signal.SIGSTOP)
            try:
                refused = until_refused(load)
            finally:
                os.kill(victim, ending)
            assert b'"DeviceBusy"' in refused
            assert_recovers(load)
            thread.join(LIMIT_S)
            assert answers[0].status in ({200} if ending == signal.SIGCONT else DIED)


@pytest.mark.parametrize("model", PLACEMENTS)
def test_a_predict_that_never_returns(site: Site, model: str) -> None:
    with site.load(model) as load:
        asked = load.ask(predict="hang")
        assert asked.status == {"worker": 500, "process": 504}[model]
        assert asked.ended_s - asked.began_s < {"worker": RESPONSE_TIMEOUT_S, "process": PREDICT_TIMEOUT_S}[model] + 5
        assert_recovers(load)


@pytest.mark.parametrize("model", PLACEMENTS)
def test_processes_that_user_code_leaves_behind_do_not_keep_the_device(site: Site, model: str) -> None:
    with site.load(model) as load:
        for what in ("fork", "pool", "subprocess"):
            asked = load.ask(predict=what)
            assert asked.status in DIED
            assert asked.ended_s - asked.began_s < RESPONSE_TIMEOUT_S / 2
            assert_recovers(load)
    left = orphans(site)
    assert len(left) >= 4  # they live on, and the device was free all the same
    for process in left:
        process.kill()


def test_scaled_and_registered_anew(site: Site) -> None:
    chance = random.Random(7)
    with site.load("worker", 8) as load, site.load("process", 8) as other:
        for _ in range(3):
            for model in PLACEMENTS:
                site.client.scale(model, chance.randint(1, 4))
        for old, new, archive in (("1.0", "2.0", "{}-2.mar"), ("2.0", "1.0", "{}.mar")):
            for model in PLACEMENTS:
                parameters = {"initial_workers": WORKERS[model], "synchronous": True}
                site.client.register(archive.format(model), **parameters)
                site.client.set_default(model, new)
                site.client.unregister(model, version=old, drain_s=20)
    for each in (load, other):
        assert statuses(each.asked).keys() == {200}, statuses(each.asked)


def test_the_lock_directory_deleted(site: Site) -> None:
    with site.load("worker", 8) as load, site.load("process", 8) as other:
        for _ in range(2):
            shutil.rmtree(site.state / "locks")
            assert_recovers(load)
            assert_recovers(other)
            time.sleep(0.5)


def test_no_recorded_spans_overlapped(site: Site) -> None:
    spans = of_stage(read_spans(site.spans), "predict")
    assert {span.model for span in spans} == set(PLACEMENTS)
    assert spans_overlapping(spans) == []
    assert overlapping(predicted(site.history)) == []


@pytest.mark.parametrize("how", ["full", "limit"])
def test_a_full_disk(site: Site, how: str) -> None:
    if how == "full" and not site.disk.own:
        pytest.skip("a file system of its own needs the right to mount one")
    with site.load("worker", 8) as load, site.load("process", 8) as other:
        log = site.server.running.log_directory / "model_log.log"
        limit = 4 << 20
        if how == "limit":
            for file in (log, *site.spans.iterdir()):
                os.truncate(file, limit)
        with site.disk.full() if how == "full" else files_limited(site.server.processes(), limit):
            moment = time.monotonic()
            pages = {file: pages_of(file) for file in (log, *site.spans.iterdir())}
            time.sleep(0.5)
            refused = load.ask(store=limit + (1 << 20))
            assert refused.status == 500
            assert load.ask(predict="error").status == 500
            os.kill(site.server.worker_pids("worker")[0], signal.SIGKILL)
            assert_recovers(load)
            assert_recovers(other)
            until(lambda: site.whole("worker"))
            answered = until(lambda: answers_since(moment, load, other))
            failed = [each for each in since(load, moment) + since(other, moment) if each.status != 200]
            assert len(failed) <= 3, failed  # the two above, and the one that was in the killed worker
            if how == "full":
                # Only the rest of each file's last block was left, and the blocks that a killed worker gives back.
                spans = of_stage(read_spans(site.spans), "predict")
                assert sum(span.start_ns > moment * 1e9 for span in spans) < answered / 2
                (predictor,) = predictors(site.state)
                os.kill(predictor, signal.SIGKILL)
                assert b"No space left on device" in until_refused(other)
            else:
                assert {file: pages_of(file) for file in pages} == pages
        size = log.stat().st_size
        if how == "full":
            assert_recovers(other)
            assert spans_overlapping(of_stage(read_spans(site.spans), "predict")) == []
        assert load.ask(store=100).status == 200
        assert load.ask(predict="error").status == 500
        until(lambda: log.stat().st_size > size)


def test_two_hundred_clients_at_full_queues(site: Site) -> None:
    until(lambda: all(map(site.whole, PLACEMENTS)))
    watched = {"frontend": site.server.pid}
    for model in PLACEMENTS:
        watched |= {f"{model} {pid}": pid for pid in site.server.worker_pids(model)}
    before = descriptors(watched)
    with site.server.running.client(timeout=LIMIT_S) as client:
        loads = [Load(client, model, 100, LIMIT_S, pause_s=0.3) for model in PLACEMENTS]
        with loads[0], loads[1]:
            until(lambda: all(statuses(load.asked)[200] > 300 and statuses(load.asked)[503] > 300 for load in loads))
    for load in loads:
        assert set(statuses(load.asked)) == {200, 503}, statuses(load.asked)
        assert not wrong(load.asked)
        assert all(refused_by_the_queue(each) for each in load.asked if each.status == 503)
    until(lambda: all(now < before[name] + 5 for name, now in descriptors(watched).items()))


def descriptors(watched: dict[str, int]) -> dict[str, int]:
    """How many files each of these processes has open, sockets among them."""
    return {name: psutil.Process(pid).num_fds() for name, pid in watched.items()}


def test_the_server_killed_and_started_again(site: Site) -> None:
    client = site.client
    loads = [Load(client, model, 8, LIMIT_S, pause_s=0.3) for model in PLACEMENTS]
    with client, loads[0], loads[1]:
        time.sleep(0.5)
        os.kill(site.server.pid, signal.SIGKILL)
        killed = time.monotonic()
        site.serve()
        for load in loads:
            assert_recovers(load)
    for each in loads[0].asked + loads[1].asked:
        assert not each.wrong
        assert each.status in (0, 200, *DIED)
        if each.began_s < killed:  # answered, refused or broken off at once; later ones may wait for the new workers
            assert each.ended_s - each.began_s < LIMIT_S
        assert each.status or each.ended_s > killed
    assert not overlapping(predicted(site.history))


def test_nothing_is_left_when_it_is_stopped(site: Site) -> None:
    processes, temp_dir = site.server.processes(), Path(site.server.running.state.temp_dir)
    with Load(site.client, "worker", 8, LIMIT_S), Load(site.client, "process", 8, LIMIT_S):
        time.sleep(0.5)
        site.server.running.stop()
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not temp_dir.exists()
    left = {path.name for path in (site.state / "locks").iterdir() if path.suffix != ".lock"}
    assert left <= {"answered-1"}  # as the locks, for all servers of the user
