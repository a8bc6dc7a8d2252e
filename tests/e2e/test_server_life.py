"""Starting and stopping a real TorchServe: readiness, failures, ports, interruption, what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlergen.errors import ModuleFailed, ServerError
from handlergen.server.configuration import write_configuration
from handlergen.server.java import find_java
from handlergen.server.lifecycle import running_server, serve, stop
from handlergen.server.properties import server_settings

pytestmark = pytest.mark.e2e

HANDLERGEN = str(Path(sys.executable).parent / "handlergen")

BROKEN = """
class Broken:
    def initialize(self, context):
        open_weights()

    def handle(self, data, context):
        return data


def open_weights():
    raise ValueError("weights are broken")
"""

DYING = """
import os


class Dying:
    def initialize(self, context):
        os._exit(3)

    def handle(self, data, context):
        return data
"""

SLOW = """
import time


class Slow:
    def initialize(self, context):
        time.sleep(300)

    def handle(self, data, context):
        return data
"""


@pytest.fixture
def project(tmp_path, ports) -> Iterator[Callable[..., Path]]:
    """`project(*archives)` -> config.properties in a new directory with these in its model store.

    Whatever a failed test has left running in it is ended.
    """
    config = tmp_path / "p" / "config.properties"

    def make(*archives: Path) -> Path:
        (config.parent / "model-store").mkdir(parents=True)
        for archive in archives:
            (config.parent / "model-store" / archive.name).write_bytes(archive.read_bytes())
        settings: dict[str, Any] = dict(ports())
        write_configuration(config, server_settings(**settings))
        return config

    yield make
    stop(config)
    for process in processes_of(config):
        process.kill()


def processes_of(config: Path) -> list[psutil.Process]:
    """Living processes that run in a project's directory or name its configuration."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if Path(process.cwd()) == config.parent or str(config) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HANDLERGEN, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_ready_means_every_worker_is_ready_and_stop_leaves_nothing(torchserve, make_mar, echo_mar):
    server = torchserve(make_mar("two", workers=2), echo_mar)
    assert {m.name: m.ready_workers for m in server.running.models} == {"two": 2, "echo": 1}
    assert server.client.models() == ["echo", "two"]
    processes = server.processes()
    assert {server.pid, *server.worker_pids("two"), *server.worker_pids("echo")} <= {p.pid for p in processes}
    temp_dir = Path(server.running.state.temp_dir)
    assert temp_dir.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not temp_dir.exists()
    assert not (server.directory / "key_file.json").exists()
    assert running_server(server.config) is None
    assert stop(server.config) is False


def test_two_servers_live_side_by_side(torchserve, shared, echo_mar):
    first, second = torchserve(echo_mar), shared(echo_mar)
    first.stop()
    assert second.client.predict("echo", {"still": "there"}).json() == {"body": {"still": "there"}}


def test_a_model_that_fails_to_load_shows_the_users_traceback(project, make_mar, echo_mar):
    config = project(make_mar("broken", BROKEN), echo_mar)
    with pytest.raises(ModuleFailed) as caught:
        serve(config, timeout=120)
    assert "model broken_1.0" in caught.value.message
    assert caught.value.traceback.splitlines()[1:] == [
        '  File "handler.py", line 4, in initialize',
        "    open_weights()",
        '  File "handler.py", line 11, in open_weights',
        '    raise ValueError("weights are broken")',
        "ValueError: weights are broken",
    ]
    assert processes_of(config) == []
    assert not (config.parent / "key_file.json").exists()


def test_keep_leaves_the_other_models_running(project, make_mar, echo_mar):
    config = project(make_mar("broken", BROKEN), echo_mar)
    try:
        with pytest.raises(ModuleFailed):
            serve(config, timeout=120, keep=True)
        server = running_server(config)
        assert server is not None
        with server.client() as client:
            deadline = time.monotonic() + 60
            while not client.describe("echo").ready and time.monotonic() < deadline:
                time.sleep(0.2)
            assert client.predict("echo", 1).json() == {"body": 1}
    finally:
        assert stop(config) is True
    assert processes_of(config) == []


def test_a_worker_that_just_ends_is_not_waited_for(project, make_mar):
    config = project(make_mar("dying", DYING))
    with pytest.raises(ServerError, match="model dying: its workers die without an exception while loading it"):
        serve(config, timeout=120)
    assert processes_of(config) == []


def test_the_wait_has_an_end(project, make_mar):
    config = project(make_mar("slow", SLOW))
    with pytest.raises(ServerError, match=r"not ready after 10 s: slow 1\.0: 0 of 1 workers READY"):
        serve(config, timeout=10)
    assert processes_of(config) == []


def test_an_archive_that_torchserve_refuses_is_named_with_the_reason(project, make_mar, echo_mar):
    # A requirement that pip cannot install, without asking any index.
    refused = make_mar("refused", requirements="./there-is-no-such.whl")
    config = project(echo_mar, refused)
    config.write_text(config.read_text().replace("per_model=false", "per_model=true"))
    with pytest.raises(ServerError) as caught:
        serve(config, timeout=120)
    assert "TorchServe refused refused.mar" in caught.value.message
    assert "there-is-no-such.whl" in caught.value.message
    assert processes_of(config) == []


def test_two_archives_of_one_model_are_refused_before_anything_starts(project, echo_mar):
    config = project(echo_mar)
    (config.parent / "model-store" / "copy.mar").write_bytes(echo_mar.read_bytes())
    with pytest.raises(ServerError, match=r"echo\.mar and copy\.mar are both model echo 1\.0"):
        serve(config)
    assert not (config.parent / "logs").exists()


def test_a_file_that_is_no_archive_is_refused_before_anything_starts(project, echo_mar):
    config = project(echo_mar)
    (config.parent / "model-store" / "broken.mar").write_bytes(b"no zip file")
    with pytest.raises(ServerError, match=r"broken\.mar is not a model archive"):
        serve(config, timeout=120)
    assert not (config.parent / "logs").exists()


def test_a_port_in_use_names_its_holder(project, echo_mar):
    config = project(echo_mar)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        text = re.sub(r"management_address=.*", f"management_address=http://127.0.0.1:{port}", config.read_text())
        config.write_text(text)
        with pytest.raises(ServerError) as caught:
            serve(config)
    assert f"port {port} (management) is in use by pid {os.getpid()}" in caught.value.message


def test_two_configurations_in_one_directory_would_share_their_tokens(shared, ports):
    server = shared()
    other: dict[str, Any] = dict(ports())
    write_configuration(server.directory / "other.properties", server_settings(**other))
    with pytest.raises(ServerError, match="keeps its tokens in the same directory"):
        serve(server.directory / "other.properties")


def test_a_crash_leaves_nothing_that_hinders_the_next_start(torchserve, echo_mar):
    server = torchserve(echo_mar)
    temp_dir = Path(server.running.state.temp_dir)
    os.kill(server.pid, signal.SIGKILL)
    again = torchserve(echo_mar, directory=server.directory)
    assert again.client.predict("echo", 2).json() == {"body": 2}
    assert not temp_dir.exists()


def test_stop_does_not_touch_a_process_that_only_has_the_same_pid(project, echo_mar):
    config = project(echo_mar)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (config.parent / ".handlergen").mkdir()
        state = {
            "pid": bystander.pid,
            "created": 1.0,
            "marker": "m",
            "config": str(config),
            "temp_dir": "/x",
            "console": "",
        }
        (config.parent / ".handlergen" / "config.properties.json").write_text(json.dumps(state))
        assert stop(config) is False
        assert bystander.poll() is None
        assert not (config.parent / ".handlergen" / "config.properties.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("delay", [0.2, 1.5, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_serve_leaves_no_process(project, make_mar, delay: float, number: int):
    config = project(make_mar("slow", SLOW))
    process = subprocess.Popen([HANDLERGEN, "serve"], cwd=config.parent, stderr=subprocess.PIPE, text=True)
    try:
        # Counted from the moment it has begun to start something, not from the start of the interpreter.
        lock = config.parent / ".handlergen" / "config.properties.lock"
        deadline = time.monotonic() + 30
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "Interrupted" in said
    assert processes_of(config) == []
    assert not (config.parent / ".handlergen" / "config.properties.json").exists()


def test_foreground_shows_what_models_print_and_ends_with_ctrl_c(project, echo_mar):
    config = project(echo_mar)
    process = subprocess.Popen(
        [HANDLERGEN, "serve", "--foreground"],
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C stops the server" in line:
                break
        process.send_signal(signal.SIGINT)
        said.append(process.communicate(timeout=60)[0])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, "".join(said)
    assert any("echo is loading" in line for line in said)
    assert processes_of(config) == []


def test_a_bare_torchserve_runs_on_what_config_writes(tmp_path, ports, echo_mar):
    directory = tmp_path / "a directory with blanks"
    (directory / "model-store").mkdir(parents=True)
    (directory / "model-store" / "echo.mar").write_bytes(echo_mar.read_bytes())
    flags = [f"--{name.replace('_', '-')}={port}" for name, port in ports().items()]
    written = cli("config", *flags, cwd=directory)
    assert written.returncode == 0, written.stderr
    temp_dir = tmp_path / "t"
    temp_dir.mkdir()
    # A bare torchserve does not find the Java of a package by itself.
    java = {"JAVA_HOME": str(find_java().home)}
    environ = {**os.environ, **java, "TEMP": str(temp_dir), "TMPDIR": str(temp_dir)}
    launcher = [sys.executable, str(Path(sys.executable).parent / "torchserve")]
    with (tmp_path / "console").open("wb") as console:
        subprocess.run(
            [*launcher, "--start", "--ts-config", "config.properties", "--ncs"],
            cwd=directory,
            env=environ,
            stdout=console,
            stderr=subprocess.STDOUT,
            check=True,
        )
    pid = int((temp_dir / ".model_server.pid").read_text())
    try:
        deadline = time.monotonic() + 120
        while True:
            answer = cli("invoke", "echo", "--data", '{"a": 1}', cwd=directory)
            if answer.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert answer.stdout == '{"body": {"a": 1}}', answer.stderr
        status = cli("status", "--json", cwd=directory)
        assert json.loads(status.stdout)["models"][0]["name"] == "echo"
        # Our log configuration is in force: what models print is there, and no line per request.
        console = (tmp_path / "console").read_text()
        assert "echo is loading" in console
        assert "echo is loading" in (directory / "logs" / "model_log.log").read_text()
        assert "/predictions/echo" not in console + (directory / "logs" / "access_log.log").read_text()
        stopped = cli("stop", cwd=directory)
        assert "no server started by `handlergen serve`" in stopped.stdout
        assert psutil.pid_exists(pid)
    finally:
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        subprocess.run([*launcher, "--stop"], cwd=directory, env=environ, check=False, capture_output=True)
        _gone, alive = psutil.wait_procs([process, *children], timeout=20)
        for each in alive:
            each.kill()
