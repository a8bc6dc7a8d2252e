"""The wheel, alone in a clean virtual environment, does all of it: nothing of the checkout is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from handlergen.ports import free_port_settings

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("handlergen", "templates")


@dataclass(frozen=True)
class Installed:
    """handlergen in an environment of its own, and an unrelated directory to use it in."""

    python: Path
    directory: Path

    def run(self, *command: str, timeout: float = 300) -> str:
        """Run a program of that environment; its stdout. Fails the test when it fails."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environ["PATH"] = f"{self.python.parent}{os.pathsep}{environ['PATH']}"
        environ.pop("VIRTUAL_ENV", None)
        program = shutil.which(command[0], path=str(self.python.parent))
        assert program, f"{command[0]} is not installed"
        result = subprocess.run(
            [program, *command[1:]],
            cwd=self.directory,
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
        return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that what the sdist leaves out is missed here."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    environment = tmp_path_factory.mktemp("clean")
    try:
        venv.create(environment / "venv", with_pip=True)
        found = Installed(environment / "venv" / "bin" / "python", environment)
        # Everything it needs comes with it: the development tools and the checkout do not.
        constraints = str(ROOT / "constraints.txt")
        found.run("python", "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel), timeout=900)
        yield found
    finally:
        shutil.rmtree(environment)  # torch is large


def test_the_wheel_holds_the_package_and_the_templates(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--", *PACKAGED], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert tracked
    expected = {name.replace("templates/", "handlergen/_templates/", 1) for name in tracked}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= held
    assert {name.split("/")[0] for name in held} == {
        "handlergen",
        wheel.name.rsplit("-", 3)[0] + ".dist-info",
    }


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_a_new_project_from_start_to_stop(installed: Installed) -> None:
    origin = installed.run("python", "-c", "import handlergen; print(handlergen.__file__)")
    assert Path(origin.strip()).is_relative_to(installed.directory), "not the wheel's"
    installed.run("python", "-m", "pip", "check")

    installed.run("handlergen", "init", "greeter")
    installed.run("handlergen", "check", "greeter")
    assert "BaseHandler" in installed.run("handlergen", "generate", "greeter")
    installed.run("handlergen", "archive", "greeter")
    assert (installed.directory / "model-store" / "greeter.mar").is_file()

    ports = [
        item
        for name, port in free_port_settings().items()
        for item in (f"--{name.replace('_', '-')}", str(port))
    ]
    installed.run("handlergen", "config", *ports)
    installed.run("handlergen", "serve")
    try:
        request = ("handlergen", "invoke", "greeter", "--file", "greeter/request.json")
        assert json.loads(installed.run(*request)) == [2, 4, 6]
        assert json.loads(installed.run(*request, "--grpc")) == [2, 4, 6]
    finally:
        installed.run("handlergen", "stop")
