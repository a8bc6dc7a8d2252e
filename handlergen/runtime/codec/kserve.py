"""KServe's inference protocols, v1 and v2.

TorchServe receives them under `/v1/models/NAME:predict` and `/v2/models/NAME/infer` (and `:explain`, `/explain`), where
it sets the header `explain`, but not the header `url_path` as under `/predictions` (InferenceRequestHandler): that is
how they are recognised. A body that looks like KServe's under `/predictions` is the module's own. Where TorchServe is
older than 0.12, which never sets `url_path`, or has a `service_envelope`, the body decides (`looks_like_kserve`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..contract import Bundle
from ..pipeline.hooks import Item
from ..request import BadRequest, Files, Headers, Request
from .content import JSON, decode, is_compressed, json_bytes
from .content_encoding import decompressed
from .encode import Encoded
from .errors import EncodeError
from .kserve_v2 import JSON_SIZE, Answer, read_body, read_inputs

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
    body, binary = read_body(item.entry, item.properties)
    explains = item.properties.get("explain") == "True"
    if isinstance(body, Mapping) and isinstance(body.get("instances"), list):
        parts = _instances(item, body["instances"], first_index)
        return Opened(item, parts, "explanations" if explains else "predictions", bundle.settings.max_response_bytes)
    if isinstance(body, Mapping) and isinstance(body.get("inputs"), list):
        keywords = bundle.contract.call == "keywords"
        item.data, item.files = read_inputs(body["inputs"], binary, keywords=keywords), Files()
        item.outlet = None  # a streamed answer is sent in one piece
        item.wrap = Answer(body, item.request.id, bundle.settings)
        return Opened(item, [item], None, bundle.settings.max_response_bytes)
    raise BadRequest(
        'A KServe request has a JSON object: v1 {"instances": [...]}, v2 {"inputs": [{"name", "shape", "datatype", '
        '"data"}]}; if binary tensors follow it, the header Inference-Header-Content-Length has its size'
    )


def looks_like_kserve(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Return whether a body follows one of the protocols: for servers where the address does not decide.

    v1 is a JSON object with a list `instances`; v2 one with a list `inputs` of objects that have `name`, `shape` and
    `datatype`, or whatever comes with the header of binary tensors. Another body that cannot be read is not KServe's.
    """
    if JSON_SIZE in Headers(properties):
        return True
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
        request = Request(item.properties, item.request.torchserve_id)  # with metadata of its own
        part = Item(first_index + index, item.entry, item.properties, request)
        part.data, part.files = _binary(instance, index), Files()
        parts.append(part)
    return parts


def _binary(instance: Any, index: int) -> Any:
    """Return an instance with bytes in place of each `{"b64": "..."}`: the whole of it, or the value of a key.

    So v1's model, TensorFlow Serving's REST API, and TorchServe's envelope `json` send bytes.
    """
    try:
        if _is_b64(instance):
            return base64.b64decode(instance["b64"], validate=True)
        if isinstance(instance, dict):
            for key, value in instance.items():
                if _is_b64(value):
                    instance[key] = base64.b64decode(value["b64"], validate=True)
        return instance
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"instances[{index}] is not valid base64") from error


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _as_json(reply: Encoded) -> bytes:
    if reply.content_type.startswith(JSON):
        return reply.body
    if reply.content_type.startswith("text/"):
        return json_bytes(reply.body.decode("utf-8", "replace"))
    return b'{"b64":"' + base64.b64encode(reply.body) + b'"}'
