"""Real servers for the end-to-end tests.

`shared(*archives)` returns the one server of this run, with these models registered until the test module ends. Use it
for every test that needs no server settings of its own and does not stop or kill the server:

    @pytest.fixture(scope="module")
    def server(shared, echo_mar):
        return shared(echo_mar)

    def test_answers(server):
        assert server.client.predict("echo", {"a": 1}).status == 200

`torchserve(*archives, ...)` starts a server for one test, `torchserve_module` one for a test module; each is stopped
afterwards, whatever happened.

Each server has its own directory (configuration, model store, logs, key file), its own ports, its own temp directory
and its own session of processes. Token authorization is on unless a test says `token_authorization=False`;
`server.client` reads the key file.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from handlergen.client import Client
from handlergen.errors import RequestFailed
from handlergen.performance.recordings import Span, read_spans
from handlergen.server.configuration import write_configuration
from handlergen.server.launching import marked
from handlergen.server.lifecycle import RunningServer, serve, stop
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import ServerSettings, server_settings
from tests.commands import processes_of

ECHO = '''
import json


class Echo:
    """Answers each request with what TorchServe handed over, bytes as text."""

    def initialize(self, context):
        print("echo is loading", flush=True)

    def handle(self, data, context):
        return [json.dumps(row, default=lambda value: bytes(value).decode()).encode() for row in data]
'''


# Makes `import handlergen` fail in every worker of the shared server, as where it is not installed.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "handlergen":
            raise ImportError("handlergen is not installed here")

sys.meta_path.insert(0, Blocker())
"""

SHARED_ENVIRON = {"HF_HUB_OFFLINE": "1", "api_key": "sesame-4711"}
"""What the models of some test modules read from the environment."""


@dataclass(frozen=True)
class Server:
    """A running TorchServe, as one test or one test module sees it.

    Attributes:
        directory: Its working directory: config.properties, model-store/, logs/, key_file.json.
        client: Knows its addresses and tokens; `client.grpc` and `client.grpc_management` speak gRPC.
        spans_directory: Where its workers record spans, when they do.
        models: The models that were registered for this view of the shared server.
        logged: Inode and size of each log file when this view was made.
    """

    running: RunningServer
    directory: Path
    client: Client
    spans_directory: Path | None = None
    models: tuple[str, ...] = ()
    logged: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

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

    def log_files(self) -> list[Path]:
        return sorted(self.running.log_directory.glob("*.log"))

    def log_marks(self) -> dict[Path, tuple[int, int]]:
        """Inode and size in bytes of each log file now."""
        return {path: (path.stat().st_ino, path.stat().st_size) for path in self.log_files()}

    def log_text(self, since: Mapping[Path, tuple[int, int]] | None = None) -> str:
        """What was added to logs/ for this view, or since then: what workers printed, what TorchServe complained of."""
        marks = self.logged if since is None else since
        return "".join(_added(path, *marks.get(path, (0, 0))).decode("utf-8", "replace") for path in self.log_files())

    def spans(self) -> list[Span]:
        """What the workers of this view's models recorded."""
        assert self.spans_directory is not None
        return [span for span in read_spans(self.spans_directory) if span.model in self.models]

    def key(self, kind: str = "inference") -> str:
        """A token out of the server's key file."""
        return str(json.loads((self.directory / "key_file.json").read_text())[kind]["key"])

    def describe(self, model: str) -> Any:
        """What the model says of itself at the management address."""
        answer = httpx.get(
            f"{self.settings.management_address}/models/{model}",
            params={"customized": "true"},
            headers={"Authorization": f"Bearer {self.key('management')}"},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        found = answer.json()[0]["customizedMetadata"]
        return json.loads(found) if isinstance(found, str) else found

    def stop(self) -> None:
        self.client.close()
        self.running.stop()


def _added(path: Path, inode: int, size: int) -> bytes:
    """What a log file got since it had this inode and size, also if it was rolled over meanwhile, as at midnight."""
    if inode in (0, path.stat().st_ino):
        return path.read_bytes()[size:]
    older = max(path.parent.glob(f"{path.stem}.*.log.gz"), key=lambda each: each.stat().st_mtime)
    return gzip.decompress(older.read_bytes())[size:] + path.read_bytes()


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
            settings: For `handlergen.server.properties.server_settings`, ports excepted.
        """
        home = directory or tmp_path_factory.mktemp("server")
        (home / "model-store").mkdir(exist_ok=True)
        for archive in archives:
            shutil.copy(archive, home / "model-store" / archive.name)
        chosen: dict[str, Any] = {**free_port_settings(), **settings}
        write_configuration(home / "config.properties", server_settings(**chosen), force=True)
        running = serve(home / "config.properties", timeout=timeout, environ={**os.environ, **(environ or {})})
        server = Server(running, home, running.client())
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture(scope="session")
def _shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this run (of this process, where pytest-xdist runs several), without a model.

    Its workers record spans, may be registered and unregistered, and cannot import handlergen.
    """
    home = tmp_path_factory.mktemp("shared")
    (home / "sitecustomize.py").write_text(BLOCKER)
    environ = {**SHARED_ENVIRON, "HANDLERGEN_TRACE_DIR": str(home / "spans"), "PYTHONPATH": str(home)}
    with ExitStack() as stack:
        server = _factory(tmp_path_factory, stack)(environ=environ, model_api=True)
        yield replace(server, spans_directory=home / "spans")


@pytest.fixture(scope="module")
def shared(_shared_server: Server) -> Iterator[Factory]:
    """`shared(*archives)` -> a view of the shared server with these models, which go when the module ends."""
    added: list[Path] = []

    def add(*archives: Path) -> Server:
        server = replace(
            _shared_server,
            logged=_shared_server.log_marks(),
            models=tuple(archive.stem for archive in archives),
        )
        added.extend(archives)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda archive: _register(server, archive), archives))
        return server

    yield add
    registered = _shared_server.client.models()
    for archive in added:
        if archive.stem in registered:  # a test may have unregistered it
            _shared_server.client.unregister(archive.stem, drain_s=0)
        (_shared_server.store / archive.name).unlink(missing_ok=True)


def _register(server: Server, archive: Path) -> None:
    """Register an archive with as many workers as its own settings say."""
    assert archive.stem not in server.client.models()
    shutil.copy(archive, server.store / archive.name)
    with zipfile.ZipFile(archive) as mar:
        manifest = json.loads(mar.read("MAR-INF/MANIFEST.json"))["model"]
        config = yaml.safe_load(mar.read(manifest["configFile"]))
    try:
        server.client.register(archive.name, initial_workers=config["minWorkers"], synchronous=True)
    except RequestFailed as error:
        pytest.fail(f"{archive.name}: {error}\n{server.log_text()[-5000:]}")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`project(*archives)` -> config.properties in a new directory with these in its model store.

    Whatever a test has left running in it is ended.
    """
    config = tmp_path / "project" / "config.properties"

    def make(*archives: Path) -> Path:
        (config.parent / "model-store").mkdir(parents=True)
        for archive in archives:
            shutil.copy(archive, config.parent / "model-store")
        settings: dict[str, Any] = free_port_settings()
        write_configuration(config, server_settings(**settings))
        return config

    yield make
    stop(config)
    for process in processes_of(config):
        process.kill()


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
        model = {"modelName": name, "handler": "handler.py", "modelVersion": "1.0", "configFile": "model.yaml"}
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
def grpc_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the compiler that clients of `export grpc` need, which is no dependency of handlergen's."""
    tools = tmp_path_factory.mktemp("tools")
    compiler = f"grpcio-tools=={version('grpcio')}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tools), compiler]
    subprocess.run(pip, check=True, timeout=240)
    return tools


@pytest.fixture(scope="session")
def echo_mar(make_mar: Callable[..., Path]) -> Path:
    """A model `echo` with one worker that answers with its input."""
    return make_mar("echo")
