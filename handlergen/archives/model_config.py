"""`model-config.yaml`, the file in an archive that tells TorchServe how to run the model.

Facts (TorchServe 0.12): if an archive has this file, its value or the built-in default overrides everything
else for `responseTimeout` and `startupTimeout` (ModelManager.createModel), `minWorkers` without `maxWorkers` is
invalid, `maxBatchDelay: 0` means 100, unknown keys are silently ignored (ModelConfig.build). So every key is written.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from handlergen.project.settings import Settings


@dataclass(frozen=True)
class WorkerLayout:
    """The model's workers: how many, and on which devices.

    Attributes:
        workers: Number of workers on all devices together.
        device_type: `cpu`, `gpu`, or None: the GPUs if the server has any, else the CPU.
        device_ids: Logical indices of the GPUs that the workers are spread over; None leaves it to TorchServe.
    """

    workers: int
    device_type: str | None
    device_ids: tuple[int, ...] | None


def worker_layout(settings: Settings, *, gpus: int) -> WorkerLayout:
    """Return the number of workers and their devices.

    - `devices: cpu`: `workers_per_device` workers on the CPU.
    - `devices: [0, 1]`: `workers_per_device` on each of these GPUs. TorchServe assigns `deviceIds` round-robin for each
      model, so that every GPU gets the same number (WorkLoadManager.addThreads).
    - `devices: auto` with two or more GPUs on this machine: as if their indices were listed.
    - `devices: auto` with one or none: `workers_per_device` workers, and the devices are not written down. So an
      archive that was made on a laptop uses the GPU of a server, and is the same file wherever it is made. On a server
      with several GPUs the workers are spread over them, but there are no more than for one: to have more, list the
      devices or scale the model.

    A server that lacks one of the listed GPUs ignores the list; one without any GPU uses the CPU (constructor of
    wlm/Model.java). `gpus` are those visible where the archive is made.
    """
    devices = settings.devices
    each = settings.workers_per_device
    if devices == "cpu":
        return WorkerLayout(each, "cpu", None)
    if devices == "auto":
        if gpus < 2:
            return WorkerLayout(each, None, None)
        devices = tuple(range(gpus))
    indices = tuple(int(index) for index in devices)
    return WorkerLayout(each * len(indices), "gpu", indices)


def model_config(settings: Settings, *, gpus: int, has_requirements: bool) -> str:
    """Return the text of `model-config.yaml`; see `worker_layout` for `gpus`.

    If the archive has a requirements.txt, `useVenv` installs it into a virtual environment of this model on top of the
    server's packages, instead of over them. TorchServe does so only with `install_py_dep_per_model=true` in
    config.properties.
    """
    layout = worker_layout(settings, gpus=gpus)
    lines = [
        "# Written by handlergen from the model's settings. These values override config.properties.",
        "",
        f"minWorkers: {layout.workers}",
        f"maxWorkers: {layout.workers}",
    ]
    if layout.device_type is not None:
        lines.append(f"deviceType: {layout.device_type}")
    if layout.device_ids is not None:
        lines.append(f"deviceIds: [{', '.join(str(index) for index in layout.device_ids)}]")
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
    # Like the CUDA driver, end the list at the first entry that is not a device.
    entries = (entry.strip() for entry in visible.split(","))
    count = sum(1 for _ in takewhile(lambda entry: entry and not entry.startswith("-"), entries))
    return min(count, installed)
