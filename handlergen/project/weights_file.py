"""The format of a weights file, detected from its name and its table of contents. Nothing is loaded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BY_SUFFIX = {
    ".pt2": "exported",
    ".onnx": "onnx",
    ".safetensors": "safetensors",
}
_TORCH_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".ts", ".jit", ".torchscript")
_PICKLE_SUFFIXES = (".joblib", ".pkl", ".pickle", ".sav", ".gz", ".z")

_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00": lzma.open,
}
"""What compressed files begin with (joblib/numpy_pickle_utils.py)."""

_MOST_READ = 1 << 30
"""Bytes of a pickle that are read."""

_MOST_FOLLOWED = 1 << 24
"""Bytes of a pickle whose instructions are followed; behind them, classes are searched for."""

_PAIR = re.compile(rb"\x8c(.)([\w.]+)\x94\x8c(.)([\w.]+)\x94\x93", re.DOTALL)
"""Module and name of a class, as protocol 4 writes them; to find them behind the values of an array."""


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
    names = pickled_names(path) if zipfile.is_zipfile(path) else []
    return next((f"{module}.{name}" for module, name in names if not _is_plain(module, name)), None)


def pickled_names(path: Path) -> list[tuple[str, str]]:
    """Return module and name of every class and function that a file of `torch.save`, joblib or pickle refers to.

    The instructions are read, not executed. joblib writes the values of arrays between them, and may compress the file.

    Args:
        path: The file; it need not exist.

    Returns:
        Nothing for a file of another kind, or one that cannot be read.
    """
    if not path.name.lower().endswith((*_TORCH_SUFFIXES, *_PICKLE_SUFFIXES)) or not path.is_file():
        return []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
                return _globals(archive.read(name)) if name else []
        with path.open("rb") as file:
            start = file.read(6)
        opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
        if opener is None and start.startswith(b"x"):  # joblib's default compression
            return _globals(zlib.decompressobj().decompress(path.read_bytes(), _MOST_READ))
        with (opener or open)(path, "rb") as file:
            return _globals(file.read(_MOST_READ))
    except (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError):
        return []


def _globals(text: bytes) -> list[tuple[str, str]]:
    """Return every class and function that the pickles in a text refer to."""
    found = []
    stream = io.BytesIO(text[:_MOST_FOLLOWED])
    while stream.tell() < len(stream.getbuffer()):  # torch before 1.6 wrote several, one after the other
        start = stream.tell()
        strings: list[str] = []
        memo: dict[int, str] = {}
        is_text = False
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    found.append((module, name))
                elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    found.append((strings[-2], strings[-1]))
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if is_text else ""
                elif opcode.name.endswith("PUT"):
                    memo[int(str(argument))] = strings[-1] if is_text else ""
                elif opcode.name.endswith("GET") and memo.get(int(str(argument))):
                    strings.append(memo[int(str(argument))])
                elif isinstance(argument, str):
                    strings.append(argument)
                is_text = isinstance(argument, str)
        except (ValueError, UnicodeDecodeError, IndexError):
            pairs = _PAIR.findall(text, start) if text.startswith(b"\x80") else ()
            return [*found, *((module.decode(), name.decode()) for _, module, _, name in pairs)]
    return found


def _is_plain(module: str, name: str) -> bool:
    if module == "torch" or module in ("torch._utils", "collections", "torch.serialization", "_codecs"):
        return True
    return module.startswith(("torch.storage", "torch._tensor", "torch.nn.parameter")) or (
        module.startswith("numpy") and name in ("dtype", "scalar", "_reconstruct", "ndarray")
    )
