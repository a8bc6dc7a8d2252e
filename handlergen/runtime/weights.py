"""Weights that can predict by themselves: TorchScript, exported programs, ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def load_executable(path: Path, weights_format: str, device: torch.device) -> Callable[[Any], Any]:
    """A function from `predict`'s inputs to its outputs, made from weights alone.

    Inputs are a tensor (or what `torch.as_tensor` takes: nested lists of numbers, arrays), a sequence of them in
    a tuple for several positional inputs, or a mapping for named ones.

    Args:
        path: The weights file.
        weights_format: `torchscript`, `exported` or `onnx`.
        device: Where to put them.

    Raises:
        ValueError: Another format.
        ImportError: `onnx` without onnxruntime.
    """
    if weights_format == "torchscript":
        scripted = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        return lambda inputs: call_torch(scripted, inputs, device)
    if weights_format == "exported":
        program = torch.export.load(path).module().to(device)
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
        # JSON does not tell 1 from 1.0, so that the same client sends both; the network may want either.
        try:
            return _called(program, inputs, device, whole=False)
        except (RuntimeError, AssertionError):
            pass
        raise


def _called(program: Callable[..., Any], inputs: Any, device: torch.device, *, whole: bool) -> Any:
    if isinstance(inputs, Mapping):
        return program(**{str(name): _tensor(value, device, whole) for name, value in inputs.items()})
    if isinstance(inputs, tuple):
        return program(*[_tensor(value, device, whole) for value in inputs])
    return program(_tensor(inputs, device, whole))


def _tensor(value: Any, device: torch.device, whole: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    tensor = torch.as_tensor(value, device=device)
    # JSON's numbers are read as float64 or int64; models are float32.
    return tensor.float() if tensor.is_floating_point() or _is_listed(value, whole) else tensor


def _is_listed(value: Any, whole: bool) -> bool:
    return not whole and isinstance(value, list | int)


def _has_whole_numbers(inputs: Any) -> bool:
    """Is any input a list (or number) that became a tensor of whole numbers?"""
    values = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else [inputs]
    )
    return any(
        isinstance(value, list | int) and not torch.as_tensor(value).is_floating_point() for value in values
    )


def _onnx(path: Path, device: torch.device) -> Callable[[Any], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs onnxruntime, which is not installed here; add it to the requirements"
        ) from error
    import numpy as np

    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    expected = {item.name: item.type for item in session.get_inputs()}
    numbers: dict[str, Any] = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(float16)": np.float16,
    }
    numbers |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}

    def array(value: Any, name: str) -> Any:
        found = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        return found.astype(numbers[expected[name]], copy=False) if expected[name] in numbers else found

    def predict(inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            feed = {str(name): array(value, str(name)) for name, value in inputs.items() if name in expected}
        else:
            values: Sequence[Any] = inputs if isinstance(inputs, tuple) else (inputs,)
            feed = {name: array(value, name) for name, value in zip(expected, values, strict=True)}
        outputs = session.run(None, feed)
        return outputs[0] if len(outputs) == 1 else outputs

    return predict
