"""Tensors of KServe's v2 protocol (Open Inference Protocol): name, shape, datatype and data, as JSON.

numpy holds them; without it a v2 request is answered 501.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from .failures import EncodeError
from .plain import numpy_array
from .requests import BadRequest

# What a datatype is in numpy, and the kinds of numpy's own reading that mean it without loss.
_TYPES: dict[str, tuple[str, str]] = {
    "BOOL": ("?", "b"),
    **{
        f"{sign}INT{bits}": (f"{sign.lower()}int{bits}", "iu")
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    "FP16": ("float16", "iuf"),
    "FP32": ("float32", "iuf"),
    "FP64": ("float64", "iuf"),
}
_NAMES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"} | {
    numpy_name: name for name, (numpy_name, _) in _TYPES.items() if "int" in numpy_name
}


class _NoNumpy(Exception):
    status_code = 501
    detail = "This worker has no numpy, which KServe's v2 tensors need"


def read_tensor(given: Any, place: str) -> tuple[str, Any]:
    """Name and value of an entry of `inputs`: a numpy array; for BYTES nested lists of text.

    Args:
        given: The entry.
        place: Where it stands, for messages: `inputs[0]`.

    Raises:
        BadRequest: It is no tensor, or not the one it says it is.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise BadRequest(f'{place} has no "name"')
    shape, datatype, data = given.get("shape"), given.get("datatype"), given.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise BadRequest(f'{place}: "shape" is a list of whole numbers')
    if shape.count(-1) > 1:
        raise BadRequest(f'{place}: "shape" leaves two sizes open')
    if "data" not in given:
        raise BadRequest(f'{place} has no "data"; tensors as binary data after the JSON are not read')
    if datatype == "BYTES":
        return given["name"], _texts(data, shape, place)
    if datatype not in _TYPES:
        raise BadRequest(f"{place}: datatype {str(datatype)[:40]!r} is none of {', '.join(_TYPES)}, BYTES")
    return given["name"], _numbers(data, shape, datatype, place)


def _numbers(data: Any, shape: list[int], datatype: str, place: str) -> Any:
    numpy = _numpy()
    name, kinds = _TYPES[datatype]
    try:
        array = numpy.array(data)
        if kinds == "iu" and array.dtype.kind in "fO" and all(type(each) is int for each in _flat(data)):
            array = numpy.array(data, dtype=name)  # over 63 bits: read as doubles, or as objects
        if array.size and array.dtype.kind not in kinds:
            raise ValueError
        with numpy.errstate(all="ignore"):
            typed = array.astype(name)
        if kinds == "iu" and not (typed == array).all():
            raise ValueError
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadRequest(f'{place}: "data" is not {datatype}') from error
    return _shaped(typed, shape, place)


def _texts(data: Any, shape: list[int], place: str) -> Any:
    flat = _flat(data)
    if not all(isinstance(text, str) for text in flat):
        raise BadRequest(f'{place}: "data" is not BYTES: a list of text')
    if len(shape) == 1 and shape[0] == len(flat):
        return flat
    texts = _numpy().empty(len(flat), dtype=object)
    texts[:] = flat
    return _shaped(texts, shape, place).tolist()


def _shaped(array: Any, shape: list[int], place: str) -> Any:
    """In the shape that was sent; one -1 in it is what the others leave, as in TorchServe's examples of BYTES."""
    known = math.prod(size for size in shape if size >= 0)
    if known == array.size or (-1 in shape and known and array.size % known == 0):
        try:
            return array.reshape(shape)
        except (ValueError, OverflowError):  # more dimensions than numpy has
            pass
    raise BadRequest(f'{place}: "data" has {array.size} elements, which shape {shape[:8]} does not hold')


def _flat(data: Any) -> list[Any]:
    flat, waiting = [], [data]
    while waiting:
        current = waiting.pop()
        if isinstance(current, list):
            waiting.extend(reversed(current))
        else:
            flat.append(current)
    return flat


def named_tensors(answer: Any, usual_name: str, to_json: Callable[[Any], bytes]) -> list[dict[str, Any]]:
    """An answer as v2's `outputs`: an object's keys are outputs, anything else is one.

    Args:
        usual_name: The name of an output that the module gives none.
        to_json: For what is no tensor: it is sent as text, a BYTES element a value.

    Raises:
        EncodeError: It has no JSON meaning either.
    """
    if isinstance(answer, Mapping) and answer and all(isinstance(name, str) for name in answer):
        return [{"name": name, **_tensor(value, to_json)} for name, value in answer.items()]
    return [{"name": usual_name, **_tensor(answer, to_json)}]


def _tensor(value: Any, to_json: Callable[[Any], bytes]) -> dict[str, Any]:
    array = _as_array(value)
    if array is not None:
        array = array.reshape(1) if array.ndim == 0 else array
        return {"shape": list(array.shape), "datatype": _NAMES[array.dtype.name], "data": array.reshape(-1)}
    elements = value if isinstance(value, list | tuple) else [value]
    return {
        "shape": [len(elements)],
        "datatype": "BYTES",
        "data": [_as_text(each, to_json) for each in elements],
    }


def _as_array(value: Any) -> Any:
    """A numpy array of a type that v2 names, if the value is one or a (nested) list of numbers; else None."""
    if value is None or isinstance(value, str | bytes | bytearray | Mapping):
        return None
    array = numpy_array(value)
    if array is None:
        try:
            array = _numpy().asarray(value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None
    if array.dtype.kind == "f" and array.dtype.name not in _NAMES:
        array = array.astype("float64")  # longdouble
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.dtype.name in _NAMES else None


def _as_text(value: Any, to_json: Callable[[Any], bytes]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise EncodeError(
                "The answer is bytes, which KServe's v2 JSON cannot hold; use /predictions"
            ) from error
    return to_json(value).decode("utf-8", "replace")


def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise _NoNumpy from None
