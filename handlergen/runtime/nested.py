"""Nested values: what is done to each of their parts, and copies that share no memory with the original."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_CONSTANT = frozenset((str, int, float, bool, type(None), bytes, complex))
_LONG = 64
"""Elements of a list beyond which the first one tells what the others are: none is looked at if it is a constant."""


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `change` to every tensor in nested dicts, lists, tuples, named tuples and dataclasses.

    Objects with a `.to(device)` of their own that are no tensors (a tokenizer's batch) are mappings in practice;
    other objects are passed on as they are. A value without tensors is returned itself, not a copy.
    """

    def changed(part: Any) -> Any:
        return change(part) if isinstance(part, torch.Tensor) else part

    return _mapped(value, changed, anew=False)


def own_copy(value: Any, *, tensors: bool = True) -> Any:
    """`value` with memory of its own, for when a hook may write to it again: a buffer that each predict fills, say.

    Tensors on the CPU, numpy arrays and byte arrays are copied, and the dicts, lists, tuples and dataclasses that hold
    them. Other objects are passed on as they are.

    Args:
        tensors: Copy tensors too; not worth it for those that have just come from a GPU.
    """

    def copied(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.clone() if tensors and part.device.type == "cpu" else part
        if type(part) is bytearray:
            return bytearray(part)
        numpy = sys.modules.get("numpy")
        return part.copy(order="K") if numpy is not None and isinstance(part, numpy.ndarray) else part

    return _mapped(value, copied, anew=True)


def _mapped(value: Any, change: Callable[[Any], Any], *, anew: bool) -> Any:
    """`change` for each part that holds no others; a container whose parts are the same stays, unless made `anew`."""
    kind = type(value)
    result = value
    if kind in _CONSTANT:
        pass
    elif isinstance(value, Mapping):
        items = {key: _mapped(part, change, anew=anew) for key, part in value.items()}
        if (anew and kind is dict) or any(items[key] is not value[key] for key in items):
            result = items if kind is dict else _like(value, items)
    elif anew and kind is list and len(value) > _LONG and type(value[0]) in _CONSTANT:
        result = value.copy()
    elif isinstance(value, list | tuple):
        parts = [part if type(part) in _CONSTANT else _mapped(part, change, anew=anew) for part in value]
        if (anew and kind is list) or any(new is not old for new, old in zip(parts, value, strict=True)):
            result = parts if isinstance(value, list) else tuple_like(value, parts)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        moved = {name: _mapped(part, change, anew=anew) for name, part in fields.items()}
        if any(moved[name] is not fields[name] for name in moved):
            result = dataclasses.replace(value, **moved)
    else:
        result = change(value)
    return result


def tuple_like(value: tuple[Any, ...], parts: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple of the same kind: named, of `torch.return_types` (what `tensor.max(dim=1)` returns), or plain."""
    kind: Any = type(value)
    if hasattr(kind, "_fields"):
        return kind(*parts)  # type: ignore[no-any-return]
    return kind(parts) if hasattr(kind, "n_sequence_fields") else tuple(parts)


def _like(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same type where its constructor takes a dict (an OrderedDict, a tokenizer's batch)."""
    if type(value) is defaultdict:
        return defaultdict(value.default_factory, items)
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError:
        return items
