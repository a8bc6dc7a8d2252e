"""What the toolkit's functions receive as `context`: the parts of TorchServe's that they use."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .context import Context
from .requests import Request


class ToolkitContext:
    """TorchServe's context in its words, for one request; handlergen's own attributes too (`context.device`).

    Setting a status, a content type or headers works in `output_fn`, whose answer they go with. An index, which
    TorchServe needs to tell the requests of a batch apart, is ignored: each call has one request.

    Attributes:
        system_properties: `model_dir` and `gpu_id` (None on the CPU).
        manifest: `{"model": {"modelName": ..., "modelVersion": ...}}`.
        request_processor: One, with `get_request_property` and `get_request_properties`.
        status, content_type, response_headers: What was set.
    """

    def __init__(self, context: Context, model_dir: str, request: Request | None) -> None:
        self._context = context
        self._request = request
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": context.device.index if context.device.type == "cuda" else None,
        }
        self.manifest = {
            "model": {"modelName": context.model_name, "modelVersion": context.model_version},
        }
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
        """A header, or None; `key` without regard to case."""
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
