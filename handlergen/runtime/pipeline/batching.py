"""Batches: a queue of requests in the order they become ready; collating inputs, splitting outputs, nested values."""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .hooks import Item

if TYPE_CHECKING:
    from typing import TypeGuard  # from Python 3.10 on


class RequestSource(Protocol):
    """What a predictor takes requests from."""

    @property
    def more(self) -> bool:
        """Whether requests are still to come."""

    def next(self) -> Item | None:
        """Wait for the next request that is ready; None when there are no more."""

    def next_ready(self) -> Item | None:
        """Return the next request if one is ready now, without waiting; else None."""

    def done(self, item: Item) -> None:
        """Hand on a request that was predicted, or failed in it."""


class RequestQueue:
    """The requests of one batch, between the hooks that prepare them and the predictor. See `RequestSource`.

    Args:
        expected: How many requests the batch has.
        last_model: A request is put once for each of a flow's models, from 0 to this one.
        finished: Called with each request that the predictor has finished, on the predicting thread.
    """

    def __init__(self, expected: int, last_model: int, finished: Callable[[Item], None]) -> None:
        self._left = expected
        self._counting = threading.Lock()
        self._last_model = last_model
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._finished = finished

    @property
    def more(self) -> bool:
        return self._left > 0

    def put(self, item: Item) -> None:
        """Add a request that is ready, or that has failed; a failed one is passed on without a prediction."""
        self._queue.put(item)

    def done(self, item: Item) -> None:
        """Hand on a request; from any thread. A failed one does not come back for a later model: wakes `next`."""
        if item.failure is not None and item.model_index != self._last_model:
            self._count()
            self._queue.put(None)
        self._finished(item)

    def next(self) -> Item | None:
        while self._left:
            item = self._queue.get()
            if self._is_to_predict(item):
                return item
        return None

    def next_ready(self) -> Item | None:
        while self._left:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return None
            if self._is_to_predict(item):
                return item
        return None

    def _is_to_predict(self, item: Item | None) -> TypeGuard[Item]:
        """Count a request that does not come back; pass on one that has failed. None only wakes `next`."""
        if item is None:
            return False
        if item.failure is not None or item.model_index == self._last_model:
            self._count()
        if item.failure is not None:
            self._finished(item)
        return item.failure is None

    def _count(self) -> None:
        with self._counting:
            self._left -= 1


class BatchError(Exception):
    """The module does not support its batch mode: predicting the requests one by one would not help."""


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
    """Return the outputs of each sample: element i along the first dimension, inside nested structures.

    A tuple, mapping or dataclass is one structure with a batch in each of its parts (None stays None); a list is a
    list of samples.

    Args:
        count: How many samples went in.
        hook: The name of what returned the outputs, for the error message.

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
    if isinstance(outputs, tuple) and outputs and not isinstance(outputs[0], (int, float, str)):
        columns = [_part(value, count, f"{hook}[{place}]") for place, value in enumerate(outputs)]
        return [tuple_like(outputs, row) for row in zip(*columns)]
    check_length(outputs, count, hook=hook)
    if type(outputs) is torch.Tensor and not outputs.requires_grad:
        return list(outputs.unbind())  # one call; with a graph, its parts could not be changed in place
    return [outputs[index] for index in range(count)]


def _part(value: Any, count: int, hook: str) -> list[Any]:
    return [None] * count if value is None else split(value, count, hook=hook)


def _like(outputs: Mapping[Any, Any], row: dict[Any, Any]) -> Any:
    """Return a row of the same type where its constructor takes keywords (OrderedDict, a transformer's output)."""
    try:
        return type(outputs)(**row)
    except TypeError:
        return row


def check_length(outputs: Any, count: int, *, hook: str) -> None:
    """Check that `outputs` has one element for each sample.

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
    """Return a short description for messages: `tensor(3, 224)`, `{ids: tensor(7)}`, `list of 3`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return f"{kind}({', '.join(str(size) for size in value.shape)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


_CONSTANT = frozenset((str, int, float, bool, type(None), bytes, complex))
_LONG = 64
"""In a list with more elements, all are taken for constants if the first is one."""


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `change` to every tensor in nested dicts, lists, tuples, named tuples and dataclasses.

    Other objects are passed on as they are; a tokenizer's batch is a mapping. A value without tensors is returned
    itself, not a copy.
    """

    def changed(part: Any) -> Any:
        return change(part) if isinstance(part, torch.Tensor) else part

    return _mapped(value, changed, copies=False)


def own_copy(value: Any, *, tensors: bool = True) -> Any:
    """Return a copy of `value`, whose memory a hook may write to again: a buffer that each predict fills, say.

    Tensors on the CPU, numpy arrays and byte arrays are copied, with the dicts, lists, tuples and dataclasses that
    hold them. Other objects are passed on as they are.

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

    return _mapped(value, copied, copies=True)


def _mapped(value: Any, change: Callable[[Any], Any], *, copies: bool) -> Any:
    """Apply `change` to each leaf; containers whose parts stay the same are returned themselves, or as `copies`."""
    kind = type(value)
    result = value
    if kind in _CONSTANT:
        pass
    elif isinstance(value, Mapping):
        items = {key: _mapped(part, change, copies=copies) for key, part in value.items()}
        if (copies and kind is dict) or any(items[key] is not value[key] for key in items):
            result = items if kind is dict else mapping_like(value, items)
    elif copies and kind is list and len(value) > _LONG and type(value[0]) in _CONSTANT:
        result = value.copy()
    elif isinstance(value, (list, tuple)):
        parts = [part if type(part) in _CONSTANT else _mapped(part, change, copies=copies) for part in value]
        if (copies and kind is list) or any(new is not old for new, old in zip(parts, value)):
            result = parts if isinstance(value, list) else tuple_like(value, parts)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        moved = {name: _mapped(part, change, copies=copies) for name, part in fields.items()}
        if any(moved[name] is not fields[name] for name in moved):
            result = dataclasses.replace(value, **moved)
    else:
        result = change(value)
    return result


def tuple_like(value: tuple[Any, ...], parts: Iterable[Any]) -> tuple[Any, ...]:
    """Return a tuple of the same kind: named, of `torch.return_types` (`tensor.max(dim=1)` returns one), or plain."""
    kind: Any = type(value)
    if hasattr(kind, "_fields"):
        return kind(*parts)  # type: ignore[no-any-return]
    return kind(parts) if hasattr(kind, "n_sequence_fields") else tuple(parts)


def mapping_like(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same type where its constructor takes a dict (OrderedDict, a tokenizer's batch)."""
    if type(value) is defaultdict:
        return defaultdict(value.default_factory, items)
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError:
        return items
