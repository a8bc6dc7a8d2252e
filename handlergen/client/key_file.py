"""Tokens from TorchServe's key_file.json.

TorchServe writes the file into its working directory when it starts: a key each for inference and management
with an expiration time, and an API key that has none. An expired key is not renewed by itself; whoever holds
the API key asks `GET /token?type=...` on the management address and the file is written anew
(TokenAuthorization.java).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from handlergen.errors import ServerError

KEY_FILE = "key_file.json"
EXPIRY_MARGIN_S = 1.0


class KeyFile:
    """Reads the file afresh for each question: it is tiny, and another program may have renewed a key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def token(self, kind: str) -> str:
        """The key for `inference`, `management` or `API`.

        Raises:
            ServerError: The file is missing, unreadable or not such a file.
        """
        return str(self._entry(kind)["key"])

    def expired(self, kind: str, *, now: Callable[[], float] | None = None) -> bool:
        """Whether the key's time is up (or will be within a second)."""
        text = self._entry(kind).get("expiration time")
        if text is None:
            return False
        seconds = now() if now else datetime.now(timezone.utc).timestamp()
        return _instant(str(text)) - EXPIRY_MARGIN_S <= seconds

    def _entry(self, kind: str) -> dict[str, Any]:
        try:
            entry = json.loads(self.path.read_text("utf-8"))[kind]
            entry["key"]
        except FileNotFoundError:
            raise ServerError(
                f"no key file at {self.path}",
                hint="TorchServe writes it into the directory it was started in; is the server running? "
                "Name another file with --key-file.",
            ) from None
        except OSError as error:
            raise ServerError(f"the key file {self.path} cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(
                f"{self.path} is not a key file of TorchServe (no {kind} key)",
                hint=f"TorchServe writes one, {KEY_FILE}, into the directory that it is started in",
            ) from error
        assert isinstance(entry, dict)
        return entry


def _instant(text: str) -> float:
    """Seconds since the epoch of a Java Instant: nanoseconds and a Z, which Python 3.10 does not read."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    return moment + (float(f"0.{fraction}") if fraction else 0.0)
