"""Settings to `model-config.yaml`, the file by which an archive tells TorchServe how to run it. Pure.

Facts (TorchServe 0.12): once an archive has this file, its value or the built-in default wins over
everything else for `responseTimeout` and `startupTimeout` (ModelManager.createModel), `minWorkers` without
`maxWorkers` is invalid, `maxBatchDelay: 0` means 100, unknown keys are ignored in silence
(ModelConfig.build). So every key is written.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlergen.project.settings import Settings

if TYPE_CHECKING:
    from handlergen.project.settings import Settings


@dataclass(frozen=True)
class Placement:
    """How many workers, and where.

    Attributes:
        workers: Workers of the model, over all its devices.
        device_type: `cpu`, `gpu`, or None: the GPUs if the server has any, else the CPU.
        device_ids: Logical GPU indices that the workers take in turn; None leaves it to TorchServe's own
        count.
    """

    workers: int
    device_type: str | None
    device_ids: tuple[int, ...] | None


def placement(settings: Settings, *, gpus: int) -> Placement:
    """Where the workers go.

    - `devices: cpu`: `workers_per_device` workers on the CPU.
    - `devices: [0, 1]`: `workers_per_device` on each of these GPUs. TorchServe counts through `deviceIds` per
      model from the first, so that as many workers land on each (WorkLoadManager.addThreads).
    - `devices: auto`, two GPUs or more where the archive is made: as if their indices were listed.
    - `devices: auto`, none or one: `workers_per_device` workers and no word about devices. An archive that
      was made on a laptop so uses the GPU of a server that has one, and is the same file wherever it is
      made. On a server with several GPUs the workers spread over them, but they are as many as for one:
      list the devices, or scale, to have more.

    A server that lacks one of the listed GPUs ignores the list, and without any GPU runs on the CPU
    (the constructor of wlm/Model.java).

    Args:
        settings: `devices` and `workers_per_device` are read.
        gpus: GPUs visible where the archive is made.
    """
    devices = settings.devices
    each = settings.workers_per_device
    if devices == "cpu":
        return Placement(each, "cpu", None)
    if devices == "auto":
        if gpus < 2:
            return Placement(each, None, None)
        devices = tuple(range(gpus))
    indices = tuple(int(index) for index in devices)
    return Placement(each * len(indices), "gpu", indices)


def model_config(settings: Settings, *, gpus: int, has_requirements: bool) -> str:
    """The text of `model-config.yaml`.

    Args:
        settings: Resolved settings.
        gpus: GPUs visible where the archive is made; matters only for `devices: auto`.
        has_requirements: The archive carries a requirements.txt. They then go into a virtual environment of
            the model's own that sees the server's packages (`useVenv`), rather than over them; TorchServe
            installs them only with `install_py_dep_per_model=true` in config.properties.
    """
    place = placement(settings, gpus=gpus)
    lines = [
        "# Written by handlergen from the model's settings. What stands here wins over config.properties.",
        "",
        f"minWorkers: {place.workers}",
        f"maxWorkers: {place.workers}",
    ]
    if place.device_type is not None:
        lines.append(f"deviceType: {place.device_type}")
    if place.device_ids is not None:
        lines.append(f"deviceIds: [{', '.join(str(index) for index in place.device_ids)}]")
    lines += [
        "",
        f"batchSize: {settings.batch_size}",
        "# milliseconds; TorchServe reads 0 as 100",
        f"maxBatchDelay: {max(1, math.ceil(settings.max_batch_delay_ms))}",
        "",
        "# seconds; a request's wait for the device counts towards the first",
        f"responseTimeout: {math.ceil(settings.response_timeout_s)}",
        f"startupTimeout: {math.ceil(settings.startup_timeout_s)}",
        "",
        f"jobQueueSize: {settings.queue_size}",
    ]
    if has_requirements:
        lines += ["", "useVenv: true"]
    return "\n".join(lines) + "\n"


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
