"""KServe's protocol v2, the Open Inference Protocol: tensors in JSON, and its extension for binary tensors.

A body with binary tensors is JSON, as many bytes as the header `Inference-Header-Content-Length` says, and then the
tensors that have `parameters.binary_data_size`, in the order of the JSON: row-major, little-endian, of BYTES each
element after its size in four bytes. An answer has the same form where the client asks for it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ..contract import RuntimeSettings
from ..request import BadRequest, Headers
from .content import JSON, OCTETS, decode, optional_module, read
from .encode import dump, numpy_array
from .errors import EncodeError

JSON_SIZE = "Inference-Header-Content-Length"
"""The header with the size of a body's JSON in bytes; without it, the whole body is JSON."""

# Each datatype's name in numpy, and the kinds of a parsed array that convert to it without loss.
_TYPES: dict[str, tuple[str, str]] = {
    "BOOL": ("bool", "b"),
    **{f"{sign}INT{bits}": (f"{sign.lower()}int{bits}", "iu") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": ("float16", "iuf"),
    "FP32": ("float32", "iuf"),
    "FP64": ("float64", "iuf"),
}
_NAMES = {numpy_name: name for name, (numpy_name, _) in _TYPES.items()}


class _NoNumpy(Exception):
    status_code = 501
    detail = "This worker has no numpy, which KServe's v2 tensors need"


class BinaryTensors:
    """What follows the JSON of a body: the binary tensors, which are taken one after another.

    Args:
        content: None if the request has no `Inference-Header-Content-Length`.
    """

    def __init__(self, content: memoryview | None) -> None:
        self._left = content

    def take(self, size: Any, place: str) -> memoryview:
        """Return the next tensor's bytes.

        Args:
            size: The tensor's `binary_data_size`.
            place: As for `read_tensor`.

        Raises:
            BadRequest: The body has fewer bytes left.
        """
        if self._left is None:
            raise BadRequest(f'{place} has a "binary_data_size", but the request has no header {JSON_SIZE}')
        if type(size) is not int or not 0 <= size <= len(self._left):
            raise BadRequest(
                f'{place}: "binary_data_size" is {repr(size)[:40]}; it must be a whole number, at most '
                f"{len(self._left)}, the number of bytes that the body has left"
            )
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def end(self) -> None:
        """Check that all has been taken.

        Raises:
            BadRequest: The body has more bytes than the tensors.
        """
        if self._left:
            raise BadRequest(f"The body goes on after the last tensor; bytes left: {len(self._left)}")


def read_body(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> tuple[Any, BinaryTensors]:
    """Return the JSON value of a request's body, and the binary tensors that follow it.

    Args:
        entry, properties: As for `decode`.

    Raises:
        BadRequest: The body is not valid for its type, or has no JSON of the size that its header gives.
    """
    size, body = Headers(properties).get(JSON_SIZE), entry.get("body")
    if size is None or not isinstance(body, (bytes, bytearray)):
        return decode(entry, properties).data, BinaryTensors(None)
    if not re.fullmatch("[0-9]{1,18}", size) or not 0 < int(size) <= len(body):
        raise BadRequest(
            f"The header {JSON_SIZE} is {size[:40]!r}; it must be the size in bytes of the JSON that the body begins "
            f"with: from 1 to {len(body)}, the size of the body"
        )
    owned = body if isinstance(body, bytearray) else bytearray(body)  # hooks may write to the arrays
    return read(owned[: int(size)], JSON, None), BinaryTensors(memoryview(owned)[int(size) :])


def read_inputs(inputs: list[Any], binary: BinaryTensors, *, keywords: bool) -> Any:
    """Return the tensors by name; the tensor of a single input unless the module takes keys as arguments.

    Raises:
        BadRequest: As `read_tensor`; two inputs have the same name, or there is none.
    """
    if not inputs:
        raise BadRequest('"inputs" is empty')
    tensors: dict[str, Any] = {}
    for index, each in enumerate(inputs):
        tensor_name, tensor = read_tensor(each, f"inputs[{index}]", binary)
        if tensor_name in tensors:
            raise BadRequest(f"two inputs have the name {tensor_name!r}")
        tensors[tensor_name] = tensor
    binary.end()
    if len(tensors) == 1 and not keywords:
        return next(iter(tensors.values()))
    return tensors


class Answer:
    """Converts a hook's answer to v2's, before it is encoded.

    Args:
        body: The request's JSON.

    Raises:
        BadRequest: Its `outputs` are no list of objects with a name.
    """

    def __init__(self, body: Mapping[str, Any], request_id: str, settings: RuntimeSettings) -> None:
        given = body.get("id")
        self._id = given if isinstance(given, str) and given.strip() else request_id
        self._first_input = str(body["inputs"][0]["name"])
        self._all_binary = _parameters(body).get("binary_data_output") is True
        self._wanted = self._wanted_outputs(body.get("outputs"))
        self._settings = settings

    def _wanted_outputs(self, outputs: Any) -> dict[str, bool]:
        """Return the names of the outputs that the client wants, and whether in binary."""
        if outputs is None:
            return {}
        if not isinstance(outputs, list) or not all(
            isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in outputs
        ):
            raise BadRequest('"outputs" is a list of objects with a "name"')
        return {each["name"]: _parameters(each).get("binary_data", self._all_binary) is True for each in outputs}

    def __call__(self, answer: Any) -> Any:
        """Return the answer as a v2 response, with an output for each key of an object, else a single one.

        Raises:
            EncodeError: The answer has no meaning in v2.
            BadRequest: The client wants an output that the model does not have.
        """
        if hasattr(answer, "status_code") and hasattr(answer, "body"):
            return answer  # the module's own response is sent unchanged
        usual = next(iter(self._wanted)) if len(self._wanted) == 1 else self._first_input
        is_named = isinstance(answer, Mapping) and answer and all(isinstance(name, str) for name in answer)
        named = answer if is_named else {usual: answer}
        missing = [name for name in self._wanted if name not in named]
        if missing:
            raise BadRequest(f"The model has no output {', '.join(missing)}; it has {', '.join(named)}")
        settings = self._settings
        outputs, chunks = [], []
        for name in self._wanted or named:
            if self._wanted.get(name, self._all_binary):
                tensor, chunk = _binary_tensor(named[name], settings.nan)
                chunks.append(chunk)
            else:
                tensor = _tensor(named[name], settings.nan)
            outputs.append({"name": name, **tensor})
        body = {"model_name": settings.name, "model_version": settings.version, "id": self._id, "outputs": outputs}
        if not chunks:
            return body
        head = dump(body, settings.nan)
        headers = {JSON_SIZE: str(len(head))}
        return SimpleNamespace(status_code=200, body=b"".join((head, *chunks)), media_type=OCTETS, headers=headers)


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = given.get("parameters")
    return parameters if isinstance(parameters, Mapping) else {}


def read_tensor(given: Any, place: str, binary: BinaryTensors) -> tuple[str, Any]:
    """Return name and value of an entry of `inputs`.

    Args:
        given: The entry.
        place: The entry's place for messages: `inputs[0]`.
        binary: Has the entry's bytes if they are not in its `data`.

    Returns:
        The value is a numpy array; of BF16, which numpy does not have, a tensor; of BYTES nested lists of text, or of
        bytes where an element is not UTF-8. An array of binary data is over the request's own bytes where their
        address allows that.

    Raises:
        BadRequest: The entry is no tensor, or does not match its shape or datatype.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise BadRequest(f'{place} has no "name"')
    name, shape, datatype = given["name"], given.get("shape"), given.get("datatype")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise BadRequest(f'{place}: "shape" is a list of whole numbers')
    if shape.count(-1) > 1:
        raise BadRequest(f'{place}: "shape" has more than one -1')
    size = _parameters(given).get("binary_data_size")
    if (size is None) == ("data" not in given):
        raise BadRequest(f'{place} must have either "data" or, in its "parameters", a "binary_data_size"')
    raw = None if size is None else binary.take(size, place)
    if datatype == "BYTES":
        return name, _texts(_flat(given["data"]) if raw is None else _elements(raw, place), shape, place)
    if datatype == "BF16" and raw is not None:
        import torch

        return name, torch.from_numpy(_binary_numbers(raw, shape, "INT16", place)).view(torch.bfloat16)
    if datatype not in _TYPES:
        raise BadRequest(
            f"{place}: datatype {str(datatype)[:40]!r} is not one of {', '.join(_TYPES)}, BYTES, nor, as binary data, "
            "BF16"
        )
    if raw is None:
        return name, _numbers(given["data"], shape, datatype, place)
    return name, _binary_numbers(raw, shape, datatype, place)


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


def _binary_numbers(raw: memoryview, shape: list[int], datatype: str, place: str) -> Any:
    numpy = _numpy()
    dtype = numpy.dtype(_TYPES[datatype][0]).newbyteorder("<")
    if len(raw) % dtype.itemsize:
        raise BadRequest(
            f'{place}: "binary_data_size" is {len(raw)}; it must be a multiple of {dtype.itemsize}, the size of '
            f"{datatype}"
        )
    if datatype == "BOOL":
        return _shaped(numpy.frombuffer(raw, "uint8") != 0, shape, place)
    # A copy where the address is no multiple of the element's size: compiled kernels assume that it is, unchecked.
    return _shaped(numpy.require(numpy.frombuffer(raw, dtype), requirements="A"), shape, place)


def _elements(raw: memoryview, place: str) -> list[Any]:
    """Return the elements of binary BYTES: text, or bytes if one of them is not UTF-8."""
    elements: list[Any] = []
    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        if end > len(raw):
            raise BadRequest(f"{place}: element {len(elements)} of its BYTES does not end within the tensor's bytes")
        elements.append(bytes(raw[start + 4 : end]))
        start = end
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        return elements


def _texts(flat: list[Any], shape: list[int], place: str) -> Any:
    if not all(isinstance(text, (str, bytes)) for text in flat):
        raise BadRequest(f'{place}: "data" is not BYTES: a list of text')
    if len(shape) == 1 and shape[0] == len(flat):
        return flat
    texts = _numpy().empty(len(flat), dtype=object)
    texts[:] = flat
    return _shaped(texts, shape, place).tolist()


def _shaped(array: Any, shape: list[int], place: str) -> Any:
    """Return the array in the given shape; one size may be -1, as in TorchServe's examples of BYTES."""
    known = math.prod(size for size in shape if size >= 0)
    if known == array.size or (-1 in shape and known and array.size % known == 0):
        try:
            return array.reshape(shape)
        except (ValueError, OverflowError):  # more dimensions than numpy has
            pass
    raise BadRequest(f"{place} has {array.size} elements, which do not fit shape {shape[:8]}")


def _flat(data: Any) -> list[Any]:
    flat, waiting = [], [data]
    while waiting:
        current = waiting.pop()
        if isinstance(current, list):
            waiting.extend(reversed(current))
        else:
            flat.append(current)
    return flat


def _tensor(value: Any, nan: str) -> dict[str, Any]:
    """Return an entry of `outputs` but its name; a value that is no tensor is sent as text, in BYTES."""
    array = _as_array(value)
    if array is not None:
        return {"shape": list(array.shape), "datatype": _NAMES[array.dtype.name], "data": array.reshape(-1)}
    shape, elements = _as_elements(value)
    return {"shape": shape, "datatype": "BYTES", "data": [_as_text(each, nan) for each in elements]}


def _binary_tensor(value: Any, nan: str) -> tuple[dict[str, Any], Any]:
    """Return an entry of `outputs` but its name, and the bytes that belong to it, as an array or bytes."""
    datatype, array = "BF16", _bfloat16_bits(value)
    if array is None:
        array = _as_array(value)
        datatype = _NAMES[array.dtype.name] if array is not None else "BYTES"
    content: Any
    if array is None:
        shape, elements = _as_elements(value)
        content = b"".join(_sized(each, nan) for each in elements)
        size = len(content)
    else:
        shape, size = list(array.shape), array.nbytes
        content = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return {"shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}, content


def _bfloat16_bits(value: Any) -> Any:
    """Return a tensor of bfloat16, which numpy does not have, as an array of int16; None for any other value."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.dtype is not torch.bfloat16:
        return None
    if value.layout is not torch.strided:
        value = value.to_dense()
    plain = value.detach().cpu().contiguous()
    return (plain.reshape(1) if plain.ndim == 0 else plain).view(torch.int16).numpy()


def _as_array(value: Any) -> Any:
    """Return an array or a (nested) list of numbers as a numpy array of one of v2's types; None for another value."""
    if value is None or isinstance(value, (str, bytes, bytearray, Mapping)):
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
    if array.dtype.name not in _NAMES:
        return None
    return array.reshape(1) if array.ndim == 0 else array


def _as_elements(value: Any) -> tuple[list[int], list[Any]]:
    """Return shape and elements of a value that is sent as BYTES: an array of text, a list, or a single element."""
    array = numpy_array(value)
    if array is not None and array.dtype.kind in "SUO":
        return list(array.shape) or [1], array.reshape(-1).tolist()
    elements = list(value) if isinstance(value, (list, tuple)) else [value]
    return [len(elements)], elements


def _as_text(value: Any, nan: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise EncodeError(
                "The answer is bytes, which KServe's v2 JSON cannot hold; ask for binary data, or use /predictions"
            ) from error
    return dump(value, nan).decode("utf-8", "replace")


def _sized(value: Any, nan: str) -> bytes:
    """Return an element of binary BYTES, after its size."""
    element = value if isinstance(value, (bytes, bytearray)) else _as_text(value, nan).encode("utf-8", "replace")
    return len(element).to_bytes(4, "little") + element


def _numpy() -> Any:
    if numpy := optional_module("numpy"):
        return numpy
    raise _NoNumpy
