"""One request through a module, in a clean process, with a look at what passes from stage to stage."""

from __future__ import annotations

import json
import os
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
    """One hook's call.

    Attributes:
        name: The hook, as the user calls it.
        role: `preprocess`, `predict` or `postprocess`.
        received, returned: Types and shapes: `bytes (1832)`, `tensor(1, 8, 8) float32`.
        milliseconds: That it took; of predict with the wait for the device to finish.
        failed: It raised.
    """

    name: str
    role: str
    received: str
    returned: str
    milliseconds: float
    failed: bool


@dataclass(frozen=True)
class SampleRun:
    """What became of the sample.

    Attributes:
        load_s: How long importing and loading took, in seconds.
        device: Where predict ran.
        stages: In the order in which they ran.
        findings: What works here but will not elsewhere, or is hardly meant.
        status, content_type, body: The answer; the body is cut when it is long, and base64 when it is no text.
        traceback: The user's own, when a hook failed.
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
    """Answer one request in a process of its own.

    Args:
        source: What `handlergen archive` takes, or a .mar.
        sample: A file that is posted as a client would.
        gpu: Predict there instead of on the CPU.
        overrides: Settings.

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
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answers:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "handlergen.local.sample_child", json.dumps(given), str(writer)],
                pass_fds=[writer],
                stdout=sys.__stderr__,  # what hooks print: standard output has the report
            )
        finally:
            os.close(writer)
        try:
            report = answers.read()
            status = process.wait()
        finally:
            process.kill()  # on Ctrl-C, say
            process.wait()
    if status < 0:
        name = signal.Signals(-status).name
        raise ModuleFailed(f"the module's process was ended by {name} while it answered the sample")
    if not report:
        raise ModuleFailed(f"the module's process ended with status {status} and no answer")
    found = json.loads(report)
    if "error" in found:
        raise ModuleFailed(found["error"], traceback=found.get("traceback", ""), hint=found.get("hint"))
    stages = tuple(StageRun(**stage) for stage in found.pop("stages"))
    return SampleRun(stages=stages, findings=tuple(found.pop("findings")), **found)
