"""config, serve, status, invoke, scale and stop as a user types them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from handlergen.client import Client
from handlergen.errors import RequestFailed
from handlergen.server.ports import free_port_settings, unavailable
from handlergen.server.properties import ServerSettings
from tests.archives import make_archive
from tests.commands import handlergen

pytestmark = pytest.mark.e2e

FAILING = """
from ts.utils.util import PredictionException


class Failing:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        raise PredictionException("no pixels", 422)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server runs."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def run(directory: Path, make_mar, echo_mar) -> Iterator[Run]:
    """`run("status", "--json")` in a directory where `handlergen serve` has started a server."""
    (directory / "model-store").mkdir()
    inside = make_archive(directory, "inside", "def predict(inputs):\n    return inputs['pixels']\n", devices="cpu")
    for archive in (inside, echo_mar, make_mar("failing", FAILING)):
        shutil.copy(archive, directory / "model-store")
    command = partial(handlergen, cwd=directory)
    ports = [f"--{name.replace('_', '-')}={port}" for name, port in free_port_settings().items()]
    configured = command("config", *ports)
    assert configured.returncode == 0, configured.stderr
    try:
        served = command("serve", "--json", "--timeout", "180")
        assert served.returncode == 0, served.stderr
        report = json.loads(served.stdout)
        assert report["models"]["echo"]["workers"] == 1
        assert Path(report["key_file"]).exists()
        yield command
    finally:
        stopped = command("stop", "--json")
    assert json.loads(stopped.stdout)["stopped"] is True
    assert command("status").returncode == 5


def test_invoke_prints_the_answer_as_it_came(run: Run):
    assert run("invoke", "echo", "--data", '{"a": "ä"}').stdout == '{"body": {"a": "\\u00e4"}}'
    assert run("invoke", "echo", "--grpc", "--data", '{"a": 1}').stdout == '{"data": "{\\"a\\": 1}"}'


def test_invoke_sends_files_and_forms(run: Run, tmp_path: Path):
    (tmp_path / "x.txt").write_text("text")
    path = str(tmp_path / "x.txt")
    assert json.loads(run("invoke", "echo", "--file", path).stdout) == {"body": "text"}
    assert json.loads(run("invoke", "echo", "--file", path, "--grpc").stdout) == {"data": "text"}
    form = ("--field", f"image=@{path}", "--field", "top=3")
    for way in ((), ("--grpc",)):
        assert json.loads(run("invoke", "echo", *form, *way).stdout) == {"image": "text", "top": "3"}


def test_invoke_writes_to_a_file_and_as_json(run: Run, tmp_path: Path):
    done = run("invoke", "echo", "--data", "1", "-o", str(tmp_path / "answer"))
    assert (done.stdout, (tmp_path / "answer").read_bytes()) == ("", b'{"body": 1}')
    report = json.loads(run("invoke", "echo", "--data", "1", "--json").stdout)
    assert (report["status"], report["body"]) == (200, {"body": 1})


def test_error_answers_go_to_stderr_with_status_6(run: Run):
    for way in ((), ("--grpc",)):
        done = run("invoke", "failing", "--data", "1", *way)
        assert (done.returncode, done.stdout) == (6, "")
        assert "no pixels" in done.stderr
    report = json.loads(run("invoke", "failing", "--data", "1", "--json").stdout)
    assert report["status"] == 422


@pytest.mark.parametrize("way", [(), ("--grpc",)])
def test_a_request_that_cannot_be_answered_says_what_can_be_done(run: Run, directory: Path, way: tuple[str, ...]):
    def told(*arguments: str) -> str:
        done = run("invoke", *arguments, *way)
        assert done.returncode == 6
        return done.stderr

    assert "did you mean echo? The server has: echo, failing, inside" in told("ehco", "--data", "1")
    assert "the server has echo in version 1.0" in told("echo", "--data", "1", "--version", "9.0")
    hint = told("inside", "--data", "{}").partition("Hint: ")[2]
    command = hint.split("`")[1]
    assert command.startswith("handlergen logs ")
    assert "KeyError: 'pixels'" in run(*shlex.split(command)[1:]).stdout


@pytest.mark.parametrize("way", [(), ("--grpc",)])
def test_a_request_that_is_too_large_says_which_line_to_change(run: Run, tmp_path: Path, way: tuple[str, ...]):
    (tmp_path / "large").write_bytes(bytes(7_000_000))
    done = run("invoke", "echo", "--file", str(tmp_path / "large"), *way)
    assert done.returncode == 6
    assert "up to 6,553,500 bytes: max_request_size in config.properties" in done.stderr


def test_a_model_without_workers_says_how_to_get_some(run: Run):
    assert run("scale", "failing", "--workers", "0").returncode == 0
    try:
        told = run("invoke", "failing", "--data", "1").stderr
        assert "`handlergen scale failing --workers 1`" in told
    finally:
        assert run("scale", "failing", "--workers", "1").returncode == 0


def test_a_wrong_key_file_is_told_from_none(run: Run, tmp_path: Path):
    done = run("status", "--key-file", str(tmp_path / "none.json"))
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)
    keys = {kind: {"key": "wrong"} for kind in ("inference", "management", "API")}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    done = run("invoke", "echo", "--data", "1", "--key-file", str(tmp_path / "keys.json"))
    assert "belong to another server" in done.stderr


def test_elsewhere_it_is_said_that_the_configuration_is_missing(tmp_path: Path):
    if unavailable(ServerSettings().addresses()):
        pytest.skip("a server listens on TorchServe's own ports")
    for verb in (("status",), ("invoke", "echo", "--data", "1"), ("stop",)):
        assert "there is no config.properties" in handlergen(*verb, cwd=tmp_path).stderr


def test_scale_waits_and_reports_placement(run: Run):
    assert run("scale", "echo", "--workers", "2").stdout == "echo: 2 workers READY (2 on cpu)\n"
    report = json.loads(run("scale", "echo", "--workers", "1", "--json").stdout)
    assert report == {"model": "echo", "workers": 1, "placement": {"cpu": 1}}
    assert run("scale", "nobody", "--workers", "1").returncode == 6


def test_status_shows_models_workers_and_queue(run: Run):
    report = json.loads(run("status", "--json").stdout)
    assert report["health"] == "Healthy"
    echo = next(model for model in report["models"] if model["name"] == "echo")
    assert echo["queue"] == {"waiting": 0, "free": 100}
    (worker,) = echo["workers"]
    assert (worker["state"], worker["device"]) == ("READY", "cpu")
    assert worker["memory_bytes"] > 10 * 2**20
    text = run("status").stdout
    assert f"pid {worker['pid']}" in text
    assert "queue 0 of 100" in text


def test_an_empty_store_says_how_to_fill_it(project: Callable[..., Path]):
    config = project()
    command = partial(handlergen, cwd=config.rename(config.with_name("own.properties")).parent)
    served = command("serve", "-c", "own.properties").stdout
    assert "handlergen archive SOURCE\n" in served
    assert "handlergen stop -c own.properties && handlergen serve -c own.properties" in served
    assert "handlergen archive SOURCE" in command("status", "-c", "own.properties").stdout
    assert command("stop", "-c", "own.properties").stdout == "stopped\n"


def test_show_explains_the_file_that_is_there(run: Run):
    shown = run("config", "--show").stdout
    assert "inference_address=http://127.0.0.1:" in shown
    assert "(not the default)" in shown
    assert "allowed_urls=(?!)" in shown
    report = json.loads(run("config", "--show", "--json").stdout)
    assert report["written"] == []
    assert all(line["why"] for line in report["lines"])


def test_a_second_serve_says_who_is_there(run: Run):
    done = run("serve", "--json")
    assert done.returncode == 5
    assert "already running" in done.stderr
    report = json.loads(done.stdout)
    assert report["error"].startswith("a server is already running on config.properties")
    assert report["hint"] == "`handlergen stop` stops it"


def test_the_model_api_is_off_and_a_model_keeps_its_workers(run: Run, directory: Path) -> None:
    def workers() -> list[int]:
        return [worker.pid for worker in client.describe("echo").workers]

    with Client.from_config(directory / "config.properties") as client:
        before = workers()
        with pytest.raises(RequestFailed) as caught:
            client.register("echo.mar")
        assert caught.value.status in (404, 405)
        with pytest.raises(RequestFailed) as caught:
            client.unregister("echo")
        assert caught.value.status == 405
        assert workers() == before
