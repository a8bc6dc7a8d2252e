"""What a Truss model's hooks receive for a parameter annotated `Request`: the parts of Starlette's that apply.

TorchServe hands a worker headers and content, nothing else: no method, no query string, no client address, and no
word when a client goes away. So `method` is always POST, `query_params` is empty, `client` is None and
`is_disconnected` is False. Starlette itself is not needed, and `isinstance(request, Request)` is False.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

from .requests import Headers, Request


class Url:
    """The request's address as far as it is known.

    Attributes:
        path: `/predictions` and what followed the model's name and version.
        query: Always empty: TorchServe drops it.
    """

    query = ""

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return self.path


class HttpRequest:
    """One request, in the words of `starlette.requests.Request`.

    Attributes:
        state: Attributes of the hooks' own, from `preprocess` to `postprocess` of the same request.
    """

    method = "POST"
    client = None

    def __init__(self, request: Request, entry: Mapping[str, Any]) -> None:
        self._request = request
        self._entry = entry
        self.state = SimpleNamespace()
        self.query_params: dict[str, str] = {}
        self.path_params: dict[str, str] = {}
        self.cookies: dict[str, str] = _cookies(request.headers.get("cookie", ""))

    @property
    def id(self) -> str:
        """TorchServe's id of the request; Starlette has none."""
        return self._request.id

    @property
    def headers(self) -> Headers:
        """Looked up without regard to case. Empty over gRPC."""
        return self._request.headers

    @property
    def url(self) -> Url:
        extra = self._request.path.strip("/")
        return Url(f"/predictions/{extra}" if extra else "/predictions")

    async def body(self) -> bytes:
        """The content. JSON and text have been decoded by TorchServe: these are bytes that mean the same.

        Of a form, its fields and files as JSON; gRPC's entry `data`, or its whole map.
        """
        content = self._entry.get("body", self._entry.get("data", self._entry))
        if isinstance(content, bytes | bytearray):
            return bytes(content)
        if isinstance(content, str):
            return content.encode("utf-8", "surrogatepass")
        return json.dumps(content, ensure_ascii=False, default=_text).encode("utf-8", "surrogatepass")

    async def json(self) -> Any:
        """The content as a JSON value.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(await self.body())

    async def stream(self) -> AsyncIterator[bytes]:
        """The content, in one piece: TorchServe has read it all."""
        yield await self.body()

    async def is_disconnected(self) -> bool:
        """Always False: TorchServe does not tell."""
        return False

    def __repr__(self) -> str:
        return f"HttpRequest({self._request.id})"


def _cookies(header: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in header.split(";") if "=" in pair)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
