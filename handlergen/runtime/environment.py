"""What a worker's environment must have, and what it lacks when a model cannot be loaded; each in one line.

The generated handler calls `require_environment` before it imports anything else. Older Pythons than those the runtime
supports must be able to compile this file.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OLDEST_PYTHON = (3, 9)
OLDEST_TORCH = (2, 1)
OLDEST_TORCHSERVE = (0, 9)

REPORT = "handlergen: the model could not be loaded: "
"""How the report in the model log begins: the rest of the line is the reason, the user's traceback may follow.
`server/readiness.py` reads it."""

_LONGEST_REASON = 400


class Unsuitable(RuntimeError):
    """The model cannot run in this environment; the message is one line that says what is missing where."""

    user_traceback = ""


def require_environment() -> None:
    """Check Python, torch and TorchServe, and import what the handler imports.

    Raises:
        Unsuitable: Something is missing or too old. The line has been printed, so that the model log has it. No
            ImportError: TorchServe takes that for a missing handler (ts/model_loader.py, load).
    """
    try:
        _check()
    except Unsuitable as error:
        sys.stdout.write(f"{REPORT}{error}\n")
        sys.stdout.flush()
        raise


def require_gpu(gpu_id: int | None, model_config: Mapping[str, Any] | None) -> None:
    """Check that the worker has the GPU that it is to use.

    Args:
        gpu_id: What TorchServe has given it; None: the CPU.
        model_config: The archive's model-config.yaml.

    Raises:
        Unsuitable: The archive asks for GPUs and TorchServe has none, or torch cannot use the one that it has given.
    """
    if gpu_id is None:
        if (model_config or {}).get("deviceType") == "gpu":
            raise Unsuitable(
                "the archive asks for a GPU (`devices` in handlergen.yaml), and TorchServe sees none on this machine; "
                "with `devices: auto` or `devices: cpu` the model runs on the CPU"
            )
        return
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        build = f"a build for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise Unsuitable(
            f"TorchServe has given this worker GPU {gpu_id}, which torch {torch.__version__} ({build}) cannot use in "
            f"{this_python()}"
        )


def this_python() -> str:
    """Return `Python 3.11.7 (/usr/bin/python3), which runs this worker`."""
    return "Python {}.{}.{} ({}), which runs this worker".format(*sys.version_info[:3], sys.executable)


def _check() -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise Unsuitable(f"{this_python()}, is too old: the archive needs Python {_dotted(OLDEST_PYTHON)} or newer")
    for name, oldest in (("ts", OLDEST_TORCHSERVE), ("torch", OLDEST_TORCH)):
        package = "TorchServe" if name == "ts" else name
        try:
            version = str(getattr(importlib.import_module(name), "__version__", ""))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise Unsuitable(missing_package(error)) from error
            raise Unsuitable(f"{package} is not installed for {this_python()}") from error
        except Exception as error:  # OSError: one of its libraries is missing
            raise Unsuitable(f"{package} cannot be imported by {this_python()}: {one_line(error)}") from error
        found = re.match(r"(\d+)\.(\d+)", version)
        if found and (int(found.group(1)), int(found.group(2))) < oldest:
            raise Unsuitable(
                f"{package} {version} is too old: the archive needs {_dotted(oldest)} or newer for {this_python()}"
            )
    for name in (f"{__package__}.worker", "ts.torch_handler.base_handler"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Unsuitable(missing_package(error)) from error
        except ImportError as error:
            raise Unsuitable(f"{name} cannot be imported by {this_python()}: {one_line(error)}") from error


def missing_package(error: ModuleNotFoundError) -> str:
    """Return which package is not installed for which Python."""
    return f"the package {(error.name or str(error)).partition('.')[0]} is not installed for {this_python()}"


def reason_of(error: BaseException, model_dir: Path) -> str:
    """Return in one line why a model cannot be loaded: what the environment or the archive lacks, else the exception.

    Args:
        model_dir: The directory of the unpacked archive.
    """
    return _lack(error, model_dir) or one_line(error)


def one_line(error: BaseException) -> str:
    """Return an exception's type and text in one line of at most 400 characters."""
    if isinstance(error, Unsuitable):
        return str(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 4] + " ..."


def _lack(error: BaseException, model_dir: Path) -> str | None:
    """Return what an exception says that the environment or the archive lacks; None if it says nothing of the kind."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if (model_dir / package).exists() or (model_dir / f"{package}.py").exists():
            return None
        return f"{missing_package(error)}; {_advice(package, model_dir)}"
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        file = Path(error.filename)
        place = file.relative_to(model_dir) if model_dir in file.parents else file
        return f"{place}, line {error.lineno}, is no valid code for {this_python()}: {error.msg}"
    if isinstance(error, FileNotFoundError) and error.filename:
        if Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "subprocess.py":
            return f"the program {error.filename} is not on the PATH of this worker"
        path = Path(os.path.realpath(os.fsdecode(error.filename)))
        if model_dir in path.parents and not path.exists():
            return (
                f"the archive has no file {path.relative_to(model_dir)}; `extra_files` or `weights` in "
                "handlergen.yaml packs it"
            )
    return None


def _advice(package: str, model_dir: Path) -> str:
    try:
        lines = (model_dir / "requirements.txt").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    names = [re.split(r"[^A-Za-z0-9._-]", line.strip())[0] for line in lines]
    if package.lower() in [re.sub(r"[-_.]+", "_", name).lower() for name in names]:
        return (
            "the archive's requirements.txt lists it, and TorchServe installs that only with "
            "install_py_dep_per_model=true in config.properties"
        )
    return "install it there, or name it under `requirements` in handlergen.yaml"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
