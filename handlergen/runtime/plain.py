"""What the things that hooks return mean in JSON.

numpy, torch and pydantic are looked up among the modules that the process has already imported: who returns
such a thing has imported its library.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
import uuid
from array import array as c_array
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import PurePath
from typing import Any


def converter_of(value: Any) -> Callable[[Any], Any] | None:
    """What turns this object into something nearer to JSON: in one step, not in its depth.

    Returns:
        A function of the object; None if its type has no JSON meaning (bytes, images, generators, complex
        numbers and whatever is not known).
    """
    kind: Any = type(value)
    return _converter(kind)


@lru_cache(maxsize=1024)
def _converter(kind: type) -> Callable[[Any], Any] | None:  # noqa: PLR0911
    for known, convert in _KNOWN:
        if issubclass(kind, known):
            return convert
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and issubclass(kind, torch.Tensor):
        return _tensor_list
    if numpy is not None and issubclass(kind, numpy.ndarray | numpy.generic):
        return _array_list
    if hasattr(kind, "model_dump"):
        return _pydantic
    if hasattr(kind, "parse_obj") and hasattr(kind, "__fields__"):
        return _pydantic_1
    if issubclass(kind, Mapping):  # before dataclasses: a Hugging Face ModelOutput is both
        return dict
    if dataclasses.is_dataclass(kind):
        return _fields
    if issubclass(kind, AbstractSet):
        return _ordered
    if issubclass(kind, Sequence) and not issubclass(kind, bytes | bytearray | memoryview):
        return list
    return None


def numpy_array(value: Any) -> Any:
    """An array or tensor as a numpy array on the host; None for anything else, or without numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ndarray):
        return None if hasattr(value, "mask") else value  # what is masked shows only in a masked array's list
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    try:
        return host(value).numpy()
    except (RuntimeError, TypeError):  # a torch built without numpy, a type that numpy lacks
        return None


def element_count(array: Any) -> int:
    """How many numbers an array or tensor has."""
    count: int = array.numel() if hasattr(array, "numel") else array.size
    return count


def finite_list(array: Any) -> Any:
    """A floating-point numpy array as nested lists (a scalar: as a number), NaN and infinities as None."""
    numpy = sys.modules["numpy"]
    doubles = array.astype("=f8", copy=False)
    finite = numpy.isfinite(doubles)
    if finite.all():
        return doubles.tolist()
    return numpy.where(finite, doubles, None).tolist()


def host(tensor: Any) -> Any:
    """A tensor as a dense one on the CPU, of a type that numpy has, apart from any graph."""
    import torch

    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu()
    if plain.is_floating_point() and plain.dtype not in (torch.float64, torch.float32, torch.float16):
        plain = plain.float()  # bfloat16 and the 8-bit types; exact
    return plain.resolve_conj().resolve_neg()


def _tensor_list(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    if tensor.is_nested:
        return list(tensor.unbind())
    if type(tensor) is torch.Tensor and tensor.dtype in _listed(torch) and tensor.layout is torch.strided:
        return (
            tensor.tolist()
        )  # from any device, graph or lazy negation; `host` would say the same in nine calls
    plain = host(tensor)
    if plain.is_complex():
        raise TypeError("complex numbers have no JSON meaning")
    return plain.tolist()


@lru_cache(maxsize=1)
def _listed(torch: Any) -> frozenset[Any]:
    """The types whose `tolist` is that of `host`."""
    return frozenset((torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool))


def _array_list(array: Any) -> Any:
    """Arrays and scalars of numpy."""
    if array.dtype.kind in "mM":
        numpy = sys.modules["numpy"]
        if array.dtype.kind == "m":
            return (array / numpy.timedelta64(1, "s")).tolist()
        text = numpy.datetime_as_string(array)
        return numpy.where(numpy.isnat(array), None, text).tolist()
    if array.dtype.kind == "c":
        raise TypeError("complex numbers have no JSON meaning")
    if array.dtype.kind == "f":
        return array.astype("=f8").tolist()  # longdouble's own list would hold longdoubles
    return array.tolist()


def _pydantic(model: Any) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception as error:
        if type(error).__name__ != "PydanticSerializationError":
            raise
        return model.model_dump()  # fields of foreign types (arrays), which are converted here


def _pydantic_1(model: Any) -> Any:
    return model.dict()


def _fields(instance: Any) -> dict[str, Any]:
    return {each.name: getattr(instance, each.name) for each in dataclasses.fields(instance)}


def _ordered(values: Any) -> list[Any]:
    """A set as a list: sorted where its elements can be, so that equal sets give equal answers."""
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _decimal(number: decimal.Decimal) -> int | float:
    """A number in JSON: whole ones exact, others as the nearest double."""
    if number.is_finite() and number == number.to_integral_value() and number.adjusted() < 400:
        return int(number)
    return float(number)


def _iso(value: Any) -> str:
    text: str = value.isoformat()
    return text


_KNOWN: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda member: member.value),
    (datetime.timedelta, datetime.timedelta.total_seconds),
    ((datetime.date, datetime.time), _iso),
    ((uuid.UUID, PurePath), str),
    (decimal.Decimal, _decimal),
    # Subclasses of plain types, which orjson does not take for them.
    (float, float),
    (tuple, list),
    (c_array, c_array.tolist),
)

ARRAY_CONVERTERS = (_array_list, _tensor_list)
"""What `converter_of` returns for arrays (and numpy's scalars) and tensors."""
