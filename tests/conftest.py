"""What holds for every test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

# gRPC's own handlers end a child that is forked while another thread uses it: 3 of 150 by SIGABRT, none without them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session", autouse=True)
def _own_state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and stores of these tests only: else they would take turns with whatever predicts on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`example("iris")` -> a copy of that example, trained as its README says; once a run."""

    @cache
    def trained(name: str) -> Path:
        directory = tmp_path_factory.mktemp("examples") / name
        ignored = shutil.ignore_patterns("*.pt", "held-out*", "__pycache__")
        shutil.copytree(EXAMPLES / name, directory, ignore=ignored)
        if (directory / "train.py").is_file():
            subprocess.run([sys.executable, "train.py"], cwd=directory, check=True, capture_output=True)
        return directory

    return trained


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their parameter: a compressor writes the time into its output, and workers must agree."""
    return argname if isinstance(val, bytes) else None


def pytest_configure() -> None:
    """A shell that starts the suite in the background has it ignore SIGINT, and so would all that it starts: the
    tests that press Ctrl-C would press it in vain. A handler of one's own is not inherited; the default is."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
