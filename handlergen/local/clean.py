"""Ask a project examples in a clean process: one that has only the project's files and what is installed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from handlergen.errors import ModuleFailed
from handlergen.local.model import LocalAnswer
from handlergen.runtime.examples import Example, to_files

_CHILD = "handlergen.local.clean_child"
_PACKAGES = Path(__file__).resolve().parents[2]
"""Where this handlergen is."""


def ask_in_clean_process(source: Path, examples: Sequence[Example]) -> list[LocalAnswer]:
    """Load a project in a clean process, and return its answers; without examples, the project is only loaded.

    The process starts in an empty directory, and without PYTHONPATH: the caller's own modules are not found there.

    Raises:
        ModuleFailed: The project cannot be loaded, a hook raised, or the process died.
    """
    with tempfile.TemporaryDirectory(prefix="handlergen-") as place:
        for name, content in to_files(examples).items():
            path = Path(place) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        process = subprocess.run(
            [sys.executable, "-m", _CHILD, str(source.absolute())],
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
    if found["traceback"]:
        last = found["traceback"].rstrip().splitlines()[-1]
        raise ModuleFailed(f"the project fails on the example in a clean process: {last}", traceback=found["traceback"])
    return [LocalAnswer(**{**each, "body": base64.b64decode(each["body"])}) for each in found["answers"]]
