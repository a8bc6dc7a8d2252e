"""A server that stops answers what it has begun: under load, with streams, behind a proxy, whoever stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlergen.client import Client
from handlergen.runtime.device.lock import lock_directory
from handlergen.server.launching import read_state
from handlergen.server.lifecycle import stop
from handlergen.server.ports import free_port_settings, listeners
from tests.archives import make_archive
from tests.commands import HANDLERGEN, handlergen, processes_of
from tests.histories import SOURCE, Asked, Load, in_predict, overlapping, predicted, statuses, until, wrong

pytestmark = pytest.mark.e2e

PARTS = """
import time

def predict(inputs):
    for number in range(int(inputs)):
        time.sleep(0.1)
        yield f"{number} "
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history") / "history"


@pytest.fixture(scope="module")
def mars(tmp_path_factory: pytest.TempPathFactory, history: Path) -> dict[str, Path]:
    """Archives of `worker`, two copies of the model, and `process`, a predictor process and batches; a stream."""
    home = tmp_path_factory.mktemp("mars")
    config = {"history": str(history)}
    own: dict[str, dict[str, Any]] = {"worker": {}, "process": {"batch_size": 4, "stages": "worker"}}
    made = {
        placement: make_archive(
            home, placement, SOURCE, predictor=placement, workers_per_device=2, config=config, **settings
        )
        for placement, settings in own.items()
    }
    return {**made, "parts": make_archive(home, "parts", PARTS)}


def refused(asked: Asked) -> bool:
    """Whether a server that stops, or has stopped, refused a request."""
    return asked.status == 0 or (asked.status == 503 and b"is being stopped" in bytes(asked.said))


def test_stop_under_load_answers_every_request_that_was_sent_before(
    torchserve: Callable[..., Any], mars: dict[str, Path], history: Path
) -> None:
    server = torchserve(*mars.values())
    client = server.running.client(timeout=30)
    parts: list[bytes] = []
    stream = threading.Thread(target=lambda: parts.extend(client.stream("parts", 25)), daemon=True)
    loads = [Load(client, "worker", 5, grpc=1), Load(client, "process", 5, grpc=1)]
    with client, loads[0], loads[1]:
        until(lambda: all(statuses(load.asked)[200] > 20 for load in loads))
        stream.start()
        until(lambda: parts)
        moment = time.monotonic()
        report = server.running.stop()
        stream.join(10)
    assert report is not None
    assert (report.busy, report.not_refusing, report.unread, report.failure) == ({}, (), 0, None)
    assert b"".join(parts).split() == [b"%d" % number for number in range(25)]
    for load in loads:
        assert not wrong(load.asked)
        before = [each for each in load.asked if each.began_s < moment]
        assert [each for each in before if each.status != 200] == []
        assert [each for each in load.asked if each.status != 200 and not refused(each)] == []
    assert any(each.status == 503 for load in loads[:2] for each in load.asked)
    assert not overlapping(predicted(history))


def test_what_takes_longer_than_the_drain_is_cut_off_and_said(
    torchserve: Callable[..., Any], mars: dict[str, Path], history: Path
) -> None:
    server = torchserve(mars["worker"])
    client = server.running.client(timeout=30)
    with client, one_in_hand(client, history, 25) as load:
        done = handlergen("stop", "--drain", "1.5", cwd=server.directory)
    assert (done.returncode, done.stdout) == (0, "stopped\n")
    assert "1 worker of worker 1.0 was still busy after 1.5 s" in done.stderr
    assert [each.status for each in load.asked] == [200, 0]
    assert processes_of(server.config) == []


def test_ctrl_c_while_stop_drains_ends_the_server_at_once(
    torchserve: Callable[..., Any], mars: dict[str, Path], history: Path
) -> None:
    server = torchserve(mars["worker"])
    client = server.running.client(timeout=60)
    with client, one_in_hand(client, history, 50):
        command = [HANDLERGEN, "stop", "--drain", "600"]
        stop = subprocess.Popen(command, cwd=server.directory, stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: drains(server.config))
            stop.send_signal(signal.SIGINT)
        finally:
            said = stop.communicate(timeout=40)[1]
    assert stop.returncode == 130, said
    assert processes_of(server.config) == []


def drains(config: Path) -> bool:
    """Whether a worker of this server has been told to refuse requests; other servers share the directory."""
    state = read_state(config)
    return state is not None and any(lock_directory().glob(f"refusing-*-{state.pid}-*"))


@contextmanager
def one_in_hand(client: Client, history: Path, seconds: float) -> Iterator[Load]:
    """Requests to `worker`, of which one is in predict for so long; it is answered or lost when the block ends."""
    load = Load(client, "worker", 0)
    assert load.ask().status == 200
    thread = threading.Thread(target=lambda: load.ask(predict=seconds))
    thread.start()
    until(lambda: in_predict(history))
    yield load
    thread.join(20)
    assert not thread.is_alive()


@contextmanager
def foreground(config: Path, **options: Any) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`handlergen serve --foreground --drain 600`, which is READY, and what it says from then on."""
    said: list[str] = []
    process = subprocess.Popen(
        [HANDLERGEN, "serve", "--foreground", "--drain", "600"],
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
    try:
        reader.start()
        until(lambda: any("Ctrl-C stops the server" in line for line in said), within_s=120)
        yield process, said
        process.wait(40)
    finally:
        process.kill()
        process.wait()
        stop(config, drain=0)  # what holds the pipe open, after a failure
        reader.join(10)
        process.stdout.close()


def test_sigterm_to_serve_answers_what_is_in_hand_and_nohup_survives_a_hangup(
    project: Callable[..., Path], mars: dict[str, Path], history: Path
) -> None:
    config = project(mars["worker"])
    with (
        foreground(config, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (process, said),
        Client.from_config(config) as client,
    ):
        process.send_signal(signal.SIGHUP)
        with one_in_hand(client, history, 3) as load:
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, "".join(said)
    assert said[-1] == "stopped\n"
    assert [(each.status, each.wrong) for each in load.asked] == [(200, False)] * 2
    assert processes_of(config) == []


def test_a_second_signal_to_serve_ends_it_at_once(
    project: Callable[..., Path], mars: dict[str, Path], history: Path
) -> None:
    config = project(mars["worker"])
    with (
        foreground(config) as (process, said),
        Client.from_config(config, timeout=60) as client,
        one_in_hand(client, history, 50),
    ):
        process.send_signal(signal.SIGINT)
        until(lambda: drains(config))
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 130, "".join(said)
    assert any("Ctrl-C again ends the server at once" in line for line in said)
    assert processes_of(config) == []


def test_two_signals_at_once_leave_no_server(project: Callable[..., Path], mars: dict[str, Path]) -> None:
    config = project(mars["worker"])
    with foreground(config) as (process, said):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    assert process.returncode in (0, 130), "".join(said)
    assert processes_of(config) == []


def test_a_server_that_does_not_answer_is_not_waited_for(torchserve: Callable[..., Any], echo_mar: Path) -> None:
    server = torchserve(echo_mar)
    os.kill(server.pid, signal.SIGSTOP)
    done = handlergen("stop", "--drain", "600", "--timeout", "0", "--json", cwd=server.directory)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["stopped"] is True
    assert "timed out" in report["failure"]
    assert processes_of(server.config) == []


HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    retries 3
    retry-on conn-failure empty-response 503
    option redispatch 1
    option http-buffer-request

listen models
    bind 127.0.0.1:{port}
    server first 127.0.0.1:{first} check inter 1s
    server second 127.0.0.1:{second} check inter 1s
"""


@contextmanager
def through_haproxy(directory: Path, servers: Sequence[Any]) -> Iterator[Client]:
    """A client of a proxy in front of these servers, configured as docs/running.md says."""
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("haproxy is not installed")
    first, second = (server.settings.addresses()["inference"][1] for server in servers)
    port = free_port_settings()["inference_port"]
    (directory / "haproxy.cfg").write_text(HAPROXY.format(port=port, first=first, second=second))
    proxy = subprocess.Popen([program, "-f", "haproxy.cfg"], cwd=directory, stderr=subprocess.DEVNULL)
    try:
        until(lambda: port in listeners())
        with Client(replace(servers[0].settings, inference_address=f"http://127.0.0.1:{port}"), timeout=30) as client:
            yield client
    finally:
        proxy.kill()
        proxy.wait()


def test_clients_of_a_proxy_lose_nothing_when_one_of_two_servers_stops(
    torchserve: Callable[..., Any], mars: dict[str, Path], history: Path, tmp_path: Path
) -> None:
    servers = [torchserve(mars["worker"], token_authorization=False) for _ in range(2)]
    with through_haproxy(tmp_path, servers) as client, Load(client, "worker", 8) as load:
        until(lambda: statuses(load.asked)[200] > 100)
        assert client.ping() == "Healthy"
        report = servers[0].running.stop()
        stopped = time.monotonic()
        until(lambda: sum(each.began_s > stopped for each in list(load.asked)) > 100)
    assert report is not None
    assert report.busy == {}
    assert not wrong(load.asked)
    assert [each for each in load.asked if each.status != 200] == []
    assert not overlapping(predicted(history))
