"""What a forked process has of the files of the one it came from."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlergen.runtime import descriptors


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    descriptors.descriptor_closed_in_children(descriptor)
    yield descriptor
    descriptors._descriptors.pop(descriptor, None)
    with contextlib.suppress(OSError):  # a test has closed it
        os.close(descriptor)


def is_open_in_a_child(descriptor: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os.fstat(descriptor)
        except OSError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_a_registered_file_is_closed_in_a_child(registered: int) -> None:
    assert not is_open_in_a_child(registered)
    os.fstat(registered)


def test_the_number_of_a_file_that_somebody_closed_is_another_file_s(registered: int, tmp_path: Path) -> None:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, registered)  # as when it is closed, and another one opened
    os.close(other)
    assert is_open_in_a_child(registered)


def test_a_program_starts_although_its_pipe_has_such_a_number(registered: int) -> None:
    """With `preexec_fn`, `subprocess` forks as `os.fork` does, and tells by a pipe how that went."""
    os.close(registered)
    done = subprocess.run([sys.executable, "-c", "print(7)"], preexec_fn=os.getpid, capture_output=True, check=True)
    assert done.stdout == b"7\n"
