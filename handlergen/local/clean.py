"""Ask a project examples in a clean process: one that has only the project's files and what is installed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.errors import ModuleFailed
from handlergen.local.model import LocalAnswer
from handlergen.runtime.examples import Example, to_files

_CHILD = "handlergen.local.clean_child"
_PACKAGES = Path(__file__).resolve().parents[2]
"""Where this handlergen is."""


@dataclass(frozen=True)
class CleanRun:
    """The answers of a clean process, in the order of the examples, and the tracebacks of those that failed."""

    answers: list[LocalAnswer]
    traceback: str


def ask_in_clean_process(
    source: Path,
    examples: Sequence[Example],
    *,
    gpu: int | None = None,
    any_runtime: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> CleanRun:
    """Load a model in a clean process, and return its answers; without examples, the model is only loaded.

    The process starts in an empty directory, and without PYTHONPATH: the caller's own modules are not found there.

    Args:
        source: A project, or a `.mar`.
        gpu, any_runtime, overrides: See `handlergen.local.model.load`.

    Raises:
        ModuleFailed: The model cannot be loaded, or the process died.
    """
    settings = {name: value for name, value in (overrides or {}).items() if value is not None}
    given = {"source": str(source.absolute()), "gpu": gpu, "any_runtime": any_runtime, "overrides": settings}
    with tempfile.TemporaryDirectory(prefix="handlergen-") as place:
        for name, content in to_files(examples).items():
            path = Path(place) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        process = subprocess.run(
            [sys.executable, "-m", _CHILD, json.dumps(given)],
            capture_output=True,
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(_PACKAGES)},
            check=False,
        )
    if not process.stdout:
        last = "\n".join(process.stderr.decode("utf-8", "replace").splitlines()[-5:])
        raise ModuleFailed(f"the clean process that loads the project ended with status {process.returncode}\n{last}")
    found = json.loads(process.stdout)
    if "error" in found:
        raise ModuleFailed(found["error"], traceback=found["traceback"], hint=found["hint"])
    answers = [LocalAnswer(**{**each, "body": base64.b64decode(each["body"])}) for each in found["answers"]]
    return CleanRun(answers, found["traceback"])
