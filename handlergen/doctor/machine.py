"""What the machine has, against what the server will want: shared memory, disk, cores and memory for the workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from handlergen.doctor.archives import readable_archives
from handlergen.doctor.finding import Finding, error, note, ok, warning
from handlergen.doctor.situation import Situation

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at
_CONTAINER_DEFAULT = 64 << 20  # bytes; what docker gives a container
_LITTLE_SHARED_MEMORY = 256 << 20
_LITTLE_DISK = 1 << 30
_BARE_WORKER = 250 << 20
"""Bytes; a worker that has imported torch and TorchServe and loaded nothing (238 MiB with torch 2.13 for the CPU)."""

_WORKERS_PER_CORE = 4


def shared_memory(_situation: Situation) -> Iterator[Finding]:
    """Its size: locks need little of it, tensors that torch passes between processes much."""
    if not SHARED_MEMORY.is_dir():
        return
    total = shutil.disk_usage(SHARED_MEMORY).total
    if total <= _CONTAINER_DEFAULT:
        yield warning(
            f"{SHARED_MEMORY} has {_bytes(total)}, what docker gives by default",
            "Tensors lie there that torch passes between a model's own processes, those of a DataLoader say: when it "
            "is full, they end with a bus error. (Not those that handlergen passes.)",
            "docker run --shm-size 1g …",
        )
    elif total < _LITTLE_SHARED_MEMORY:
        yield note(
            f"{SHARED_MEMORY} has {_bytes(total)}",
            "Large tensors that a model's own processes pass to each other may fill it.",
        )
    else:
        yield ok(f"{SHARED_MEMORY} has {_bytes(total)}")


def disk(situation: Situation) -> Iterator[Finding]:
    """Free space where archives are unpacked and logs are written."""
    unpacked = sum(archive.size for archive in readable_archives(situation))
    temp = situation.temp_dirs[0] if situation.temp_dirs else Path("/")
    free = shutil.disk_usage(temp).free
    if free < unpacked:
        yield error(
            f"{temp} has {_bytes(free)} free, the archives unpacked have {_bytes(unpacked)}",
            "TorchServe unpacks them there when it starts.",
            "export TMPDIR=DIRECTORY   # on a larger disk",
        )
    for path in dict.fromkeys((temp, situation.directory)):
        left = shutil.disk_usage(path).free
        if left < _LITTLE_DISK:
            yield warning(
                f"{path} has {_bytes(left)} free", "Logs grow while the server runs.", f"df -h {path}"
            )
    yield ok(f"{_bytes(free)} free in {temp}" + (f", for archives of {_bytes(unpacked)}" if unpacked else ""))


def workers(situation: Situation) -> Iterator[Finding]:
    """Cores and memory for all workers of all archives, and for their copies of the models."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    wanted = [(archive, _workers(archive.config, cores)) for archive in readable_archives(situation)]
    count = sum(number for _, number in wanted)
    if not count:
        yield ok(f"{cores} core{'' if cores == 1 else 's'}, {_bytes(memory)} of memory")
        return
    # A process that predicts for all of them is one more, and has the only copy.
    needed = sum(
        (number + 1) * _BARE_WORKER + archive.size
        if archive.shares_model
        else number * (_BARE_WORKER + archive.size)
        for archive, number in wanted
    )
    if needed > memory:
        yield warning(
            f"{count} workers want {_bytes(needed)} or more, the machine has {_bytes(memory)} of memory",
            "A worker that gets no memory is killed. Each has a copy of its model, unless `predictor: process`.",
            "workers_per_device: 1   # in handlergen.yaml, then archive again; or predictor: process",
        )
    if count > _WORKERS_PER_CORE * cores:
        yield note(
            f"{count} workers on {cores} core{'' if cores == 1 else 's'}",
            "More than a few per core wait for one another, unless their hooks wait for something else.",
            "workers_per_device: …   # in handlergen.yaml, then archive again",
        )
    else:
        yield ok(
            f"{cores} core{'' if cores == 1 else 's'}, {_bytes(memory)} of memory, "
            f"for {count} worker{'' if count == 1 else 's'}"
        )


def _workers(config: dict[str, Any], default: int) -> int:
    value = config.get("minWorkers", default)
    return value if isinstance(value, int) and value > 0 else default


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB" if number < 100 else f"{number:.0f} GiB"
