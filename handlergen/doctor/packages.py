"""The Python packages that a server needs, and the versions that were tried."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

from handlergen.doctor.finding import Finding, error, ok, warning
from handlergen.doctor.situation import Situation

TORCHSERVE = "0.12"


def python(_situation: Situation) -> Iterator[Finding]:
    """This Python, which the workers run in, too."""
    yield ok(f"Python {platform.python_version()} ({sys.executable})")


def torchserve(_situation: Situation) -> Iterator[Finding]:
    """TorchServe and its archiver, of the version whose defects are worked around."""
    for package, needed_for in (
        ("torchserve", "It is the server."),
        ("torch-model-archiver", "It writes the archives."),
    ):
        version = _version(package)
        if version is None:
            yield error(f"{package} is not installed", needed_for, f"pip install '{package}=={TORCHSERVE}.*'")
        elif version == TORCHSERVE or version.startswith(f"{TORCHSERVE}."):
            yield ok(f"{package} {version}")
        else:
            yield warning(
                f"{package} {version}",
                f"handlergen was tried with {TORCHSERVE}; others may read configuration and archives otherwise.",
                f"pip install '{package}=={TORCHSERVE}.*'",
            )


def torch(_situation: Situation) -> Iterator[Finding]:
    """Whether torch can be imported; its wheels often cannot where a system library is missing."""
    version = _version("torch")
    if version is None:
        yield error("torch is not installed", "Every worker imports it.", "pip install torch")
        return
    try:
        import torch
    except (ImportError, OSError) as failed:
        yield error(
            f"torch {version} cannot be imported: {failed}",
            "Every worker imports it.",
            "pip install --force-reinstall torch",
        )
        return
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield ok(f"torch {torch.__version__}, {cuda}")


def transport(_situation: Situation) -> Iterator[Finding]:
    """Whether a tensor can be sent between a worker and the predictor process, over the socket and in shared memory."""
    import torch

    from handlergen.runtime.predictor_process.transport import SHARED_FROM, round_trip

    for count in (4, SHARED_FROM):
        tensor = torch.arange(count, dtype=torch.float32)
        try:
            if not torch.equal(round_trip(tensor), tensor):
                raise ValueError("it arrives changed")
        except Exception as failed:
            yield error(
                f"a tensor of {tensor.nbytes} bytes cannot be sent to another process: {failed}",
                "Each request is answered 500 where the predictor process has the model (`predictor: process`).",
                "predictor: worker   # in handlergen.yaml, then archive again",
            )
            return
    yield ok("tensors can be sent to a predictor process")


def others(_situation: Situation) -> Iterator[Finding]:
    """What TorchServe imports without saying so to pip."""
    version = _version("pyyaml")
    if version is None:
        yield error(
            "pyyaml is not installed",
            "TorchServe's workers import it, but pip does not install it with torchserve: every worker dies.",
            "pip install pyyaml",
        )
    else:
        yield ok(f"pyyaml {version}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
