"""Bodies with a Content-Encoding (RFC 9110, section 8.4): gzip and deflate, which TorchServe hands over compressed."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Mapping
from typing import Any

from ..request import BadRequest, Headers
from .content import FORM, MULTIPART, parse_type

LIMIT_VARIABLE = "TS_MAX_REQUEST_SIZE"
"""Has the server's max_request_size; `handlergen serve` sets it."""
_LIMIT = 6_553_500  # TorchServe's default (ConfigManager.java)


class UnsupportedEncoding(BadRequest):
    """The body has a Content-Encoding that cannot be read."""

    status_code = 415
    headers = {"Accept-Encoding": "gzip, deflate"}  # noqa: RUF012 - never changed


class BodyTooLarge(BadRequest):
    """The body is larger than the server's limit once it is decompressed."""

    status_code = 413


def decompressed(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request's parts with the body decompressed; never more of it than the server takes uncompressed.

    Args:
        entry, properties: As for `decode`.

    Raises:
        BadRequest: The body is not what its Content-Encoding says.
        BodyTooLarge: It has more bytes than the server's max_request_size once it is decompressed.
        UnsupportedEncoding: The encoding is unknown, or TorchServe has read the compressed body as a form.
    """
    headers = Headers(properties)
    codings = [coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if not codings:
        return entry
    known = ("gzip", "x-gzip", "deflate")
    unknown = next((coding for coding in codings if coding not in known), None)
    if unknown is not None:
        raise UnsupportedEncoding(
            f"The Content-Encoding {unknown[:40]!r} is not supported. Send the body with gzip or "
            "deflate, or uncompressed"
        )
    body = entry.get("body")
    if parse_type(headers.get("content-type", ""))[0] in (FORM, MULTIPART) or not isinstance(body, (bytes, bytearray)):
        raise UnsupportedEncoding(
            "A form with a Content-Encoding is not supported, because TorchServe reads forms without decompressing "
            "them. Send the form uncompressed, or send JSON with its own type: Content-Type: application/json"
        )
    limit = int(os.environ.get(LIMIT_VARIABLE) or _LIMIT)
    for coding in reversed(codings):
        body = _decompressed(body, coding, limit)
    return {**entry, "body": body}


def _decompressed(body: bytes | bytearray, coding: str, limit: int) -> bytes:
    try:
        if coding == "deflate":
            # Many clients leave out the zlib header (RFC 9110, 8.4.1.2, note).
            has_header = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
            stream = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
            whole = stream.decompress(body, limit + 1)
            if not stream.eof and len(whole) <= limit:
                raise EOFError("it ends too early")
        else:
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
                whole = file.read(limit + 1)
    except (zlib.error, OSError, EOFError) as error:
        raise BadRequest(f"The body is not valid {coding}, which its Content-Encoding names: {error}") from error
    if len(whole) > limit:
        raise BodyTooLarge(
            f"The decompressed body is larger than the {limit} bytes that the server accepts (max_request_size)"
        )
    return whole
