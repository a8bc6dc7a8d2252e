"""The GPUs that a server here would use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping

from handlergen.settings import Settings


def gpus_for(settings: Settings, count_gpus: Callable[[], int] | None = None) -> int:
    """GPUs that matter for these settings; counted for `devices: auto` only, since that starts a process."""
    return (count_gpus or visible_gpus)() if settings.devices == "auto" else 0


def visible_gpus(environ: Mapping[str, str] | None = None) -> int:
    """GPUs that a TorchServe started here would use, counted as it counts them, without importing torch.

    What `nvidia-smi` lists (ConfigManager.getAvailableGpu), of these what `CUDA_VISIBLE_DEVICES` lets
    through; 0 without nvidia-smi.
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
        # As the CUDA driver reads it: the list ends at the first entry that names no device.
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return min(count, installed)
