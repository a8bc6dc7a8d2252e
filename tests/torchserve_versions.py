"""TorchServe in the versions that images and clouds carry, started as its own launcher does, without handlergen.

Each but the one that is installed here is installed without its dependencies into a directory that PYTHONPATH names.
Versions before 0.11 import pkg_resources, which setuptools 81 has no more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlergen.client import Client
from handlergen.errors import NoServer, RequestFailed
from handlergen.server.configuration import write_configuration
from handlergen.server.java import find_java
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from tests.histories import until

_installed = {version_of("torchserve"): ""}
"""By version, what PYTHONPATH has to name."""


@dataclass(frozen=True)
class VersionedServer:
    """A running TorchServe of that version, with its configuration and logs in `directory`."""

    client: Client
    http: httpx.Client
    directory: Path
    version: str

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        answer = self.raw(path, json=value, headers=headers)
        return answer.status_code, answer.json()

    def raw(self, path: str, **request: Any) -> httpx.Response:
        return self.http.post(f"{self.client.settings.inference_address}/{path}", **request)

    def described(self, name: str, **headers: str) -> Any:
        """What the worker says of itself."""
        address = f"{self.client.settings.management_address}/models/{name}?customized=true"
        found = self.http.get(address, headers=headers).json()[0]["customizedMetadata"]
        return json.loads(found) if isinstance(found, str) else found

    def metrics(self) -> str:
        return self.http.get(f"{self.client.settings.metrics_address}/metrics").text

    def log_text(self) -> str:
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self.directory.glob("logs/*.log")))

    def ready(self, *names: str) -> bool:
        try:
            return all(any(worker.ready for worker in self.client.describe(name).workers) for name in names)
        except (NoServer, RequestFailed):
            return False


@contextmanager
def running(
    version: str,
    models: Mapping[str, Path],
    factory: pytest.TempPathFactory,
    *,
    environ: Mapping[str, str] | None = None,
    **properties: str,
) -> Iterator[VersionedServer]:
    """Run that version, with each archive (all are in one directory) registered under its name.

    Args:
        environ: Added to the environment.
        properties: Added to config.properties.
    """
    directory = factory.mktemp("home")
    (store,) = {archive.parent for archive in models.values()}
    ports: dict[str, Any] = free_port_settings()
    other = tuple(properties.items())
    settings = server_settings(**ports, token_authorization=False, model_store=str(store), other=other)
    write_configuration(directory / "config.properties", settings)
    environ = {
        **os.environ,
        **{"PYTHONPATH": _install(version, factory), "JAVA_HOME": str(find_java().home), "TEMP": str(directory)},
        **{"TMPDIR": str(directory), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        **{"HANDLERGEN_STATE_DIR": str(directory / "state"), **(environ or {})},
    }
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--ts-config", "config.properties", "--models"]
    command += [f"{name}={archive.name}" for name, archive in models.items()]
    with (directory / "console").open("wb") as console:
        process = subprocess.Popen(
            command, cwd=directory, env=environ, stdout=console, stderr=console, start_new_session=True
        )
    try:
        with Client(settings, timeout=30) as client, httpx.Client(trust_env=False, timeout=30) as http:
            server = VersionedServer(client, http, directory, version)
            try:
                until(lambda: server.ready(*models), within_s=120)
            except AssertionError:
                pytest.fail((directory / "console").read_text("utf-8", "replace")[-5000:])
            yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _install(version: str, factory: pytest.TempPathFactory) -> str:
    if version not in _installed:
        target = str(factory.mktemp("torchserve"))
        wanted = [f"torchserve=={version}", "setuptools<81"]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        found = subprocess.run([*install, "--target", target, *wanted], capture_output=True, text=True, check=False)
        if found.returncode:
            pytest.skip(f"the package registry does not give {' '.join(wanted)}: {found.stderr[-200:]}")
        _installed[version] = target
    return _installed[version]
