"""KServe's inference protocols, v1 and v2, read and answered here.

TorchServe takes them at addresses of their own, `/v1/models/NAME:predict` and `/v2/models/NAME/infer` (and `:explain`,
`/explain`), which is how they are recognised: by the header `explain` that it sets there and the header `url_path`
that it sets only under `/predictions` (InferenceRequestHandler). A body that looks like KServe's but comes to
`/predictions` is the module's own.

TorchServe's `service_envelope` is not used: it is server-wide, reads only the first request of a batch, wants
answers that its own JSON encoder takes, and gives the whole batch one error.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

from .decode import decode, open_request
from .encode import Encoded
from .failures import EncodeError, Failure
from .hooks import Item
from .json_answer import dump
from .kserve_tensors import named_tensors, read_tensor
from .requests import BadRequest, Files
from .wire import JSON, json_bytes

MAX_INSTANCES = 10_000
"""How many instances one v1 request may have."""

_Fail = Callable[[Item, BaseException, str], None]


class Opened:
    """One KServe request.

    Attributes:
        item: As TorchServe handed it over.
        parts: What goes through the pipeline: the item itself (v2), or an item an instance (v1).
    """

    def __init__(self, item: Item, parts: list[Item], *, answer_key: str | None, limit: int) -> None:
        self.item = item
        self.parts = parts
        self._answer_key = answer_key
        self._limit = limit

    def close(self, fail: _Fail) -> None:
        """Make the answer out of those of the parts."""
        item = self.item
        if self._answer_key is not None:
            try:
                self._join(self._answer_key)
            except EncodeError as error:
                fail(item, error, "encode")
        if item.failure is not None:
            item.failure = replace(item.failure, for_kserve=True)

    def _join(self, key: str) -> None:
        for index, part in enumerate(self.parts):
            failure = part.failure
            if failure is not None:
                told = f"instances[{index}]: {failure.message}"
                self.item.failure = Failure(failure.status, failure.type, told, failure.headers)
                return
            if part.reply.status != 200:  # the module's own response: the request as a whole gets it
                self.item.reply = part.reply
                return
        bodies = b",".join(_as_json(part.reply) for part in self.parts)
        body = b'{"%s":[%s]}' % (key.encode(), bodies)
        if len(body) > self._limit:
            raise EncodeError(
                f"The answers have {len(body)} bytes together; the server sends at most {self._limit} "
                "(max_response_size)"
            )
        self.item.reply = Encoded(body, JSON)


def refuse_envelope(caller: FrameType | None) -> None:
    """See that no envelope of TorchServe's stands between the server and the handler.

    Args:
        caller: The frame of the handler's `handle`.

    Raises:
        PredictionException: One does. Its class, because the envelope could send nothing else.
    """
    frame = caller.f_back if caller is not None else None
    if frame is None or "request_envelope" not in frame.f_code.co_filename:
        return
    from ts.utils.util import PredictionException

    raise PredictionException(
        "config.properties sets service_envelope, which models made by handlergen neither need nor work with: they "
        "read KServe's protocols themselves. Remove that line.",
        501,
    )


def open_kserve(
    item: Item, *, name: str, version: str, nan: str, limit: int, first_index: int, keywords: bool
) -> Opened:
    """Read a KServe request.

    Args:
        item: A request that came to one of KServe's addresses.
        name, version: The model's, for v2's answers.
        nan: As for `encode`.
        limit: The most bytes that the server sends.
        first_index: The first unused `Item.index` of the batch.
        keywords: The module takes an object's keys: a single v2 input is passed by name too.

    Raises:
        BadRequest: The body is neither protocol's.
    """
    body = decode(item.entry, item.properties).data
    explains = item.properties.get("explain") == "True"
    if isinstance(body, Mapping) and isinstance(body.get("instances"), list):
        parts = _instances(item, body["instances"], first_index)
        return Opened(item, parts, answer_key="explanations" if explains else "predictions", limit=limit)
    if isinstance(body, Mapping) and isinstance(body.get("inputs"), list):
        item.data, item.files = _inputs(body["inputs"], keywords=keywords), Files()
        item.outlet = None  # its chunks, if it has some, come as one answer
        item.wrap = _V2Answer(body, item.request.id, name, version, nan)
        return Opened(item, [item], answer_key=None, limit=limit)
    raise BadRequest(
        'A KServe request has a JSON object: v1 {"instances": [...]}, v2 {"inputs": [{"name", "shape", "datatype", '
        '"data"}]}'
    )


def _instances(item: Item, instances: list[Any], first_index: int) -> list[Item]:
    if not 0 < len(instances) <= MAX_INSTANCES:
        raise BadRequest(f'"instances" has {len(instances)} entries; from 1 to {MAX_INSTANCES} are taken')
    parts = []
    for index, instance in enumerate(instances):
        request = open_request(item.entry, item.properties, item.request.id)  # with metadata of its own
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
    """One input: its tensor; several: the tensors by name."""
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
    """Turns a hook's answer into v2's; called with it, before it is encoded."""

    def __init__(self, body: Mapping[str, Any], request_id: str, name: str, version: str, nan: str) -> None:
        given = body.get("id")
        self._id = given if isinstance(given, str) and given.strip() else request_id
        self._first_input = str(body["inputs"][0]["name"])
        self._wanted = _wanted_outputs(body.get("outputs"))
        self._name = name
        self._version = version
        self._nan = nan

    def __call__(self, answer: Any) -> Any:
        """
        Raises:
            EncodeError: It has no meaning in v2.
            BadRequest: The client wants an output that the model does not have.
        """
        if hasattr(answer, "status_code") and hasattr(answer, "body"):
            return answer  # a response of the module's own is sent as it is
        usual = self._wanted[0] if len(self._wanted) == 1 else self._first_input
        outputs = named_tensors(answer, usual, lambda value: dump(value, self._nan))
        if self._wanted:
            by_name = {output["name"]: output for output in outputs}
            missing = [name for name in self._wanted if name not in by_name]
            if missing:
                raise BadRequest(f"The model has no output {', '.join(missing)}; it has {', '.join(by_name)}")
            outputs = [by_name[name] for name in self._wanted]
        return {
            "model_name": self._name,
            "model_version": self._version,
            "id": self._id,
            "outputs": outputs,
        }


def _wanted_outputs(outputs: Any) -> list[str]:
    if outputs is None:
        return []
    names = (
        [each.get("name") for each in outputs if isinstance(each, Mapping)]
        if isinstance(outputs, list)
        else [None]
    )
    if not all(isinstance(name, str) for name in names):
        raise BadRequest('"outputs" is a list of objects with a "name"')
    return [str(name) for name in names]
