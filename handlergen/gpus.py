"""Number of GPUs that a server on this machine would use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping

from handlergen.settings import Settings


def gpus_for(settings: Settings, count_gpus: Callable[[], int] | None = None) -> int:
    """Return the number of GPUs for `devices: auto`, else 0: counting them starts a process."""
    return (count_gpus or visible_gpus)() if settings.devices == "auto" else 0


def visible_gpus(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of GPUs that TorchServe would use, without importing torch.

    As TorchServe does, it counts the GPUs that `nvidia-smi` lists (ConfigManager.getAvailableGpu) and
    `CUDA_VISIBLE_DEVICES` does not hide; 0 without nvidia-smi.
    """
    environ = os.environ if environ is None else environ
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return 0
    try:
        answer = subprocess.run(
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    installed = sum(line.strip().isdigit() for line in answer.stdout.splitlines())
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    count = 0
    for entry in visible.split(","):
        # Like the CUDA driver, end the list at the first entry that is not a device.
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return min(count, installed)
