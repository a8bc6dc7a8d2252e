"""Real servers for the end-to-end tests.

`torchserve(*archives, ...)` starts a TorchServe and returns a `Server`; every server of a test is stopped after it,
whatever happened. `torchserve_module` is the same for a whole test module, where starting one a test costs too much.

    def test_answers(torchserve, echo_mar):
        server = torchserve(echo_mar)
        assert server.client.predict("echo", {"a": 1}).status == 200

Each server has its own directory (configuration, model store, logs, key file), its own ports, its own temp directory
and its own session of processes. Token authorization is on unless a test says `token_authorization=False`;
`server.client` reads the key file.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlergen.client import Client
from handlergen.configuration import write_configuration
from handlergen.launching import marked
from handlergen.ports import free_port_settings
from handlergen.properties import ServerSettings, server_settings
from handlergen.server import RunningServer, serve

ECHO = '''
import json


class Echo:
    """Answers each request with what TorchServe handed over, bytes as text."""

    def initialize(self, context):
        print("echo is loading", flush=True)

    def handle(self, data, context):
        return [json.dumps(row, default=lambda value: bytes(value).decode()).encode() for row in data]
'''


@dataclass(frozen=True)
class Server:
    """A running TorchServe of one test.

    Attributes:
        directory: Its working directory: config.properties, model-store/, logs/, key_file.json.
        client: Knows its addresses and tokens; `client.grpc` and `client.grpc_management` speak gRPC.
    """

    running: RunningServer
    directory: Path
    client: Client

    @property
    def settings(self) -> ServerSettings:
        return self.running.settings

    @property
    def pid(self) -> int:
        """The frontend's process."""
        return self.running.pid

    @property
    def config(self) -> Path:
        return self.directory / "config.properties"

    @property
    def store(self) -> Path:
        return self.directory / "model-store"

    def worker_pids(self, name: str) -> list[int]:
        """Processes of a model's READY workers."""
        return [worker.pid for worker in self.client.describe(name).workers if worker.ready]

    def processes(self) -> list[psutil.Process]:
        """Every living process that belongs to this server, the frontend included."""
        return marked(self.running.state.marker)

    def log_text(self) -> str:
        """Everything in logs/: what workers printed and what TorchServe complained about."""
        return "".join(
            path.read_text("utf-8", "replace") for path in sorted(self.running.log_directory.glob("*.log"))
        )

    def stop(self) -> None:
        self.client.close()
        self.running.stop()


Factory = Callable[..., Server]


def _factory(tmp_path_factory: pytest.TempPathFactory, stack: ExitStack) -> Factory:
    def start(
        *archives: Path,
        environ: Mapping[str, str] | None = None,
        timeout: float = 180.0,
        directory: Path | None = None,
        **settings: Any,
    ) -> Server:
        """Start a server on these archives.

        Args:
            archives: .mar files, copied into the server's own model store.
            environ: Added to the environment (HANDLERGEN_TRACE_DIR, say).
            directory: Where to put it all; default: a new one.
            settings: For `handlergen.properties.server_settings`, ports excepted.
        """
        home = directory or tmp_path_factory.mktemp("server")
        (home / "model-store").mkdir(exist_ok=True)
        for archive in archives:
            shutil.copy(archive, home / "model-store" / archive.name)
        chosen: dict[str, Any] = {**free_port_settings(), **settings}
        write_configuration(home / "config.properties", server_settings(**chosen), force=True)
        running = serve(
            home / "config.properties", timeout=timeout, environ={**os.environ, **(environ or {})}
        )
        server = Server(running, home, running.client())
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture
def ports() -> Callable[[], dict[str, int]]:
    """`ports()` -> five free ports as arguments for `server_settings`."""
    return free_port_settings


@pytest.fixture
def torchserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Start servers that end with the test; see the module's docstring."""
    with ExitStack() as stack:
        yield _factory(tmp_path_factory, stack)


@pytest.fixture(scope="module")
def torchserve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Start servers that end with the module."""
    with ExitStack() as stack:
        yield _factory(tmp_path_factory, stack)


@pytest.fixture(scope="session")
def make_mar(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_mar(name, handler_source)` -> path of a .mar made by hand, without handlergen's own archiver."""

    def make(
        name: str,
        handler: str = ECHO,
        *,
        workers: int = 1,
        requirements: str | None = None,
        files: Mapping[str, str] | None = None,
        **model_config: Any,
    ) -> Path:
        path = tmp_path_factory.mktemp("mar") / f"{name}.mar"
        model = {
            "modelName": name,
            "handler": "handler.py",
            "modelVersion": "1.0",
            "configFile": "model.yaml",
        }
        if requirements is not None:
            model["requirementsFile"] = "requirements.txt"
        config = {
            "minWorkers": workers,
            "maxWorkers": workers,
            "batchSize": 1,
            "maxBatchDelay": 1,
            "responseTimeout": 60,
            "startupTimeout": 60,
            **model_config,
        }
        manifest = {"createdOn": "today", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
        with zipfile.ZipFile(path, "w") as mar:
            mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            mar.writestr("handler.py", handler)
            mar.writestr("model.yaml", json.dumps(config))  # JSON is YAML
            if requirements is not None:
                mar.writestr("requirements.txt", requirements)
            for file, text in (files or {}).items():
                mar.writestr(file, text)
        return path

    return make


@pytest.fixture(scope="session")
def echo_mar(make_mar: Callable[..., Path]) -> Path:
    """A model `echo` with one worker that answers with its input."""
    return make_mar("echo")
