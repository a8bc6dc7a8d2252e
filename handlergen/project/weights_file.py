"""The format of a weights file, detected from its name and its table of contents. Nothing is loaded."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

_BY_SUFFIX = {
    ".pt2": "exported",
    ".onnx": "onnx",
    ".safetensors": "safetensors",
}
_TORCH_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".ts", ".jit", ".torchscript")


def weights_format(path: Path) -> str | None:
    """Return a file's format, as in the setting `weights_format`.

    `torch.save` and `torch.jit.save` share suffixes. Both write zip archives; only TorchScript's has `code/` and
    `constants.pkl` (torch/csrc/jit/serialization/export_module.cpp).

    Args:
        path: The file; it need not exist.

    Returns:
        None if the format depends on the content and there is no file.
    """
    name = path.name.lower()
    for suffix, found in _BY_SUFFIX.items():
        if name.endswith(suffix):
            return found
    if not name.endswith(_TORCH_SUFFIXES):
        return "other"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "state_dict"  # torch.save before 1.6, or with the old serialization
    except OSError:
        return None
    scripted = any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)
    return "torchscript" if scripted else "state_dict"


def pickled_class(path: Path) -> str | None:
    """Return the class of the object in a file of `torch.save` that has a whole object instead of a state dict.

    The pickle's instructions are read, not executed. Only the zip format (torch 1.6 and later) is read.

    Args:
        path: The file; it need not exist.

    Returns:
        The first class that `torch.load(weights_only=True)` would refuse, as `module.Name`; None if it would refuse
        none (a state dict, a checkpoint of tensors and plain values), or if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            text = archive.read(name)
        return next((f"{module}.{name}" for module, name in _globals(text) if not _is_plain(module, name)), None)
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError):
        return None


def _globals(text: bytes) -> list[tuple[str, str]]:
    """Return every class and function that a pickle refers to."""
    found = []
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(text):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.append((module, name))
        elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
            found.append((strings[-2], strings[-1]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


def _is_plain(module: str, name: str) -> bool:
    if module == "torch" or module in ("torch._utils", "collections", "torch.serialization", "_codecs"):
        return True
    return module.startswith(("torch.storage", "torch._tensor", "torch.nn.parameter")) or (
        module.startswith("numpy") and name in ("dtype", "scalar", "_reconstruct", "ndarray")
    )
