"""What a weights file holds, told from its name and its table of contents; nothing of it is loaded."""

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
    """One of the values of the setting `weights_format`.

    `torch.save` and `torch.jit.save` share suffixes. Both write zip archives; only TorchScript's has `code/` and
    `constants.pkl` (torch/csrc/jit/serialization/export_module.cpp).

    Args:
        path: The file; it need not exist.

    Returns:
        None when only the content could tell and there is no file.
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
        return "state_dict"  # torch.save before 1.6, or with the old serialization asked for
    except OSError:
        return None
    scripted = any(name.endswith("/constants.pkl") for name in names) and any(
        "/code/" in name for name in names
    )
    return "torchscript" if scripted else "state_dict"


def pickled_class(path: Path) -> str | None:
    """The class of a whole object that a file of `torch.save` holds, where a state dict should be.

    The pickle is read as a list of instructions; none is carried out. Only the zip format (torch 1.6 and later) is
    looked into.

    Args:
        path: The file; it need not exist.

    Returns:
        The first class that `torch.load(weights_only=True)` would not make, as `module.Name`; None when it would make
        all (a state dict, a checkpoint of tensors and plain values), or when the file cannot tell.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            text = archive.read(name)
        return next(
            (f"{module}.{name}" for module, name in _globals(text) if not _is_plain(module, name)), None
        )
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError):
        return None


def _globals(text: bytes) -> list[tuple[str, str]]:
    """Every class and function that a pickle names."""
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
