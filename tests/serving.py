"""TorchServe's side of a worker, for tests without TorchServe."""

from __future__ import annotations

from typing import Any


class ServerContext:
    """TorchServe's context of a batch (ts/context.py), as far as the runtime uses it.

    Strict about what would kill TorchServe's worker (ts/protocol/otf_message_handler.py). `outlet`, where a test sets
    one, receives the chunks of streamed answers.
    """

    class _Processor:
        def __init__(self, properties: dict[str, Any]) -> None:
            self._properties = properties

        def get_request_properties(self) -> dict[str, Any]:
            return self._properties

    outlet: Any = None

    def __init__(self, properties: list[dict[str, Any]]) -> None:
        self.request_ids = {index: f"r{index}" for index in range(len(properties))}
        self.request_processor = [self._Processor(each) for each in properties]
        self.statuses = [200] * len(properties)
        self.headers: list[dict[str, str]] = [{} for _ in properties]

    def set_response_content_type(self, index: int, value: str) -> None:
        self.set_response_header(index, "content-type", value)

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        assert 200 <= code <= 599
        assert phrase.isascii()
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        assert type(name) is type(value) is str
        assert name.isascii()
        assert value.isascii()
        assert "\n" not in name + value
        self.headers[index][name] = value
