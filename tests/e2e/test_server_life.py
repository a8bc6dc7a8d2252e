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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlergen.errors import ModuleFailed, ServerError
from handlergen.server.configuration import write_configuration
from handlergen.server.launching import ServerState, write_state
from handlergen.server.lifecycle import running_server, serve, stop
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from tests.archives import make_archive
from tests.commands import HANDLERGEN, handlergen, processes_of
from tests.histories import until

pytestmark = pytest.mark.e2e

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

UNLOADABLE = """
def load(context):
    return open("weights that nobody packed.bin")

def predict(inputs):
    return inputs
"""

RAISES = """
def load(context):
    return weights()

def weights():
    raise ValueError("weights are broken")

def predict(inputs):
    return inputs
"""

CRASHES = """
import os
import signal

def load(context):
    os.kill(os.getpid(), signal.SIGSEGV)

def predict(inputs):
    return inputs
"""

ONCE = """
from pathlib import Path

def load(context):
    Path("is loaded").touch(exist_ok=False)

def predict(inputs):
    return inputs
"""

NO_PACKAGE = """
import a_package_that_nobody_has

def predict(inputs):
    return inputs
"""

SLOW = """
import time


class Slow:
    def initialize(self, context):
        time.sleep(300)

    def handle(self, data, context):
        return data
"""


def test_ready_means_every_worker_is_ready_and_neither_a_crash_nor_stop_leaves_anything(torchserve, make_mar, echo_mar):
    server = torchserve(make_mar("two", workers=2), echo_mar)
    assert {m.name: m.ready_workers for m in server.running.models} == {"two": 2, "echo": 1}
    assert server.client.models() == ["echo", "two"]
    processes = server.processes()
    assert {server.pid, *server.worker_pids("two"), *server.worker_pids("echo")} <= {p.pid for p in processes}
    temp_dir = Path(server.running.state.temp_dir)
    assert temp_dir.stat().st_mode & 0o777 == 0o700
    os.kill(server.pid, signal.SIGKILL)

    again = torchserve(directory=server.directory)
    assert again.client.predict("echo", 2).json() == {"body": 2}
    assert not temp_dir.exists()
    processes += again.processes()
    temp_dir = Path(again.running.state.temp_dir)
    again.stop()
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not temp_dir.exists()
    assert not (again.directory / "key_file.json").exists()
    assert running_server(again.config) is None
    assert stop(again.config) is None


def test_a_model_that_fails_to_load_shows_the_users_traceback(project, tmp_path: Path, echo_mar):
    config = project(make_archive(tmp_path, "broken", UNLOADABLE), echo_mar)
    done = handlergen("serve", "--json", cwd=config.parent)
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert "model broken_1.0" in report["error"]
    assert "handlergen predict SOURCE" in report["hint"]
    shown = report["traceback"].rstrip()
    assert "in load" in shown
    assert shown.endswith("FileNotFoundError: [Errno 2] No such file or directory: 'weights that nobody packed.bin'")
    assert "site-packages" not in shown
    assert "handlergen_runtime" not in shown
    assert processes_of(config) == []
    assert not (config.parent / "key_file.json").exists()


@pytest.mark.parametrize("predictor", ["worker", "process"])
@pytest.mark.parametrize(
    ("source", "reason", "line"),
    [
        (RAISES, "ValueError: weights are broken", "line 6, in weights"),
        (CRASHES, "ended by signal 11 (SIGSEGV)", "line 6 in load"),
    ],
    ids=["raises", "crashes"],
)
def test_of_four_workers_that_fail_serve_shows_the_users_code(
    project, tmp_path: Path, predictor: str, source: str, reason: str, line: str
):
    config = project(make_archive(tmp_path, "broken", source, workers_per_device=4, predictor=predictor))
    with pytest.raises(ModuleFailed) as caught:
        serve(config, timeout=240)
    assert caught.value.message.startswith("model broken_1.0: worker W-")
    assert reason in caught.value.message
    assert f'  File "broken.py", {line}' in caught.value.traceback.splitlines()
    for foreign in ("site-packages", "handlergen_runtime", "handlergen_handler"):
        assert foreign not in caught.value.traceback
    assert processes_of(config) == []


def test_status_says_in_a_line_what_each_model_lacks_and_scale_shows_a_failed_load(project, tmp_path: Path):
    config = project(
        make_archive(tmp_path, "once", ONCE, predictor="worker"),
        make_archive(tmp_path, "unloadable", UNLOADABLE),
        make_archive(tmp_path, "package", NO_PACKAGE),
        make_archive(tmp_path, "gpu", "def predict(inputs):\n    return inputs\n", devices=(0,)),
    )
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(ModuleFailed):
        serve(config, timeout=120, keep=True, environ=environ)
    server = running_server(config)
    assert server is not None

    def said() -> dict[str, str]:
        done = handlergen("status", "--json", cwd=config.parent)
        return {model["name"]: model["load_failure"] for model in json.loads(done.stdout)["models"]}

    until(lambda: [name for name, failure in said().items() if failure is None] == ["once"], within_s=120)
    first = {name: failure.splitlines()[0] for name, failure in said().items() if failure}
    assert "the archive has no file weights that nobody packed.bin" in first["unloadable"]
    assert "the package a_package_that_nobody_has is not installed for Python 3." in first["package"]
    assert "the archive asks for a GPU" in first["gpu"]
    log = (server.log_directory / "model_log.log").read_text()
    assert all(line in log for line in first.values())

    with server.client() as client:
        until(lambda: client.describe("once").ready, within_s=60)
    done = handlergen("scale", "once", "--workers", "2", cwd=config.parent)
    assert done.returncode == 4
    assert "could not load it: FileExistsError" in done.stderr
    assert 'File "once.py", line 5, in load' in done.stderr
    assert stop(config) is not None


def test_keep_leaves_the_other_models_running(project, make_mar, echo_mar):
    config = project(make_mar("broken", BROKEN), echo_mar)
    with pytest.raises(ModuleFailed) as caught:
        serve(config, timeout=120, keep=True)
    assert caught.value.traceback.splitlines()[1:] == [
        '  File "handler.py", line 4, in initialize',
        "    open_weights()",
        '  File "handler.py", line 11, in open_weights',
        '    raise ValueError("weights are broken")',
        "ValueError: weights are broken",
    ]
    server = running_server(config)
    assert server is not None
    with server.client() as client:
        until(lambda: client.describe("echo").ready, within_s=60)
        assert client.predict("echo", 1).json() == {"body": 1}
    assert stop(config) is not None
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


def test_two_configurations_in_one_directory_would_share_their_tokens(shared):
    server = shared()
    other: dict[str, Any] = free_port_settings()
    write_configuration(server.directory / "other.properties", server_settings(**other))
    with pytest.raises(ServerError, match="keeps its tokens in the same directory"):
        serve(server.directory / "other.properties")


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
        assert stop(config) is None
        assert bystander.poll() is None
        assert not (config.parent / ".handlergen" / "config.properties.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(("delay", "number"), [(0.2, signal.SIGINT), (1.5, signal.SIGTERM), (4.0, signal.SIGINT)])
def test_interrupting_serve_leaves_no_process(project, make_mar, delay: float, number: int):
    config = project(make_mar("slow", SLOW))
    process = subprocess.Popen([HANDLERGEN, "serve"], cwd=config.parent, stderr=subprocess.PIPE, text=True)
    try:
        # Counted from the moment it has begun to start something, not from the start of the interpreter.
        lock = config.parent / ".handlergen" / "config.properties.lock"
        until(lock.exists)
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


def test_foreground_fails_when_the_server_ends_by_itself(project, echo_mar):
    """systemd's `Restart=on-failure` starts it again."""
    config = project(echo_mar)
    command = [HANDLERGEN, "serve", "--foreground"]
    with (config.parent / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=config.parent, stdout=said, stderr=said)
    try:
        until(lambda: "Ctrl-C stops the server" in (config.parent / "said.txt").read_text(), within_s=200)
        running = running_server(config)
        assert running
        os.kill(running.pid, signal.SIGKILL)
        status = process.wait(100)
    finally:
        process.kill()
        process.wait()
    assert status == 5
    assert "ended although nobody stopped it" in (config.parent / "said.txt").read_text()
    assert processes_of(config) == []


def test_a_server_that_stop_ended_did_not_fail(project):
    """What `serve --foreground` waits for; a process that sleeps stands for the frontend."""
    config = project()
    frontend = psutil.Popen(["sleep", "600"])
    try:
        temp = str(config.parent / "handlergen-x")
        write_state(ServerState(frontend.pid, frontend.create_time(), "none of a process", str(config), temp, ""))
        running = running_server(config)
        assert running
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(running.wait)
            stop(config, drain=0)
            assert waiting.result(60) is True
    finally:
        frontend.kill()
        frontend.wait()
