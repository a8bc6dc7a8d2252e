"""The `sagemaker` form: `model_fn`, `input_fn`, `predict_fn`, `output_fn` as SageMaker's PyTorch toolkit calls them.

What it passes and what its defaults do is read in aws/sagemaker-inference-toolkit (sagemaker_inference/transformer.py)
and aws/sagemaker-pytorch-inference-toolkit (default_pytorch_inference_handler.py).
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CoroutineType, SimpleNamespace
from typing import Any

import torch

from ..codec.content import CSV, FORM, JSON, NPY, OCTETS, optional_module, parse_type
from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import BoundHook, Hooks, Item, ModelHooks
from ..request import Request
from ..torchserve.streaming import is_stream
from .loading import UserModule

_DEFAULT_ACCEPT = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"
"""The toolkit's environment variable for the answer's type when the client names none."""

_TYPES = (JSON, CSV, NPY)


class SagemakerModule(UserModule):
    """The toolkit's functions; its defaults replace missing ones."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        super().__init__(contract, settings, context)
        self._weights = context.model_dir / settings.weights if settings.weights else None
        # SageMaker unpacks weights into model_dir; here they keep their place relative to the source.
        self._model_dir = str(self._weights.parent if self._weights else context.model_dir)
        self._constants.update(model_dir=self._model_dir, context=self._toolkit_context(None))

    def load(self) -> None:
        if "load" in self._contract.hooks:
            self._constants["model"] = self._call_once("load")
        else:
            path = self._weights or _lone_weights(Path(self._model_dir))
            loaded = torch.jit.load(path, map_location=self._context.device)  # type: ignore[no-untyped-call]
            self._constants["model"] = loaded.eval()
        self._call_once("warmup")

    def load_without_model(self) -> None:
        """Do nothing: input_fn and output_fn get no model."""

    def hooks(self) -> Hooks:
        input_fn, predict_fn, output_fn = map(self._function, ("preprocess", "predict", "postprocess"))
        model = self._constants["model"]

        def preprocess(item: Item) -> Any:
            body, content_type = received(item)
            if input_fn is None:
                return default_input(body, content_type, decodes=predict_fn is not None)
            return input_fn(self._toolkit_context(item.request), body, content_type)

        def predict(item: Item) -> Any:
            if predict_fn is None:
                return model(item.inputs)
            return predict_fn(self._toolkit_context(item.request), item.inputs, model)

        def postprocess(item: Item) -> Any:
            accept = item.request.headers.get("accept", "")
            if not accept or accept == "*/*":
                accept = os.environ.get(_DEFAULT_ACCEPT, JSON)
            if output_fn is None:
                return default_output(item.outputs, accept)
            context = self._toolkit_context(item.request)
            value = output_fn(context, item.outputs, accept)

            async def awaited() -> Any:
                return _reply(await value, accept, context)

            return awaited() if type(value) is CoroutineType else _reply(value, accept, context)

        before, after = BoundHook("input_fn", preprocess), BoundHook("output_fn", postprocess)
        return (ModelHooks(before, BoundHook("predict_fn", predict), after),)

    def _toolkit_context(self, request: Request | None) -> ToolkitContext:
        return ToolkitContext(self._context, self._model_dir, request)

    def _function(self, role: str) -> Callable[..., Any] | None:
        """Return a function that takes a ToolkitContext, which it may not want, and the toolkit's arguments."""
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        function = getattr(self._module, hook.name)
        takes_context = any(parameter.source == "context" for parameter in hook.parameters)

        def call(context: ToolkitContext, *arguments: Any) -> Any:
            return function(*arguments, context) if takes_context else function(*arguments)

        return call


def _reply(value: Any, accept: str, context: ToolkitContext) -> Any:
    """Return the answer of output_fn: a body of the requested type, a (body, content type) pair, or a response."""
    if type(getattr(value, "status_code", None)) is int or is_stream(value):
        return value
    content_type = accepted(accept)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
        value, content_type = value
    return Reply(value, context.content_type or content_type, context.status or 200, context.response_headers)


def received(item: Item) -> tuple[str | bytes | Any, str]:
    """Return the body as the toolkit passes it to input_fn, and its content type.

    JSON that TorchServe has parsed becomes equivalent text. Without a content type (as over gRPC), or with the form
    type of `curl -d`, the body counts as JSON if it is valid JSON. A form's fields and files (bytes) come as a dict.

    Returns:
        `str` for JSON and CSV, else bytes; the header as it was sent.
    """
    sent = item.request.content_type or ""
    kind, _ = parse_type(sent)
    if kind in ("", FORM):
        if isinstance(item.data, bytes):
            return item.data, OCTETS
        return json.dumps(item.data, ensure_ascii=False), JSON
    if kind.startswith("multipart/"):
        fields = item.data if isinstance(item.data, Mapping) else {"data": item.data}
        return ({**fields, **{file.name: file.getvalue() for file in item.files}} if item.files else item.data), sent
    body = item.entry.get("body", b"")
    if not isinstance(body, (bytes, bytearray, str)):
        body = json.dumps(body, ensure_ascii=False)
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return (raw.decode() if kind in (JSON, CSV) else raw), sent


def _lone_weights(directory: Path) -> Path:
    usual = directory / "model.pt"
    if usual.is_file():
        return usual
    found = sorted(path for path in directory.iterdir() if path.suffix in (".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(f"without model_fn there must be one .pt or .pth file in model_dir; found: {names}")
    return found[0]


class UnsupportedType(Exception):
    """A content type that the defaults do not read (415), or an Accept that they do not write (406)."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


@dataclass(frozen=True)
class Reply:
    """An answer of `output_fn`; `encode` takes it as it takes a Starlette response."""

    body: Any
    media_type: str
    status_code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def accepted(accept: str) -> str:
    """Return the first type of an Accept header, without parameters."""
    return accept.partition(",")[0].partition(";")[0].strip()


def default_input(body: Any, content_type: str, *, decodes: bool = False) -> Any:
    """Return the body's numbers as a tensor: float32 of JSON and CSV, the array's own type of NPY.

    With `decodes`, JSON that is no array of numbers (an object, text, a list of either) is returned decoded, as Hugging
    Face's toolkit does (decoder_encoder.py): the module has a predict_fn, which knows what it takes.

    A CSV cell that is no number is NaN and one row is one dimension, as in the toolkit. Pickles inside NPY, which the
    toolkit loads, are refused: a client could run code by them.

    Raises:
        UnsupportedType: Another content type: 415.
        ValueError: The body is not what its type says: 400.
    """
    kind = accepted(content_type)
    if kind == JSON:
        try:
            value, np = json.loads(body), optional_module("numpy")
            if decodes and not _is_numbers(value):
                return value
            # numpy also reads numbers that are written as text.
            return torch.from_numpy(np.array(value, np.float32)) if np else torch.tensor(value, dtype=torch.float32)
        # An object, a null, a number beyond floats, lists without end: the client's doing as a ragged list is.
        except (TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"the JSON is no array of numbers: {error}") from error
    if kind == CSV:
        np = _numpy(kind, 415)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a cell that is no number is only warned of, an empty text too
            try:
                array = np.genfromtxt(io.StringIO(body), delimiter=",", dtype=np.float32)
            except Warning as warning:
                raise ValueError(f"the CSV cannot be read: {str(warning).strip()}") from warning
        return torch.from_numpy(array)
    if kind == NPY:
        np = _numpy(kind, 415)
        try:
            return torch.from_numpy(np.load(io.BytesIO(body), allow_pickle=False))
        except (TypeError, EOFError) as error:  # texts, several arrays, nothing
            raise ValueError(f"the NPY is no array of numbers: {error}") from error
    raise UnsupportedType(f"content type {kind!r} is not supported; send one of: {', '.join(_TYPES)}", status_code=415)


def _is_numbers(value: Any) -> bool:
    """Return whether a JSON value is a number, or a list of such values that all have the same shape."""
    if not isinstance(value, list):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    sizes = {len(each) if isinstance(each, list) else -1 for each in value}
    return len(sizes) < 2 and all(map(_is_numbers, value))


def default_output(prediction: Any, accept: str) -> Reply:
    """Return the prediction in the first type that the client accepts and that can be written.

    Raises:
        UnsupportedType: None of them can be written: 406.
    """
    for wanted in (accepted(part) for part in accept.split(",")):
        if wanted in (JSON, "*/*", "application/*"):
            return Reply(prediction, JSON)
        if wanted == NPY:
            np, target = _numpy(NPY, 406), io.BytesIO()
            np.save(target, _array(np, prediction), allow_pickle=False)
            return Reply(target.getvalue(), NPY)
        if wanted in (CSV, "text/*"):
            np, text = _numpy(CSV, 406), io.StringIO()
            np.savetxt(text, np.atleast_1d(_array(np, prediction)), delimiter=",", fmt="%s")
            return Reply(text.getvalue(), CSV)
    raise UnsupportedType(
        f"no type of Accept: {accept} can be answered; ask for one of: {', '.join(_TYPES)}", status_code=406
    )


def _numpy(kind: str, status_code: int) -> Any:
    if np := optional_module("numpy"):
        return np
    raise UnsupportedType(
        f"{kind} needs numpy, which this worker does not have; send and accept {JSON}, or add numpy to the "
        "requirements",
        status_code,
    )


def _array(np: Any, value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


class ToolkitContext:
    """The interface of TorchServe's context, for one request, with handlergen's attributes too (`context.device`).

    A status, a content type or headers that `output_fn` sets go with the answer. Indexes, by which TorchServe
    distinguishes the requests of a batch, are ignored: each call has one request.
    """

    def __init__(self, context: Context, model_dir: str, request: Request | None) -> None:
        self._context = context
        self._request = request
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": context.device.index if context.device.type == "cuda" else None,
        }
        self.manifest = {"model": {"modelName": context.model_name, "modelVersion": context.model_version}}
        self.request_processor = [
            SimpleNamespace(
                get_request_properties=self.get_all_request_header,
                get_request_property=lambda name: self.get_request_header(0, name),
            )
        ]
        self.status: int | None = None
        self.content_type: str | None = None
        self.response_headers: dict[str, str] = {}

    @property
    def request_ids(self) -> dict[int, str]:
        return {0: self._request.id} if self._request else {}

    def get_request_id(self, idx: int = 0) -> str:
        return self.request_ids.get(0, "")

    def get_request_header(self, idx: int, key: str) -> str | None:
        """Return a header, or None; `key` is case-insensitive."""
        return self._request.headers.get(key) if self._request else None

    def get_all_request_header(self, idx: int = 0) -> Mapping[str, str]:
        return dict(self._request.headers) if self._request else {}

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_type = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status = code

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.response_headers[key] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


USER_MODULE = SagemakerModule
