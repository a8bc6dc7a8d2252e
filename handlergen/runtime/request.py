"""What hooks see of a request besides its data: `request`, `files`, and Truss's `Request`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, SupportsIndex, TypeVar, overload

_Default = TypeVar("_Default")

REQUEST_ID = "x-request-id"
"""The header, and over gRPC the input, in which a client names its request."""
_CLIENT_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:~=+@-]{0,127}")
"""Safe in a header, a log line, a file name and the comma-separated ids of a batch's span."""


class BadRequest(Exception):
    """The request cannot be read: the client gets this message, what is wrong and what to send, with status 400."""


class Headers(Mapping[str, str]):
    """The headers of a request. Lookup is case-insensitive; names are listed as they were sent."""

    __slots__ = ("_by_name",)

    def __init__(self, properties: Mapping[str, Any]) -> None:
        # TorchServe keeps one value for each spelling of a name; the last one counts.
        self._by_name = {name.lower(): (name, value) for name, value in properties.items() if isinstance(value, str)}

    def __getitem__(self, name: str) -> str:
        try:
            return self._by_name[name.lower()][1]
        except (KeyError, AttributeError):
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        # Without values: headers hold tokens, and a repr ends up in logs.
        return f"Headers({', '.join(self)})"


class UploadedFile(io.BytesIO):
    """A part of a request as a binary file, positioned at its start.

    Attributes:
        name: The part's name. TorchServe drops the file name that the client gave (NettyUtils.getFormData).
        content_type: As the client sent it, without parameters; None for a plain field and over gRPC.
    """

    def __init__(self, content: bytes | bytearray, name: str, content_type: str | None = None) -> None:
        super().__init__(content)
        self.name = name
        self.content_type = content_type

    @property
    def file(self) -> UploadedFile:
        """Return itself: Starlette's UploadFile has the binary file under this name."""
        return self

    @property
    def filename(self) -> str:
        """Return the part's name, under the name that Starlette's UploadFile has for it."""
        return str(self.name)

    def __repr__(self) -> str:
        size = "closed" if self.closed else f"{self.getbuffer().nbytes} bytes"
        return f"UploadedFile({self.name!r}, {self.content_type or 'no content type'}, {size})"

    # BytesIO's own pickling leaves the two attributes out; files may be sent to a predictor process.
    def __reduce__(self) -> tuple[Any, ...]:
        return UploadedFile, (self.getvalue(), self.name, self.content_type)


class Files(list[UploadedFile]):
    """The files of a request in the order they were sent: `files[0]`, `files["name"]`."""

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> UploadedFile: ...
    @overload
    def __getitem__(self, key: slice) -> Files: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> UploadedFile | Files:
        if isinstance(key, str):
            found = self.get(key)
            if found is None:
                sent = ", ".join(repr(file.name) for file in self) or "none"
                raise BadRequest(f"The request has no file named {key!r} (files sent: {sent})")
            return found
        if isinstance(key, slice):
            return Files(super().__getitem__(key))
        return super().__getitem__(key)

    @overload
    def get(self, name: str) -> UploadedFile | None: ...
    @overload
    def get(self, name: str, default: _Default) -> UploadedFile | _Default: ...
    def get(self, name: str, default: Any = None) -> Any:
        """Return the file of that name, or `default`."""
        return next((file for file in self if file.name == name), default)

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str):
            return any(file.name == item for file in self)
        return super().__contains__(item)


def with_files(data: Any, files: Files | None) -> Any:
    """Return the fields of a form with its files among them, by name; other data unchanged."""
    return {**data, **{file.name: file for file in files}} if files and isinstance(data, Mapping) else data


class Request:
    """One request, without its body.

    Attributes:
        torchserve_id: TorchServe's id of the request, which no other request has; the answer's `x-request-id`.
        metadata: A dict for the hooks' own use, from `preprocess` to `postprocess` of the same request.
    """

    __slots__ = ("_headers", "_id", "_metadata", "_properties", "torchserve_id")

    def __init__(self, properties: Mapping[str, Any], torchserve_id: str) -> None:
        self.torchserve_id = torchserve_id
        self._id = ""
        self._properties = properties
        self._headers: Headers | None = None
        self._metadata: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The client's `x-request-id` if it sent a valid one, else TorchServe's id. Clients may repeat theirs."""
        if not self._id:
            sent = self.headers.get(REQUEST_ID) or self._properties.get(REQUEST_ID)
            if isinstance(sent, (bytes, bytearray)):  # over gRPC, see `torchserve.frontend.received`
                sent = sent.decode("latin-1")
            valid = isinstance(sent, str) and _CLIENT_ID.fullmatch(sent)
            self._id = str(sent) if valid else self.torchserve_id
        return self._id

    @property
    def full_id(self) -> str:
        """What the log and spans call the request: its id; where the client chose it, with TorchServe's, `ID/ID`."""
        return self.id if self.id == self.torchserve_id else f"{self.id}/{self.torchserve_id}"

    @property
    def headers(self) -> Headers:
        """The request's headers; lookup is case-insensitive. Empty over gRPC."""
        if self._headers is None:
            self._headers = Headers(self._properties)
        return self._headers

    @property
    def metadata(self) -> dict[str, Any]:
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def content_type(self) -> str | None:
        """The request's content type with its parameters, as the client sent it; None if it sent none."""
        return self.headers.get("content-type")

    @property
    def path(self) -> str:
        """The path after the version: `extra` of `/predictions/m/1.0/extra`; else ""."""
        return self.headers.get("url_path", "")

    @property
    def is_grpc(self) -> bool:
        """True over gRPC: TorchServe passes no headers there, and always some over REST."""
        return not any(isinstance(value, str) for value in self._properties.values())

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.content_type or 'no content type'})"


class Url:
    """The request's URL as far as it is known: `/predictions` and the path after the model's name and version."""

    query = ""  # TorchServe drops it

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return self.path


class HttpRequest:
    """One request, with the interface of `starlette.requests.Request`.

    Attributes:
        state: Attributes for the hooks' own use, from `preprocess` to `postprocess` of the same request.
    """

    method = "POST"
    client = None

    def __init__(self, request: Request, entry: Mapping[str, Any]) -> None:
        self._request = request
        self._entry = entry
        self.state = SimpleNamespace()
        self.query_params: dict[str, str] = {}
        self.path_params: dict[str, str] = {}
        pairs = (pair.partition("=") for pair in request.headers.get("cookie", "").split(";") if "=" in pair)
        self.cookies: dict[str, str] = {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def id(self) -> str:
        """The request's id, as `Request.id`; Starlette's Request has none."""
        return self._request.id

    @property
    def headers(self) -> Headers:
        """The request's headers; lookup is case-insensitive. Empty over gRPC."""
        return self._request.headers

    @property
    def url(self) -> Url:
        extra = self._request.path.strip("/")
        return Url(f"/predictions/{extra}" if extra else "/predictions")

    async def body(self) -> bytes:
        """Return the content; of a form, its fields and files as JSON; of gRPC, its input `data`, or all inputs.

        Where TorchServe has decoded JSON or text, the bytes are equivalent to those that the client sent.
        """
        content = self._entry.get("body", self._entry.get("data", self._entry))
        if isinstance(content, (bytes, bytearray)):
            return bytes(content)
        if isinstance(content, str):
            return content.encode("utf-8", "surrogatepass")
        return json.dumps(content, ensure_ascii=False, default=_text).encode("utf-8", "surrogatepass")

    async def json(self) -> Any:
        """Return the content as a JSON value.

        Raises:
            ValueError: It is not JSON.
        """
        return json.loads(await self.body())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the content in one piece: TorchServe has read it all."""
        yield await self.body()

    async def is_disconnected(self) -> bool:
        """Return False: TorchServe does not report it."""
        return False

    def __repr__(self) -> str:
        return f"HttpRequest({self._request.id})"


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, (bytes, bytearray)) else str(value)
