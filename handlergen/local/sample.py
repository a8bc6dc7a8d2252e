"""Answer one sample request in a clean process, and report what each hook received and returned."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError, ModuleFailed


@dataclass(frozen=True)
class StageRun:
    """One call of a hook.

    Attributes:
        name, role: The hook's name in the user's source; `preprocess`, `predict` or `postprocess`.
        received, returned: Types and shapes: `bytes (1832)`, `tensor(1, 8, 8) float32`.
        milliseconds: Duration; of predict, including the wait for the device to finish.
    """

    name: str
    role: str
    received: str
    returned: str
    milliseconds: float
    failed: bool


@dataclass(frozen=True)
class SampleRun:
    """The result of a sample request.

    Attributes:
        load_s: Duration of import and load.
        findings: Problems that would show elsewhere, and likely mistakes.
        status, content_type, body: The answer; the body is truncated if it is long, and base64 if it is not text.
        traceback: Of the user's code, if a hook failed.
    """

    load_s: float
    device: str
    stages: tuple[StageRun, ...]
    findings: tuple[str, ...]
    status: int
    content_type: str
    body: str
    traceback: str = ""


def run_sample(
    source: Path, sample: Path, *, gpu: int | None = None, overrides: Mapping[str, Any] | None = None
) -> SampleRun:
    """Answer one request, whose body is in the file `sample`, in a separate process; the other arguments are `load`'s.

    Raises:
        ModuleFailed: The module cannot be loaded, or its process died.
        HandlergenError: The sample cannot be read.
    """
    if not sample.is_file():
        raise HandlergenError(f"there is no sample {sample}")
    given = {
        "source": str(source.absolute()),
        "sample": str(sample.absolute()),
        "gpu": gpu,
        "overrides": {key: value for key, value in (overrides or {}).items() if value is not None},
    }
    command = [sys.executable, "-m", "handlergen.local.sample_child", json.dumps(given)]
    process = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise ModuleFailed(f"the module's process was terminated by {name} while it answered the sample")
    if not process.stdout:
        raise ModuleFailed(f"the module's process exited with status {process.returncode} without an answer")
    found = json.loads(process.stdout)
    if "error" in found:
        raise ModuleFailed(found["error"], traceback=found.get("traceback", ""), hint=found.get("hint"))
    stages = tuple(StageRun(**stage) for stage in found.pop("stages"))
    return SampleRun(stages=stages, findings=tuple(found.pop("findings")), **found)
