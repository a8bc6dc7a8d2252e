"""Weights of a class: read without running code that the file brings, and matched with the class's parameters."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

#: What wrappers put before every key: DataParallel and DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")

#: Where checkpoints keep the state dict beside epoch, optimizer and so on.
_INSIDE = ("state_dict", "model_state_dict")

_NAMES_SHOWN = 10


class WeightsError(Exception):
    """The weights do not fit, or cannot be read safely; says what to do."""


def load_weights(
    path: Path, weights_format: str | None, *, make: Callable[[], nn.Module], main: ModuleType
) -> nn.Module:
    """A module with its weights.

    Args:
        path: The weights file.
        weights_format: `state_dict`, `safetensors`, or `pickle`: a whole pickled module.
        make: Calls the class's constructor.
        main: The user's module: where a pickle's `__main__` classes are looked for.

    Raises:
        WeightsError: Keys do not fit; a whole pickled module where a state dict was expected.
        ImportError: `.safetensors` without the package.
    """
    if weights_format == "pickle":
        loaded = _unpickled(path, main)
        if isinstance(loaded, nn.Module):
            return loaded
    elif weights_format == "safetensors":
        loaded = _safetensors(path)
    else:
        loaded = _tensors(path)
    model = make()
    load_state(model, loaded, path.name)
    return model


def load_state(model: nn.Module, loaded: Any, file: str) -> None:
    """Put a state dict into a module.

    Args:
        model: Gets the values.
        loaded: The state dict, or a checkpoint that holds it under `state_dict` or `model_state_dict`. Keys may
            have the prefixes of DataParallel and torch.compile.
        file: Name of the weights file, for messages.

    Raises:
        WeightsError: It is none, keys are missing or unexpected, or shapes differ; names them all.
    """
    state = _state(loaded, set(model.state_dict()), file)
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ; torch names each
        raise WeightsError(f"{file} does not fit {type(model).__name__}: {error}") from None
    findings = []
    if found.missing_keys:
        findings.append(f"it lacks {_listed(sorted(found.missing_keys))}")
    if found.unexpected_keys:
        findings.append(f"{type(model).__name__} has no {_listed(sorted(found.unexpected_keys))}")
    if findings:
        raise WeightsError(f"{file} does not fit {type(model).__name__}: {'; '.join(findings)}")


def _state(loaded: Any, wanted: set[str], file: str) -> dict[str, Any]:
    for name in _INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping) and name not in wanted:
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{file} holds a {type(loaded).__name__}, no state dict")
    state = {str(key): value for key, value in loaded.items()}
    for prefix in _WRAPPERS * 2:  # they may stand in either order
        own = any(key.startswith(prefix) for key in wanted)
        if state and not own and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _tensors(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} is no state dict: loading it would run code of the file. Export its tensors with "
            f'torch.save(model.state_dict(), "{path.name}"); or, if you made the file yourself, set '
            f"weights_format: pickle. torch says: {str(error).splitlines()[0]}"
        ) from None


def _unpickled(path: Path, main: ModuleType) -> Any:
    """A whole pickled object; a script that is its author's `__main__` pickles its classes under that name."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "__main__" and hasattr(main, name):
                return getattr(main, name)
            return super().find_class(module, name)

    class PickleModule:
        """What `torch.load` uses of the module `pickle`."""

        __name__ = "pickle"
        load = staticmethod(pickle.load)

    setattr(PickleModule, "Unpickler", Unpickler)  # noqa: B010 - a class body cannot name a local class so
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=PickleModule)


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs the package safetensors, which is not installed here; add it to the requirements"
        ) from error
    return load_file(path)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
