"""What a weights file holds, told from its name and its table of contents; nothing of it is loaded."""

from __future__ import annotations

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
