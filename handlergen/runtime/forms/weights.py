"""Weights files: executable programs (TorchScript, exported, ONNX), and weights that a class loads."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

EXECUTABLE = ("torchscript", "exported", "onnx")
"""Formats of weights that hold a program, and so can predict by themselves."""


def load_executable(path: Path, weights_format: str, device: torch.device) -> Callable[[Any], Any]:
    """Return a function from `predict`'s inputs to its outputs, made from weights alone.

    The format is `torchscript`, `exported` or `onnx`. Inputs are a tensor (or what `torch.as_tensor` takes: nested
    lists of numbers, arrays), a sequence of them in a tuple for several positional inputs, or a mapping for named ones.

    Raises:
        ValueError: Another format.
        ImportError: `onnx` without onnxruntime.
    """
    if weights_format == "torchscript":
        scripted = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        return lambda inputs: call_torch(scripted, inputs, device)
    if weights_format == "exported":
        try:
            program = torch.export.load(path).module().to(device)
        except (AssertionError, AttributeError, KeyError) as error:  # what the reader of another version stumbles over
            raise RuntimeError(
                f"{path.name} is not an exported program that torch {torch.__version__} reads ({error}); export it "
                "with that version, or write TorchScript or a state dict"
            ) from error
        return lambda inputs: call_torch(program, inputs, device)
    if weights_format == "onnx":
        return _onnx(path, device)
    raise ValueError(f"weights of the format {weights_format!r} cannot predict by themselves; write a load()")


def call_torch(program: Callable[..., Any], inputs: Any, device: torch.device) -> Any:
    """Call a network with tensors made of what `load_executable` says inputs may be."""
    try:
        return _called(program, inputs, device, whole=True)
    except (RuntimeError, AssertionError):  # AssertionError: a guard of an exported program
        if not _has_whole_numbers(inputs):
            raise
        # JSON does not distinguish 1 from 1.0, so one client sends both; the network may want either.
        try:
            return _called(program, inputs, device, whole=False)
        except (RuntimeError, AssertionError):
            pass
        raise


def _called(program: Callable[..., Any], inputs: Any, device: torch.device, *, whole: bool) -> Any:
    """Call a network; its whole numbers, where they came as a list or a number, stay whole or become floats."""

    def tensor(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        made = torch.as_tensor(value, device=device)
        # JSON's numbers are read as float64 or int64; models are float32.
        if made.is_floating_point() or (not whole and isinstance(value, (list, int))):
            return made.float()
        return made

    if isinstance(inputs, Mapping):
        return program(**{str(name): tensor(value) for name, value in inputs.items()})
    return program(*map(tensor, inputs if isinstance(inputs, tuple) else (inputs,)))


def _has_whole_numbers(inputs: Any) -> bool:
    """Return whether any input is a list (or number) that becomes a tensor of whole numbers."""
    several = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    return any(
        isinstance(value, (list, int)) and not torch.as_tensor(value).is_floating_point()
        for value in (several if isinstance(several, tuple) else (several,))
    )


def _onnx(path: Path, device: torch.device) -> Callable[[Any], Any]:
    onnxruntime = _required("onnxruntime", f"{path.name} needs onnxruntime")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    return session_call(onnxruntime.InferenceSession(str(path), providers=providers))


def session_call(session: Any) -> Callable[[Any], Any]:
    """Return what `load_executable` does, for an `onnxruntime.InferenceSession`."""
    import numpy as np

    expected = {item.name: item.type for item in session.get_inputs()}
    numbers: dict[str, Any] = {
        **{"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16},
        **{"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_},
    }

    def array(value: Any, name: str) -> Any:
        found = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        return found.astype(numbers[expected[name]], copy=False) if expected[name] in numbers else found

    def predict(inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            feed = {str(name): array(value, str(name)) for name, value in inputs.items() if name in expected}
        else:
            values: Sequence[Any] = inputs if isinstance(inputs, tuple) else (inputs,)
            if len(values) != len(expected):
                raise ValueError(f"the ONNX model has {len(expected)} inputs, and preprocess gave {len(values)}")
            feed = {name: array(value, name) for name, value in zip(expected, values)}
        outputs = session.run(None, feed)
        return outputs[0] if len(outputs) == 1 else outputs

    return predict


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
    """Construct a module and load its weights.

    Args:
        weights_format: `state_dict`, `safetensors`, or `pickle`: a whole pickled module.
        make: Calls the class's constructor.
        main: The user's module, which has the classes that a pickle names as `__main__`'s.

    Raises:
        WeightsError: Keys do not fit; a whole pickled module where a state dict was expected.
        ImportError: `.safetensors` without the package.
    """
    if weights_format == "pickle":
        loaded = _unpickled(path, main)
        if isinstance(loaded, nn.Module):
            return loaded
    elif weights_format == "safetensors":
        loaded = _required("safetensors.torch", f"{path.name} needs the package safetensors").load_file(path)
    else:
        loaded = _tensors(path)
    model = make()
    _load_state(model, loaded, path.name)
    return model


def _load_state(model: nn.Module, loaded: Any, file: str) -> None:
    """Load a state dict, whatever wraps it; a WeightsError names all keys that are missing or unexpected."""
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
    """Load a pickled object; its classes may be those of a script, pickled under the name `__main__`."""

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


def _required(module: str, need: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}, which is not installed here; add it to the requirements") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
