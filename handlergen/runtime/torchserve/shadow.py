"""A share of a model version's live requests with their answers, for `handlergen update --shadow` to send again.

The workers write each such request to a file of its own, which the reader removes. They write none while many files are
left, so nothing grows where nobody reads. A file is a JSON object with one of

- `"unsuitable"`: why the request cannot be sent again and its answer compared;
- `"grpc"`, `"headers"`, `"parts"` (name -> `[content type, base64]`), `"status"`, `"answer"` (base64).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codec.content import STREAM_WISH, is_compressed
from ..pipeline.backend import is_describe
from ..pipeline.hooks import Item

LONGEST_S = 600.0
_SETTINGS = "settings"
_MOST_FILES = 200
_LARGEST_FILE = 16 << 20
"""Bytes; the largest requests that TorchServe accepts by default have 6.5 MB."""
_OWN_HEADERS = frozenset(("authorization", "connection", "content-length", "expect", "host", "transfer-encoding"))
"""What a client sets anew for each request, and the token, which is not written to the disk."""


class RequestRecorder:
    """Writes a share of the requests that a worker answers.

    Args:
        directory: Shared by the workers of one model version of one server; made when recording begins.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._share = 0.0
        self._number = 0

    def begin(self, share: float, seconds: float) -> None:
        """Let all workers record this share of their requests for so many seconds; 0: stop, and remove all files.

        Raises:
            OSError: The directory cannot be written.
            ValueError: The share is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the share {share} is not between 0 and 1")
        shutil.rmtree(self.directory, ignore_errors=True)
        if share and seconds > 0:
            self.directory.mkdir(mode=0o700)
            settings = {"share": share, "until": time.time() + min(seconds, LONGEST_S)}
            self._write(_SETTINGS, json.dumps(settings))
        self.look()

    def look(self) -> bool:
        """Read what `begin` wrote in any of the workers; return whether requests are recorded."""
        self._share = 0.0
        try:
            settings = json.loads((self.directory / _SETTINGS).read_text("utf-8"))
            if time.time() < settings["until"]:
                self._share = float(settings["share"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return self._share > 0

    def record(self, items: Sequence[Item]) -> None:
        """Write a share of these answered requests; those that cannot be written are left out."""
        if not self._share:
            return
        for item in items:
            if is_describe(item) or random.random() >= self._share:  # noqa: S311 - a sample, no secret
                continue
            text = json.dumps(_recorded(item))
            try:
                if len(text) <= _LARGEST_FILE and self._files() < _MOST_FILES:
                    self._number += 1
                    self._write(f"{os.getpid()}-{self._number}.json", text)
            except OSError:  # the reader has removed the directory, or the disk is full
                return

    def _files(self) -> int:
        return sum(1 for _ in self.directory.iterdir())

    def _write(self, name: str, text: str) -> None:
        temporary = self.directory / f".{name}"
        temporary.write_text(text, "ascii")
        temporary.replace(self.directory / name)


def _recorded(item: Item) -> dict[str, Any]:
    reason = _unsuitable(item)
    if reason:
        return {"unsuitable": reason}
    reply, failure, properties = item.reply, item.failure, item.properties
    return {
        "grpc": item.request.is_grpc,
        "headers": {
            name: value
            for name, value in properties.items()
            if isinstance(value, str) and name.lower() not in _OWN_HEADERS | {"explain", "url_path"}
        },
        "parts": {name: [_type_of_part(name, properties), _base64(value)] for name, value in item.entry.items()},
        "status": failure.status if failure is not None else reply.status,
        "answer": _base64(b"" if failure is not None else reply.body),
    }


def _unsuitable(item: Item) -> str:
    """Return why a request cannot be sent again, or its answer not be compared; "" if it can."""
    content_type = (item.request.content_type or "").lower()
    is_kserves_address = "explain" in item.properties and "url_path" not in item.properties
    reasons = {
        "503, device or server busy": item.failure is not None and item.failure.status == 503,
        "stream": item.sent or STREAM_WISH in item.entry,
        "address below the model's, such as KServe's": bool(item.request.path) or is_kserves_address,
        "explanation": item.properties.get("explain") == "True",
        "compressed body": is_compressed(item.properties),
        "form-encoded body": content_type.startswith("application/x-www-form-urlencoded"),  # TorchServe changes it
        "body that TorchServe decoded": not all(isinstance(each, (bytes, bytearray)) for each in item.entry.values()),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _type_of_part(name: str, properties: Mapping[str, Any]) -> str:
    """Return the content type of a file of a form; "" for everything else. See `codec.content.decode`."""
    kind = properties.get(name)
    return str(kind.get("content-type") or "") if isinstance(kind, Mapping) else ""


def _base64(value: bytes | bytearray) -> str:
    return b64encode(value).decode()
