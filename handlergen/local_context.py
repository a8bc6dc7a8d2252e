"""The part of TorchServe's context that the runtime uses (ts/context.py), for requests of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from handlergen.local_stream import LocalOutlet


class LocalContext:
    """One batch.

    Args:
        request_ids: Of its requests.
        properties: Of each, as TorchServe gives them.
        outlet: Where chunks go; None keeps them for the body.

    Attributes:
        statuses, headers: Of the answers.
    """

    def __init__(
        self, request_ids: Sequence[str], properties: Sequence[dict[str, Any]], outlet: LocalOutlet | None
    ) -> None:
        self.request_ids = dict(enumerate(request_ids))
        self.request_processor = [_Processor(each) for each in properties]
        self.outlet = outlet
        self.statuses = [200] * len(properties)
        self.headers: list[dict[str, str]] = [{} for _ in properties]

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers[index]["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, index: int) -> None:
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[index][name] = value


class _Processor:
    def __init__(self, properties: dict[str, Any]) -> None:
        self._properties = properties

    def get_request_properties(self) -> dict[str, Any]:
        return self._properties
