"""Modules that `map` runs over rows, and runs of it: in this process, or by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import handlergen
from handlergen.local.offline.engine import LocalEngine
from handlergen.local.offline.job import Summary, map_to_file
from handlergen.local.offline.sources import open_source

HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))

SOURCE = """
import os
import time
import torch

def preprocess(data):
    if isinstance(data, bytes):
        data = {"x": len(data)}
    if data["x"] < 0:
        raise ValueError("x must not be negative")
    return torch.tensor([float(data["x"])])

def predict(inputs):
    if os.environ.get("SLOW"):
        with open(os.environ["SLOW"], "a") as seen:
            seen.write(f"{int(inputs)}\\n")
        time.sleep(0.004)
    return inputs * 2

def postprocess(outputs):
    return {"y": float(outputs)}
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "doubler.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """`write(source)`: a module of that text."""

    def module_of(source: str) -> Path:
        path = tmp_path / f"written{len(list(tmp_path.glob('written*')))}.py"
        path.write_text(textwrap.dedent(source))
        return path

    return module_of


def write_rows(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"x": value}) + "\n" for value in values))
    return path


def run(module: Path, source: str | Path, output: Path, **options: Any) -> Summary:
    how = {"workers": options.pop("workers", 0), "threads": options.pop("threads", False)}
    warn = options.pop("warn", pytest.fail)
    with handlergen.load(module) as model:
        return map_to_file(LocalEngine(model, warn=warn, **how), open_source(str(source)), output, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def map_command(module: Path, source: Path, output: Path, *more: str) -> list[str]:
    command = [HANDLERGEN, "map", str(module), str(source), "-o", str(output)]
    return [*command, "--batch-size", "8", *more]


def started(command: list[str], seen: Path) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "SLOW": str(seen)}
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
