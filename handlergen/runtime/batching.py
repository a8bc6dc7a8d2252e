"""One batch from several requests' inputs, and their outputs from the batch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .nested import tuple_like


class BatchError(Exception):
    """The module and its batch mode do not fit together; no retry of single requests can help."""


def collate(samples: Sequence[Any]) -> Any:
    """Stack samples along a new first dimension, nested structures included (`torch.utils.data.default_collate`).

    Raises:
        BatchError: The samples have different shapes or structures; says which.
    """
    from torch.utils.data import default_collate

    try:
        return default_collate(list(samples))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        shapes = [shape_of(sample) for sample in samples]
        different = [f"sample {index}: {shape}" for index, shape in enumerate(shapes) if shape != shapes[0]]
        if not different:
            raise BatchError(f"what preprocess returns cannot be collated: {error}") from error
        raise BatchError(
            f"what preprocess returned cannot be stacked into one batch: sample 0 is {shapes[0]}, but "
            + ", ".join(different)
        ) from error


def split(outputs: Any, count: int, *, hook: str = "predict") -> list[Any]:
    """The outputs of each sample: element i along the first dimension, inside nested structures.

    A tuple, mapping or dataclass is one structure with a batch in each of its parts (None stays None); a list is a
    list of samples.

    Args:
        outputs: What `predict` returned for the collated batch.
        count: How many samples went in.
        hook: For the error message.

    Raises:
        BatchError: Something has no first dimension, or one of another length.
    """
    if isinstance(outputs, Mapping):
        parts = {key: _part(value, count, f"{hook}[{key!r}]") for key, value in outputs.items()}
        rows = [{key: part[index] for key, part in parts.items()} for index in range(count)]
        # A model's own kind of mapping keeps its attributes, as `output.logits`.
        return rows if type(outputs) is dict else [_like(outputs, row) for row in rows]
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        names = [field.name for field in dataclasses.fields(outputs) if field.init]
        parts = {name: _part(getattr(outputs, name), count, f"{hook}.{name}") for name in names}
        return [
            dataclasses.replace(outputs, **{name: part[index] for name, part in parts.items()})
            for index in range(count)
        ]
    if isinstance(outputs, tuple) and outputs and not isinstance(outputs[0], int | float | str):
        columns = [_part(value, count, f"{hook}[{place}]") for place, value in enumerate(outputs)]
        return [tuple_like(outputs, row) for row in zip(*columns, strict=True)]
    check_length(outputs, count, hook=hook)
    if type(outputs) is torch.Tensor and not outputs.requires_grad:
        return list(outputs.unbind())  # one call; with a graph, its parts could not be changed in place
    return [outputs[index] for index in range(count)]


def _part(value: Any, count: int, hook: str) -> list[Any]:
    return [None] * count if value is None else split(value, count, hook=hook)


def _like(outputs: Mapping[Any, Any], row: dict[Any, Any]) -> Any:
    """A row of the same type where its constructor takes keywords (an OrderedDict, a transformer's output)."""
    try:
        return type(outputs)(**row)
    except TypeError:
        return row


def check_length(outputs: Any, count: int, *, hook: str) -> None:
    """See that `outputs` has one element a sample.

    Raises:
        BatchError: Names the hook and both lengths.
    """
    try:
        length = outputs.shape[0] if isinstance(outputs, torch.Tensor) else len(outputs)
    except (TypeError, IndexError):
        raise BatchError(
            f"{hook} must return one output for each of the {count} inputs of the batch, "
            f"but returned {shape_of(outputs)}"
        ) from None
    if length != count:
        raise BatchError(f"{hook} returned {length} outputs for a batch of {count} inputs")


def shape_of(value: Any) -> str:
    """A short description for messages: `tensor(3, 224)`, `{ids: tensor(7)}`, `list of 3`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{kind}({', '.join(str(size) for size in value.shape)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
