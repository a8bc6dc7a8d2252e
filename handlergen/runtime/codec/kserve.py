"""KServe's inference protocols, v1 and v2.

TorchServe receives them under `/v1/models/NAME:predict` and `/v2/models/NAME/infer` (and `:explain`, `/explain`), where
it sets the header `explain`, but not the header `url_path` as under `/predictions` (InferenceRequestHandler): that is
how they are recognised. A body that looks like KServe's under `/predictions` is the module's own. Where TorchServe is
older than 0.12, which never sets `url_path`, or has a `service_envelope`, the body decides (`looks_like_kserve`).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..contract import Bundle, RuntimeSettings
from ..pipeline.hooks import Item
from ..request import BadRequest, Files, Request
from .content import JSON, decode, is_compressed, json_bytes, optional_module
from .content_encoding import decompressed
from .encode import Encoded, dump, numpy_array
from .errors import EncodeError

MAX_INSTANCES = 10_000
"""The most instances of a v1 request."""

KSERVE_BODY = "handlergen-kserve-body"
"""True among the properties of a request that is KServe's by its body. (A header is text there, a part a mapping.)"""


@dataclass
class Opened:
    """One KServe request.

    Attributes:
        parts: The items for the pipeline: the item itself (v2), or one for each instance (v1).
        answer_key: v1's key for the answers; None for v2.
        limit: The most bytes that the server sends.
    """

    item: Item
    parts: list[Item]
    answer_key: str | None
    limit: int

    def close(self, fail: Callable[[Item, BaseException, str], None]) -> None:
        """Make the request's answer from the answers of its parts."""
        item = self.item
        if self.answer_key is not None:
            try:
                self._join(self.answer_key)
            except EncodeError as error:
                fail(item, error, "encode")
        if item.failure is not None:
            item.failure = replace(item.failure, for_kserve=True)

    def _join(self, key: str) -> None:
        for index, part in enumerate(self.parts):
            failure = part.failure
            if failure is not None:
                self.item.failure = replace(failure, message=f"instances[{index}]: {failure.message}")
                return
            if part.reply.status != 200:  # the module's own response answers the whole request
                self.item.reply = part.reply
                return
        bodies = b",".join(_as_json(part.reply) for part in self.parts)
        body = b'{"%s":[%s]}' % (key.encode(), bodies)
        if len(body) > self.limit:
            raise EncodeError(
                f"The answers have {len(body)} bytes together; the server sends at most {self.limit} "
                "(max_response_size)"
            )
        self.item.reply = Encoded(body, JSON)


def open_kserve(item: Item, bundle: Bundle, first_index: int) -> Opened:
    """Read a request under one of KServe's paths; `first_index` is the first unused `Item.index` of the batch.

    Raises:
        BadRequest: The body follows neither protocol.
    """
    if is_compressed(item.properties):
        item.entry = decompressed(item.entry, item.properties)
    body = decode(item.entry, item.properties).data
    explains = item.properties.get("explain") == "True"
    if isinstance(body, Mapping) and isinstance(body.get("instances"), list):
        parts = _instances(item, body["instances"], first_index)
        return Opened(item, parts, "explanations" if explains else "predictions", bundle.settings.max_response_bytes)
    if isinstance(body, Mapping) and isinstance(body.get("inputs"), list):
        item.data, item.files = _inputs(body["inputs"], keywords=bundle.contract.call == "keywords"), Files()
        item.outlet = None  # a streamed answer is sent in one piece
        item.wrap = _V2Answer(body, item.request.id, bundle.settings)
        return Opened(item, [item], None, bundle.settings.max_response_bytes)
    raise BadRequest(
        'A KServe request has a JSON object: v1 {"instances": [...]}, v2 {"inputs": [{"name", "shape", "datatype", '
        '"data"}]}'
    )


def looks_like_kserve(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Return whether a body follows one of the protocols: for servers where the address does not decide.

    v1 is a JSON object with a list `instances`; v2 one with a list `inputs` of objects that have `name`, `shape` and
    `datatype`. A body that cannot be read is not KServe's.
    """
    try:
        if is_compressed(properties):
            entry = decompressed(entry, properties)
        body = entry.get("body", entry.get("data"))
        if isinstance(body, (bytes, bytearray)) and b'"instances"' not in body and b'"inputs"' not in body:
            return False  # without reading it
        value = decode(entry, properties).data
    except Exception:
        return False  # the pipeline reads it once more, and says what is wrong
    if not isinstance(value, Mapping):
        return False
    inputs = value.get("inputs")
    return isinstance(value.get("instances"), list) or (
        isinstance(inputs, list) and bool(inputs) and all(map(_is_tensor, inputs))
    )


def _is_tensor(each: Any) -> bool:
    return isinstance(each, Mapping) and all(
        isinstance(each.get(name), kind) for name, kind in (("name", str), ("shape", list), ("datatype", str))
    )


def _instances(item: Item, instances: list[Any], first_index: int) -> list[Item]:
    if not 0 < len(instances) <= MAX_INSTANCES:
        raise BadRequest(f'"instances" has {len(instances)} entries; it must have from 1 to {MAX_INSTANCES}')
    parts = []
    for index, instance in enumerate(instances):
        request = Request(item.properties, item.request.id)  # with metadata of its own
        part = Item(first_index + index, item.entry, item.properties, request)
        part.data, part.files = _binary(instance, index), Files()
        parts.append(part)
    return parts


def _binary(instance: Any, index: int) -> Any:
    """`{"b64": "..."}` is the protocol's way to send bytes (TensorFlow Serving's REST API, which v1 follows)."""
    if not (isinstance(instance, dict) and len(instance) == 1 and isinstance(instance.get("b64"), str)):
        return instance
    try:
        return base64.b64decode(instance["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"instances[{index}] is not valid base64") from error


def _as_json(reply: Encoded) -> bytes:
    if reply.content_type.startswith(JSON):
        return reply.body
    if reply.content_type.startswith("text/"):
        return json_bytes(reply.body.decode("utf-8", "replace"))
    return b'{"b64":"' + base64.b64encode(reply.body) + b'"}'


def _inputs(inputs: list[Any], *, keywords: bool) -> Any:
    """Return the tensors by name; the tensor of a single input unless the module takes keys as arguments."""
    if not inputs:
        raise BadRequest('"inputs" is empty')
    tensors: dict[str, Any] = {}
    for index, each in enumerate(inputs):
        tensor_name, tensor = read_tensor(each, f"inputs[{index}]")
        if tensor_name in tensors:
            raise BadRequest(f"two inputs have the name {tensor_name!r}")
        tensors[tensor_name] = tensor
    if len(tensors) == 1 and not keywords:
        return next(iter(tensors.values()))
    return tensors


class _V2Answer:
    """Converts a hook's answer to v2's, before it is encoded."""

    def __init__(self, body: Mapping[str, Any], request_id: str, settings: RuntimeSettings) -> None:
        given = body.get("id")
        self._id = given if isinstance(given, str) and given.strip() else request_id
        self._first_input = str(body["inputs"][0]["name"])
        self._wanted = _wanted_outputs(body.get("outputs"))
        self._settings = settings

    def __call__(self, answer: Any) -> Any:
        """Return the answer as a v2 response, with an output for each key of an object, else a single one.

        Raises:
            EncodeError: The answer has no meaning in v2.
            BadRequest: The client wants an output that the model does not have.
        """
        if hasattr(answer, "status_code") and hasattr(answer, "body"):
            return answer  # the module's own response is sent unchanged
        usual = self._wanted[0] if len(self._wanted) == 1 else self._first_input
        is_named = isinstance(answer, Mapping) and answer and all(isinstance(name, str) for name in answer)
        named = answer if is_named else {usual: answer}
        outputs = [{"name": name, **_tensor(value, self._settings.nan)} for name, value in named.items()]
        if self._wanted:
            by_name = {output["name"]: output for output in outputs}
            missing = [name for name in self._wanted if name not in by_name]
            if missing:
                raise BadRequest(f"The model has no output {', '.join(missing)}; it has {', '.join(by_name)}")
            outputs = [by_name[name] for name in self._wanted]
        settings = self._settings
        return {"model_name": settings.name, "model_version": settings.version, "id": self._id, "outputs": outputs}


def _wanted_outputs(outputs: Any) -> list[str]:
    if outputs is None:
        return []
    objects = outputs if isinstance(outputs, list) else [{}]
    names = [each.get("name") for each in objects if isinstance(each, Mapping)]
    if not all(isinstance(name, str) for name in names):
        raise BadRequest('"outputs" is a list of objects with a "name"')
    return [str(name) for name in names]


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


def read_tensor(given: Any, place: str) -> tuple[str, Any]:
    """Return name and value of an entry of `inputs`: a numpy array; for BYTES nested lists of text.

    Args:
        place: The entry's place for messages: `inputs[0]`.

    Raises:
        BadRequest: The entry is no tensor, or does not match its shape or datatype.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise BadRequest(f'{place} has no "name"')
    shape, datatype, data = given.get("shape"), given.get("datatype"), given.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise BadRequest(f'{place}: "shape" is a list of whole numbers')
    if shape.count(-1) > 1:
        raise BadRequest(f'{place}: "shape" has more than one -1')
    if "data" not in given:
        raise BadRequest(f'{place} has no "data"; binary tensors after the JSON are not supported')
    if datatype == "BYTES":
        return given["name"], _texts(data, shape, place)
    if datatype not in _TYPES:
        raise BadRequest(f"{place}: datatype {str(datatype)[:40]!r} is not one of {', '.join(_TYPES)}, BYTES")
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
    """Return the array in the given shape; one size may be -1, as in TorchServe's examples of BYTES."""
    known = math.prod(size for size in shape if size >= 0)
    if known == array.size or (-1 in shape and known and array.size % known == 0):
        try:
            return array.reshape(shape)
        except (ValueError, OverflowError):  # more dimensions than numpy has
            pass
    raise BadRequest(f'{place}: "data" has {array.size} elements, which do not fit shape {shape[:8]}')


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
        array = array.reshape(1) if array.ndim == 0 else array
        return {"shape": list(array.shape), "datatype": _NAMES[array.dtype.name], "data": array.reshape(-1)}
    texts = [_as_text(each, nan) for each in (value if isinstance(value, (list, tuple)) else [value])]
    return {"shape": [len(texts)], "datatype": "BYTES", "data": texts}


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
    return array if array.dtype.name in _NAMES else None


def _as_text(value: Any, nan: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise EncodeError("The answer is bytes, which KServe's v2 JSON cannot hold; use /predictions") from error
    return dump(value, nan).decode("utf-8", "replace")


def _numpy() -> Any:
    if numpy := optional_module("numpy"):
        return numpy
    raise _NoNumpy
