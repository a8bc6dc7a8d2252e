"""HTTP connections to one address of TorchServe: tokens from its key file, errors, token renewal.

TorchServe writes key_file.json into its working directory when it starts: one key each for inference and
management with an expiration time, and an API key that does not expire. TorchServe does not renew an expired key
by itself: a client with the API key requests `GET /token?type=...` on the management address, and TorchServe
writes the file again (TokenAuthorization.java).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from handlergen.errors import NoServer, RequestFailed, ServerError
from handlergen.runtime.codec.errors import error_text

KEY_FILE = "key_file.json"
_EXPIRY_MARGIN_S = 1.0
_NEVER = "9999-01-01T00:00:00Z"

#: TorchServe answers a wrong, expired or missing token with 400 and this type (InvalidKeyException.java).
_TOKEN_REFUSED = "InvalidKeyException"  # noqa: S105 - the name of an exception, no password


def read_key(path: Path, kind: str) -> dict[str, Any]:
    """Return `key` and `expiration time` for `inference`, `management` or `API` (which has only a key).

    Raises:
        ServerError: The file is missing, unreadable or not a key file.
    """
    try:
        entry: dict[str, Any] = json.loads(path.read_text("utf-8"))[kind]
        entry["key"]
    except FileNotFoundError:
        raise ServerError(
            f"no key file at {path}",
            hint="TorchServe writes it into the directory it was started in; is the server running? "
            "Name another file with --key-file.",
        ) from None
    except OSError as error:
        raise ServerError(f"the key file {path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{path} is not a TorchServe key file (no {kind} key)",
            hint=f"TorchServe writes {KEY_FILE} into the directory it was started in",
        ) from error
    return entry


class Tokens:
    """Authorization headers for inference and management; renews expired tokens.

    The file is read for each header, because another program may have renewed a key.

    Args:
        key_file: None when the server requires no token.
        renew: Called with the kind of an expired token and the API key.
    """

    def __init__(self, key_file: Path | None, renew: Callable[[str, str], None]) -> None:
        self._key_file = key_file
        self._renew = renew

    def header(self, kind: str) -> dict[str, str]:
        """Return `{"Authorization": "Bearer …"}`, or an empty dict when there is no token to send."""
        path = self._key_file
        if path is None or not path.exists():
            # Without a key file the request is sent without a token: the errors "no server is listening" and "the
            # server requires a token" both help more than "no key file".
            return {}
        entry = read_key(path, kind)
        # A Java Instant in UTC. Python 3.10 cannot parse its nanoseconds and Z.
        instant = f"{entry.get('expiration time', _NEVER)[:19]}+00:00"
        if datetime.fromisoformat(instant).timestamp() - _EXPIRY_MARGIN_S <= time.time():
            self._renew(kind, read_key(path, "API")["key"])
            entry = read_key(path, kind)
        return {"Authorization": f"Bearer {entry['key']}"}

    def advice(self) -> str:
        """Return what to do when the server refuses the token, or the lack of one."""
        if self._key_file is None:
            return "the server requires a token, but the configuration that this client read turns tokens off"
        if not self._key_file.exists():
            return (
                f"the server requires a token, and there is no {self._key_file}: run handlergen in the server's "
                "directory or pass --key-file"
            )
        return (
            f"the tokens in {self._key_file} belong to another server: TorchServe writes {KEY_FILE} into the "
            "directory it was started in; pass that file with --key-file"
        )


class ApiConnection:
    """Requests to one address, with the token for one kind of API (`inference` or `management`)."""

    def __init__(self, http: httpx.Client, base_url: str, kind: str, tokens: Tokens) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._kind = kind
        self._tokens = tokens

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request and read the whole response.

        Raises:
            ServerError: No server is listening, or the response took too long.
            RequestFailed: The response's status is 400 or above; the error keeps the body.
        """
        with self.stream(method, path, headers=headers, **options) as response:
            response.read()
            return response

    @contextmanager
    def stream(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[httpx.Response]:
        """Send a request; the caller reads the body as it arrives. Raises like `request`."""
        url = self._base_url + path
        sent = httpx.Headers(headers)
        if "authorization" not in sent:  # the caller's own overrides the key file
            sent.update(self._tokens.header(self._kind))
        try:
            with self._http.stream(method, url, headers=sent, **options) as response:
                if response.status_code >= 400:
                    response.read()
                    kind, message = error_text(response.content)
                    raise RequestFailed(
                        f"{response.status_code}: {message or response.reason_phrase}",
                        status=response.status_code,
                        body=response.content,
                        hint=self._tokens.advice() if kind == _TOKEN_REFUSED else None,
                    )
                yield response
        except httpx.ConnectError as error:
            raise NoServer(
                f"no server answers at {self._base_url}", hint="start one with `handlergen serve`"
            ) from error
        except httpx.TimeoutException as error:
            raise ServerError(
                f"timed out waiting for {url} ({type(error).__name__})",
                hint="`handlergen status` shows how many requests are queued; --timeout sets how long to wait",
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(f"the connection to {url} broke: {error or type(error).__name__}") from error
