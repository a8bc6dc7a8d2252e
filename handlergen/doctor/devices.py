"""GPUs: whether torch sees what the machine has, and whether TorchServe will understand which to use."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from handlergen.doctor.finding import Finding, error, note, ok, warning
from handlergen.doctor.situation import Situation
from handlergen.properties import CPU_METRICS

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_INTEGER = re.compile(r"[+-]?[0-9]+")  # as Integer.parseInt takes it: no blanks around


def visible_devices(situation: Situation) -> Iterator[Finding]:
    """The devices that torch sees, against those that the driver has."""
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
            f"{_counted(cards)} on this machine, but torch is built without CUDA",
            "Models run on the CPU.",
            "pip install --force-reinstall torch   # from an index of CUDA builds, see pytorch.org",
        )
    elif hidden is not None:
        yield note(
            f"{_counted(cards)} on this machine, hidden by {_VARIABLE}={hidden!r}", "Models run on the CPU."
        )
    else:
        yield warning(
            f"{_counted(cards)} on this machine, but torch sees none",
            "The driver is too old for this torch, or the device files cannot be opened. Models run on the CPU.",
            "nvidia-smi",
        )


def cuda_visible_devices(situation: Situation) -> Iterator[Finding]:
    """TorchServe reads the variable with Integer.parseInt (ConfigManager.getAvailableGpu)."""
    value = situation.environ.get(_VARIABLE)
    if value is None:
        return
    if not value:
        yield note(
            f"{_VARIABLE} is empty",
            "torch then sees no GPU, but TorchServe asks nvidia-smi and counts all of them: it says gpu, and the "
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
        + " no index",
        "TorchServe reads whole numbers separated by commas, without blanks; UUIDs and MIG ids abort its start.",
        f"export {_VARIABLE}={indices}" if usable else "nvidia-smi -L   # shows the index of each UUID",
    )


def metrics_packages(situation: Situation) -> Iterator[Finding]:
    """The stock collector of system metrics imports packages that pip does not install."""
    command = situation.settings.system_metrics_cmd
    off = dict(situation.settings.other).get("disable_system_metrics", "").lower() == "true"
    missing = [name for name in ("nvgpu", "pynvml") if importlib.util.find_spec(name) is None]
    if nvidia_cards() and missing and "--gpu 0" not in command and not off:
        yield note(
            f"{' and '.join(missing)} not installed, and system_metrics_cmd asks for the GPU's metrics",
            "TorchServe logs a traceback a minute.",
            f"system_metrics_cmd={CPU_METRICS}   # or: pip install {' '.join(missing)}",
        )


def nvidia_cards() -> int:
    """NVIDIA cards whose device files are there; 1 when only nvidia-smi is."""
    cards = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return cards or int(shutil.which("nvidia-smi") is not None)


def _counted(cards: int) -> str:
    return f"{cards} NVIDIA GPU{'' if cards == 1 else 's'}"
