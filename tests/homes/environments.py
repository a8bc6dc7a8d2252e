"""A TorchServe of any version for any Python that has a torch: what is missing goes into a directory for PYTHONPATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

QUESTION = """
import json, sys
from importlib import metadata, util

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""

needs = {"psutil": "psutil", "packaging": "packaging", "pyyaml": "yaml", "pillow": "PIL"}
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "torch": version("torch"),
    "torchserve": version("torchserve"),
    "missing": [name for name, module in needs.items() if util.find_spec(module) is None],
}))
"""


@dataclass(frozen=True)
class Environment:
    """A Python with a torch and a TorchServe.

    Attributes:
        python: Its executable.
        version: "3.11".
        torch, torchserve: Their versions.
        missing: Packages that TorchServe imports and this Python lacks.
        installed: The directory with what that Python lacked; empty if it lacked nothing.
    """

    python: str
    version: str
    torch: str
    torchserve: str
    missing: tuple[str, ...] = ()
    installed: str = ""


def pythons() -> list[str]:
    """This Python, and those of pyenv that have a torch, one of each version."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {describe(sys.executable).version: sys.executable}
    for minor in range(9, 14):
        for path in kept.glob(f"3.{minor}.*/bin/python"):
            if (here := describe(str(path))).torch:
                found.setdefault(here.version, str(path))
    return list(found.values())


def describe(python: str) -> Environment:
    """Return what a Python has; `torch` and `torchserve` may be empty."""
    ended = subprocess.run([python, "-c", QUESTION], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return Environment(python, **json.loads(ended.stdout))


def with_torchserve(python: str, version: str, directory: Path) -> Environment:
    """Return that Python with that TorchServe, installed into `directory` unless the Python has it.

    Without its dependencies, but for those that the Python lacks. TorchServe before 0.11 imports pkg_resources, which
    setuptools 81 has no more.

    Skips the test where there is none.
    """
    found = describe(python)
    if not found.torch:
        pytest.skip(f"{python} has no torch")
    if found.torchserve == version:
        return found
    wanted = [f"torchserve=={version}", "setuptools<81", *found.missing]
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    ended = subprocess.run(
        [*install, "--target", directory, *wanted], capture_output=True, text=True, check=False, timeout=300
    )
    if ended.returncode:
        pytest.skip(f"the package registry does not give {' '.join(wanted)}: {ended.stderr[-200:]}")
    return replace(found, torchserve=version, installed=str(directory))
