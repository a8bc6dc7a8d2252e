"""The systems that run TorchServe for people ("homes"), each as a configuration, a command line and directories.

Nothing here uses handlergen to start TorchServe. Absolute paths such as /mnt/models are below the home's own directory,
ports are free ones on 127.0.0.1, and each home has two models where the system would have one: the second has a
predictor process. Sources:

- image: pytorch/serve, docker/Dockerfile, docker/config.properties and docker/dockerd-entrypoint.sh of each tag
- kserve: pytorch/serve, kubernetes/kserve of v0.9.0; kserve/kserve, ClusterServingRuntime kserve-torchserve
- vertex: Google's documentation of the prebuilt PyTorch containers (model.mar, model, service_envelope=json)
- sagemaker: aws/sagemaker-pytorch-inference-toolkit, torchserve.py and etc/default-ts.properties
- ec2: aws/deep-learning-containers, pytorch/inference/docker/build_artifacts/config.properties (2025)
- azure: Azure/azureml-examples, cli/endpoints/online/custom-container/torchserve
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from handlergen.client import Client
from handlergen.errors import NoServer, RequestFailed
from handlergen.server.configuration import write_configuration
from handlergen.server.java import find_java
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import ServerSettings, server_settings
from tests.archives import make_archive
from tests.histories import until
from tests.homes.environments import Environment

BATCH = 8
DELAY_MS = 200
VERSIONS = ("0.9.0", "0.10.0", "0.11.1", "0.12.0")

SOURCE = """
import torch

def load(context):
    context.store.save("loaded", True)
    return torch.nn.Identity()

def preprocess(data, files, context):
    assert context.store.get("loaded")
    if isinstance(data, str) and data == "refuse":
        raise ValueError("this is refused")
    if files:
        return {"name": context.model_name, "fields": data, "files": {file.name: len(file.read()) for file in files}}
    if isinstance(data, bytes):
        return {"name": context.model_name, "bytes": len(data)}
    return {"data": data}

def predict(inputs, model):
    together = model(torch.tensor(len(inputs))).item()
    return [{**each, "together": together} for each in inputs]

def explain(inputs):
    return {"why": inputs["data"]}

def postprocess(outputs):
    if isinstance(outputs.get("data"), str) and outputs["data"] == "stream":
        return (f"{number};" for number in range(3))
    return outputs
"""


@dataclass(frozen=True)
class Place:
    """What a home is made of: its root directory ("/"), the two archives, free ports."""

    root: Path
    worker: Path
    process: Path
    ports: Mapping[str, int]
    version: str

    def directory(self, path: str) -> Path:
        made = self.root / path
        made.mkdir(parents=True, exist_ok=True)
        return made

    def properties(self, path: str, *, one_port: bool = False, **others: Any) -> Path:
        """Write a `config.properties` with addresses on free ports."""
        ports = dict(self.ports)
        if one_port:
            ports["management_port"] = ports["inference_port"]
        lines: dict[str, Any] = {
            **{f"{api}_address": f"http://127.0.0.1:{ports[f'{api}_port']}" for api in ("inference", "management")},
            "metrics_address": f"http://127.0.0.1:{ports['metrics_port']}",
            **{key: ports[key] for key in ("grpc_inference_port", "grpc_management_port")},
            **others,
        }
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        return file

    def settings(self, *, one_port: bool) -> ServerSettings:
        """Where a client finds it."""
        settings = server_settings(**dict(self.ports), token_authorization=False)
        return replace(settings, management_address=settings.inference_address) if one_port else settings


@dataclass(frozen=True)
class Home:
    """One system.

    Attributes:
        versions: Of TorchServe, that it carries.
        lay_out: Writes its files and returns TorchServe's arguments and the working directory.
        names: Under which the two archives are registered.
        late: Directory that is registered as the second model at the management address, once the first is there.
        home: Its `HOME`; empty: there is none, and the user id has no entry in passwd(5).
        envelope: TorchServe has a service envelope.
        own_metrics: TorchServe reports the metrics of models.
        one_port: Predictions and management share an address.
        read_only: What its user cannot write.
    """

    versions: tuple[str, ...]
    lay_out: Callable[[Place], tuple[list[str], Path]]
    names: tuple[str, str] = ("m", "p")
    late: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    home: str = "home/model-server"
    envelope: bool = False
    own_metrics: bool = False
    one_port: bool = False
    read_only: str = ""


def own(place: Place, **properties: str) -> tuple[list[str], Path]:
    """A machine of one's own: `handlergen config`, perhaps with more properties, and TorchServe's launcher."""
    store = _store(place, "home/model-server/model-store")
    ports, other = dict(place.ports), tuple(properties.items())
    settings = server_settings(**ports, token_authorization=False, model_store="model-store", other=other)
    write_configuration(store.parent / "config.properties", settings)
    return ["--ncs", "--ts-config", "config.properties", "--models", "other=m.mar", "apart=p.mar"], store.parent


def _image(place: Place) -> tuple[list[str], Path]:
    store = _store(place, "home/model-server/model-store")
    place.properties(
        "home/model-server/config.properties",
        number_of_netty_threads=32,
        job_queue_size=1000,
        model_store=store,
        workflow_store=place.directory("home/model-server/wf-store"),
    )
    models = ["--models", "other=m.mar", "apart=p.mar"]
    return ["--ts-config", "config.properties", *models, *_tokens_off(place)], store.parent


def _kserve(place: Place) -> tuple[list[str], Path]:
    store = _store(place, "mnt/models/model-store")
    numbers = {"minWorkers": 1, "maxWorkers": 5, "batchSize": BATCH, "maxBatchDelay": DELAY_MS, "responseTimeout": 60}
    models = {
        name: {"1.0": {"defaultVersion": True, "marName": archive, **numbers}}
        for name, archive in (("other", "m.mar"), ("apart", "p.mar"))
    }
    config = place.properties(
        "mnt/models/config/config.properties",
        one_port=True,
        enable_envvars_config="true",
        install_py_dep_per_model="true",
        enable_metrics_api="true",
        metrics_mode="prometheus",
        NUM_WORKERS=1,
        number_of_netty_threads=4,
        job_queue_size=10,
        load_models="all",
        model_store=store,
        model_snapshot=json.dumps({"name": "startup.cfg", "modelCount": 2, "models": models}),
    )
    return [f"--model-store={store}", f"--ts-config={config}"], place.directory("home/model-server")


def _vertex(place: Place) -> tuple[list[str], Path]:
    store = place.directory("home/model-server/model-store")
    shutil.copy(place.worker, store / "model.mar")
    shutil.copy(place.process, store / "apart.mar")
    config = place.properties(
        "home/model-server/config.properties", service_envelope="json", disable_token_authorization="true"
    )
    arguments = ["--ts-config", str(config), "--models", "model=model.mar", "apart=apart.mar"]
    return [*arguments, "--model-store", str(store)], store.parent


def _sagemaker(place: Place) -> tuple[list[str], Path]:
    for archive, name in ((place.worker, "model"), (place.process, "apart")):
        with zipfile.ZipFile(archive) as mar:
            mar.extractall(place.directory(f"opt/ml/{name}"))
    config = place.properties(
        "etc/sagemaker-ts.properties",
        one_port=True,
        vmargs="-XX:-UseContainerSupport",
        enable_envvars_config="true",
        decode_input_request="false",
        load_models="ALL",
        disable_token_authorization="true",
        enable_model_api="true",
        default_service_handler="sagemaker_pytorch_serving_container.handler_service:handle",
    )
    store = place.directory("work/.sagemaker/ts/models")
    models = ["--models", f"model={place.root}/opt/ml/model"]
    return ["--model-store", str(store), "--ts-config", str(config), *models], place.root / "work"


def _ec2(place: Place) -> tuple[list[str], Path]:
    config = place.properties(
        "home/model-server/config.properties",
        vmargs="-XX:+UseContainerSupport -XX:InitialRAMPercentage=8.0 -XX:MaxRAMPercentage=10.0 -XX:-UseLargePages "
        "-XX:+UseG1GC -XX:+ExitOnOutOfMemoryError",
        model_store=_store(place, "opt/ml/model"),
        load_models="ALL",
        enable_envvars_config="true",
        use_env_allowed_urls="true",
        disable_token_authorization="true",
    )
    return ["--ts-config", str(config)], place.directory("home/model-server")


def _azure(place: Place) -> tuple[list[str], Path]:
    store = _store(place, "var/azureml-app/azureml-models/m/1/torchserve")
    config = place.properties(str(store.relative_to(place.root) / "config.properties"))
    arguments = [*_tokens_off(place), "--model-store", str(store), "--models", "other=m.mar", "apart=p.mar"]
    return [*arguments, "--ts-config", str(config)], place.directory("home/model-server")


def _store(place: Place, path: str) -> Path:
    store = place.directory(path)
    shutil.copy(place.worker, store / "m.mar")
    shutil.copy(place.process, store / "p.mar")
    return store


def _tokens_off(place: Place) -> list[str]:
    """The option exists since 0.11.1, where tokens are required otherwise."""
    return ["--disable-token-auth"] if place.version in ("0.11.1", "0.12.0") else []


OTHER = ("other", "apart")


def _kserve_home(envelope: str) -> Home:
    """KServe's runtime for a version of its protocol, which TorchServe's envelope unwraps."""
    environ = {"TS_SERVICE_ENVELOPE": envelope}
    return Home(
        ("0.9.0",), _kserve, OTHER, environ=environ, home="", envelope=True, one_port=True, read_only="mnt/models"
    )


HOMES = {
    "own": Home(VERSIONS, own, OTHER, own_metrics=True),
    "image": Home(VERSIONS, _image, OTHER),
    "kserve-v1": _kserve_home("kserve"),
    "kserve-v2": _kserve_home("kservev2"),
    "vertex": Home(("0.11.1", "0.12.0"), _vertex, ("model", "apart"), envelope=True),
    "sagemaker": Home(
        ("0.11.0", "0.12.0"),
        _sagemaker,
        ("model", "apart"),
        late="opt/ml/apart",
        environ={"PYTHONPATH": "opt/ml/model/code"},
        home="",
        one_port=True,
        read_only="opt/ml",
    ),
    "ec2": Home(("0.12.0",), _ec2, home=""),
    "azure": Home(("0.12.0",), _azure, OTHER, read_only="var/azureml-app"),
}


class Running:
    """A home with its TorchServe.

    Attributes:
        client: Of its addresses.
        home: What it is.
        models: The names of its two models; the second one's has a predictor process.
        version: Of TorchServe.
    """

    def __init__(self, home: Home, place: Place, client: Client, http: httpx.Client) -> None:
        self.home = home
        self.models = home.names
        self.client = client
        self._http = http
        self.version = place.version
        self.root = place.root

    def ready(self, name: str) -> bool:
        """Whether the model has a worker that is READY. Raises AssertionError when it could not be loaded."""
        try:
            found = any(worker.ready for worker in self.client.describe(name).workers)
        except (NoServer, RequestFailed):
            found = False
        assert found or "could not be loaded" not in self.log_text()
        return found

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, Any]:
        """Send JSON; returns status and decoded answer."""
        answer = self.http("POST", path, json=value, headers=headers)
        return answer.status_code, answer.json()

    def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, f"{self.client.settings.inference_address}/{path}", **options)

    def described(self, name: str, **headers: str) -> Any:
        """What the worker says of itself."""
        address = f"{self.client.settings.management_address}/models/{name}?customized=true"
        found = self._http.get(address, headers=headers).json()[0]["customizedMetadata"]
        return json.loads(found) if isinstance(found, str) else found

    def metrics(self) -> str:
        return self._http.get(f"{self.client.settings.metrics_address}/metrics").text

    def log_text(self) -> str:
        logs = [*sorted(self.root.rglob("logs/*.log")), self.root / "console"]
        return "\n".join(f"== {log.name}\n{log.read_text('utf-8', 'replace')}" for log in logs)


def make_archives(directory: Path, source: str = SOURCE) -> tuple[Path, Path]:
    """Both archives: `m`, whose worker predicts, and `p`, with a predictor process."""
    common: dict[str, Any] = {"batch": "list", "batch_size": BATCH, "max_batch_delay_ms": DELAY_MS}
    worker = make_archive(directory, "m", source, predictor="worker", **common)
    return worker, make_archive(directory, "p", source, predictor="process", stages="worker", **common)


@contextmanager
def running(
    home: Home, environment: Environment, directory: Path, archives: Sequence[Path], *, within_s: float = 180.0
) -> Iterator[Running]:
    """Start a home's TorchServe, wait for both models, and end it.

    As root, the server is another user's, whose id has no entry in passwd(5) (where setpriv(1) is there).

    Raises:
        AssertionError: A model is not READY in time. The message has the end of the logs.
    """
    place = Place(directory, archives[0], archives[1], free_port_settings(), environment.torchserve)
    arguments, work = home.lay_out(place)
    temp = place.directory("home/model-server/tmp")
    paths = [str(directory / home.environ["PYTHONPATH"])] if "PYTHONPATH" in home.environ else []
    environ = {
        **home.environ,
        **{"PATH": f"{Path(environment.python).parent}{os.pathsep}{os.defpath}", "LANG": "C.UTF-8"},
        **{"JAVA_HOME": str(find_java().home), "TEMP": str(temp), "PYTHONUNBUFFERED": "TRUE"},
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [environment.installed])]),
    }
    if home.home:
        environ["HOME"] = str(place.directory(home.home))
    command = [environment.python, "-m", "ts.model_server", "--start", *arguments]
    user = _other_user()
    if user:
        # The interpreter, Java and the test's directory may be in directories of root's: this user may pass them.
        allowed = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *allowed, *command]
        _give(directory, user, keep=directory / home.read_only if home.read_only else None)
    else:
        environ["HANDLERGEN_STATE_DIR"] = str(directory / "state")
    with (directory / "console").open("wb") as console:
        process = subprocess.Popen(
            command, cwd=work, env=environ, stdout=console, stderr=console, start_new_session=True
        )
    try:
        settings = place.settings(one_port=home.one_port)
        with Client(settings, timeout=60) as client, httpx.Client(trust_env=False, timeout=60) as http:
            found = Running(home, place, client, http)
            try:
                until(lambda: process.poll() or found.ready(home.names[0]), within_s)
                assert not process.poll()
                if home.late:
                    client.register(str(directory / home.late), model_name=home.names[1], initial_workers=1)
                until(lambda: found.ready(home.names[1]), within_s)
            except (AssertionError, RequestFailed) as error:
                raise AssertionError(f"{error}\n{found.log_text()[-6000:]}") from None
            yield found
    finally:
        # The launcher may have ended: TorchServe is its child, and in its session.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if user:
            shutil.rmtree(f"/dev/shm/handlergen-{user}", ignore_errors=True)


def _other_user() -> int:
    """An id that is nobody's, and no other test run's; 0 where this process cannot act for another user."""
    return 100_000 + os.getpid() if sys.platform == "linux" and os.getuid() == 0 and shutil.which("setpriv") else 0


def _give(directory: Path, user: int, *, keep: Path | None) -> None:
    """Give a tree to a user, but for one part, which stays root's and which nobody may write."""
    for path in (directory, *directory.rglob("*")):
        if keep is None or not path.is_relative_to(keep):
            os.chown(path, user, user, follow_symlinks=False)
        elif not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
