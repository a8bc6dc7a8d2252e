"""A program of handlergen's in a process of its own, which answers over a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any


class Child:
    """Such a process.

    Attributes:
        answers: What it says.
    """

    def __init__(self, process: subprocess.Popen[bytes], answers: IO[bytes]) -> None:
        self._process = process
        self.answers = answers

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return self._process.wait()


@contextlib.contextmanager
def answering_child(module: str, given: Mapping[str, Any]) -> Iterator[Child]:
    """Run a module with two arguments: what it is given as JSON, and the descriptor that it answers to.

    What the user's hooks print in it goes to standard error: standard output has the report. The process is killed
    when the block is left by an exception, and has ended afterwards.

    Args:
        module: Run with `python -m`.
        given: Plain JSON values.
    """
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answers:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(given), str(writer)],
                pass_fds=[writer],
                stdout=sys.__stderr__,
            )
        finally:
            os.close(writer)
        try:
            yield Child(process, answers)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
