"""Encoding: from a hook's answer to bytes, content type, status and headers (contract, section 5)."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .content import JSON, NO_HEADERS, OCTETS, PNG, TEXT, header_pairs, header_value, is_status, safe_headers
from .errors import EncodeError
from .json import ARRAY_CONVERTERS, converter_of, dump

_PLAIN = frozenset((dict, list, str, int, float, bool, type(None), tuple))
_PNG_MODES = frozenset(("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"))
_BODILESS = frozenset((204, 205, 304))


@dataclass(slots=True)
class Encoded:
    """An encoded answer.

    Attributes:
        body: The bytes to send.
        content_type: ASCII.
        status: HTTP status, 200 to 599.
        headers: ASCII, without the content type.
        verbatim: The hook made the body itself, which may not match the content type.
    """

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    verbatim: bool = field(default=False, compare=False)


def encode(answer: Any, *, nan: str = "null", limit: int | None = None) -> Encoded:
    """Encode a hook's answer.

    Args:
        answer: JSON-like data (dataclasses, pydantic models, arrays, tensors and so on at any depth), bytes, a
            PIL image, or an object with `status_code` and `body`.
        nan: Encode a NaN or infinity as `null`, or refuse it (`error`).
        limit: The most bytes that the server can send.

    Raises:
        EncodeError: The answer cannot be sent; names the type and its place in the answer, or the sizes.
    """
    if type(answer) in _PLAIN or converter_of(answer) in ARRAY_CONVERTERS:
        encoded = Encoded(dump(answer, nan), JSON)
    else:
        encoded = _special(answer, nan)
    if limit is not None and len(encoded.body) > limit:
        raise EncodeError(
            f"The answer has {len(encoded.body)} bytes; the server sends at most {limit} (max_response_size)"
        )
    return encoded


def _special(answer: Any, nan: str) -> Encoded:
    if isinstance(answer, bytes | bytearray | memoryview):
        return Encoded(bytes(answer), OCTETS)
    images = sys.modules.get("PIL.Image")
    if images is not None and isinstance(answer, images.Image):
        return Encoded(_png(answer), PNG)
    if not isinstance(answer, type) and _is_response(answer):
        return _response(answer, nan)
    return Encoded(dump(answer, nan), JSON)


def _png(image: Any) -> bytes:
    target = io.BytesIO()
    try:
        # PNG has neither CMYK, YCbCr, LAB and HSV nor floating-point pixels.
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(target, "PNG")
    except Exception as error:
        raise EncodeError(f"The image (mode {image.mode}) cannot be written as PNG") from error
    return target.getvalue()


def _is_response(answer: Any) -> bool:
    status = getattr(answer, "status_code", None)
    is_number = isinstance(status, int) and not isinstance(status, bool)
    return is_number and hasattr(answer, "body") and not callable(answer.body)


def _response(answer: Any, nan: str) -> Encoded:
    """Encode an answer that has a status and headers of its own, as Starlette's responses do."""
    if not is_status(answer.status_code):
        raise EncodeError(f"The answer's status {int(answer.status_code)} is not one of 200 to 599")
    status = int(answer.status_code)
    try:
        headers = getattr(answer, "headers", None)
        kept = safe_headers(headers)
        declared = next((value for name, value in header_pairs(headers) if name.lower() == "content-type"), None)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"The headers of {type(answer).__name__} are not a mapping of str to str") from error
    body = answer.body
    if body is None or status in _BODILESS:
        content, usual = b"", TEXT
    elif isinstance(body, str):
        content, usual = body.encode("utf-8", "replace"), TEXT
    elif isinstance(body, bytes | bytearray | memoryview):
        content, usual = bytes(body), OCTETS
    else:
        inner = encode(body, nan=nan)
        content, usual = inner.body, inner.content_type
    declared = declared or getattr(answer, "media_type", None) or getattr(answer, "content_type", None)
    return Encoded(content, (header_value(declared) if declared else "") or usual, status, kept, verbatim=True)
