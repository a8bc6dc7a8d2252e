"""The `sagemaker` form: `model_fn`, `input_fn`, `predict_fn`, `output_fn` as SageMaker's PyTorch toolkit calls them.

What it passes and what its defaults do is read in aws/sagemaker-inference-toolkit (sagemaker_inference/transformer.py)
and aws/sagemaker-pytorch-inference-toolkit (default_pytorch_inference_handler.py).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any

import torch

from .context import Context
from .contract import Contract, Hook, RuntimeSettings
from .hooks import BoundHook, Hooks, Item, Stage, call_once
from .sagemaker_content import JSON, Reply, accepted, default_input, default_output, is_text
from .sagemaker_context import ToolkitContext

_DEFAULT_ACCEPT = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"
"""The toolkit's environment variable for the answer's type when the client names none."""


class SagemakerModule:
    """The toolkit's functions, bound; its defaults stand for missing ones. See `UserModule` for the methods."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        self._contract = contract
        self._context = context
        self._module: ModuleType = importlib.import_module(contract.module)
        weights = context.model_dir / settings.weights if settings.weights else None
        self._weights = weights
        # SageMaker unpacks weights into model_dir; here they keep their place relative to the source.
        self._model_dir = str(weights.parent if weights else context.model_dir)
        self._model: Any = None

    def setup(self) -> None:
        self._once("setup")

    def load(self) -> None:
        self._model = self._once("load") if "load" in self._contract.hooks else self._default_model()
        self._once("warmup")

    def stand_in(self) -> None:
        """Nothing: input_fn and output_fn get no model."""

    def hooks(self) -> Hooks:
        preprocess = self._function("preprocess")
        predict = self._function("predict")
        postprocess = self._function("postprocess")
        model = self._model
        return (
            Stage(
                BoundHook("input_fn", self._input(preprocess)),
                BoundHook(
                    "predict_fn",
                    (lambda item: predict(item, item.inputs, model))
                    if predict
                    else (lambda item: model(item.inputs)),
                ),
                BoundHook("output_fn", self._output(postprocess)),
            ),
        )

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        return None

    def _input(self, function: Callable[..., Any] | None) -> Callable[[Item], Any]:
        def call(item: Item) -> Any:
            body, content_type = received(item)
            if function is None:
                return default_input(body, content_type)
            return function(item, body, content_type)

        return call

    def _output(self, function: Callable[..., Any] | None) -> Callable[[Item], Any]:
        def call(item: Item) -> Any:
            accept = item.request.headers.get("accept", "")
            if not accept or accept == "*/*":
                accept = os.environ.get(_DEFAULT_ACCEPT, JSON)
            if function is None:
                return default_output(item.outputs, accept)
            context = ToolkitContext(self._context, self._model_dir, item.request)
            value = function(item, item.outputs, accept, context=context)
            if type(value) is CoroutineType:
                return awaited(value, accept, context)
            return answer(value, accept, context)

        async def awaited(coroutine: Any, accept: str, context: ToolkitContext) -> Reply:
            return answer(await coroutine, accept, context)

        def answer(value: Any, accept: str, context: ToolkitContext) -> Reply:
            """A body, or a (body, content type) pair; the type is the one that was asked for where none is named."""
            content_type = accepted(accept)
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
                value, content_type = value
            return Reply(
                value, context.content_type or content_type, context.status or 200, context.response_headers
            )

        return call

    def _function(self, role: str) -> Callable[..., Any] | None:
        """A function that takes the item and the toolkit's arguments."""
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        function = getattr(self._module, hook.name)
        if not _takes_context(hook):
            return lambda _item, *arguments, context=None: function(*arguments)

        def call(item: Item, *arguments: Any, context: ToolkitContext | None = None) -> Any:
            return function(
                *arguments, context or ToolkitContext(self._context, self._model_dir, item.request)
            )

        return call

    def _once(self, role: str) -> Any:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        context = ToolkitContext(self._context, self._model_dir, None)
        constants = {"model_dir": self._model_dir, "model": self._model, "context": context}
        return call_once(getattr(self._module, hook.name), hook, constants)

    def _default_model(self) -> Any:
        path = self._weights or _lone_weights(Path(self._model_dir))
        return torch.jit.load(path, map_location=self._context.device).eval()  # type: ignore[no-untyped-call]


def received(item: Item) -> tuple[str | bytes | Any, str]:
    """The body as the toolkit hands it over, and its content type.

    JSON, which TorchServe has parsed already, becomes text that means the same. Where the client named no type (and
    gRPC has none), or `curl -d` its form type, it is JSON if the bytes are. A form's fields and files (bytes) come as
    a dict.

    Returns:
        `str` for JSON and CSV, else bytes; the header as it was sent.
    """
    sent = item.request.content_type or ""
    kind = sent.partition(";")[0].strip().lower()
    if kind in ("", "application/x-www-form-urlencoded"):
        if isinstance(item.data, bytes):
            return item.data, "application/octet-stream"
        return json.dumps(item.data, ensure_ascii=False), JSON
    if kind.startswith("multipart/"):
        return _form(item), sent
    body = item.entry.get("body", b"")
    if not isinstance(body, bytes | bytearray | str):
        body = json.dumps(body, ensure_ascii=False)
    raw = body.encode() if isinstance(body, str) else bytes(body)
    return (raw.decode() if is_text(kind) else raw), sent


def _form(item: Item) -> Any:
    if not item.files:
        return item.data
    fields = item.data if isinstance(item.data, Mapping) else {"data": item.data}
    return {**fields, **{file.name: file.getvalue() for file in item.files}}


def _takes_context(hook: Hook) -> bool:
    return any(parameter.source == "context" for parameter in hook.parameters)


def _lone_weights(directory: Path) -> Path:
    usual = directory / "model.pt"
    if usual.is_file():
        return usual
    found = sorted(path for path in directory.iterdir() if path.suffix in (".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"without model_fn there must be one .pt or .pth file in model_dir; found: {names}"
        )
    return found[0]


USER_MODULE = SagemakerModule
