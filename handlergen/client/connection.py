"""HTTP connections to one address of TorchServe: tokens from its key file, errors, token renewal.

TorchServe writes key_file.json into its working directory when it starts: one key each for inference and
management with an expiration time, and an API key that does not expire. TorchServe does not renew an expired key
by itself: a client with the API key requests `GET /token?type=...` on the management address, and TorchServe
writes the file again, in place (TokenAuthorization.java). A new key ends the old one at once.
"""

from __future__ import annotations

import fcntl
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from handlergen.client.tls import certificate_refused, no_tls, only_tls
from handlergen.errors import HandlergenError, NoServer, RequestFailed, ServerError
from handlergen.runtime.codec.errors import error_text
from handlergen.runtime.examples import BODY, Example

KEY_FILE = "key_file.json"
_EXPIRY_MARGIN_S = 1.0
_WRITING_S = 0.5
"""How long a reader waits for TorchServe to finish a key file that is not JSON yet."""
_NEVER = "9999-01-01T00:00:00Z"

#: TorchServe answers a wrong, expired or missing token with 400 and this type (InvalidKeyException.java).
_TOKEN_REFUSED = "InvalidKeyException"  # noqa: S105 - the name of an exception, no password
_ONLY_TLS = b"only accepts HTTPS requests"
"""TorchServe's answer, with status 403, to plain HTTP on an https address (ExtendedSSLHandler.java)."""


def read_key(path: Path, kind: str) -> dict[str, Any]:
    """Return `key` and `expiration time` for `inference`, `management` or `API` (which has only a key).

    Raises:
        ServerError: The file is missing, unreadable or not a key file.
    """
    try:
        entry: dict[str, Any] = _written(path)[kind]
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


def _written(path: Path) -> Any:
    """Return the JSON value of a file that another process may be writing. Raises ValueError, OSError."""
    deadline = time.monotonic() + _WRITING_S
    while True:
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@dataclass(frozen=True)
class Token:
    """A token of TorchServe's: `key` is sent as `Authorization: Bearer KEY`, until `ends` (seconds since the epoch)."""

    key: str
    ends: float

    def header(self) -> dict[str, str]:
        """Return the HTTP header, which is also gRPC's metadata."""
        return {"Authorization": f"Bearer {self.key}"}

    def lasts(self, seconds: float) -> bool:
        """Return whether the token is valid for this many more seconds."""
        return self.ends - seconds > time.time()


class Tokens:
    """Tokens for inference and management; renews those that have ended.

    The file is read for each request, because another program may have renewed a token. Of several threads and
    processes that find the same token ended, one renews it: each new token ends the one before.

    Args:
        key_file: None when the server requires no token.
        renew: Called with the kind of a token that has ended and the API key.
    """

    def __init__(self, key_file: Path | None, renew: Callable[[str, str], None]) -> None:
        self._key_file = key_file
        self._renew = renew
        self._renewing = threading.Lock()

    def header(self, kind: str, *, lasting_s: float = _EXPIRY_MARGIN_S) -> dict[str, str]:
        """Return `{"Authorization": "Bearer …"}`, or an empty dict when there is no token to send."""
        if self._key_file is None or not self._key_file.exists():
            # Without a key file the request is sent without a token: the errors "no server is listening" and "the
            # server requires a token" both help more than "no key file".
            return {}
        return self.token(self._key_file, kind, lasting_s=lasting_s).header()

    def token(self, path: Path, kind: str, *, lasting_s: float = _EXPIRY_MARGIN_S, refused: str = "") -> Token:
        """Return the key file's token, renewed unless it is valid for `lasting_s` seconds and is not the refused key.

        Raises:
            ServerError: There is no key file, or the server cannot be reached.
            RequestFailed: The server does not accept the file's API key.
        """
        found = _read_token(path, kind)
        if found.key != refused and found.lasts(lasting_s):
            return found
        with self._renewing, path.open("rb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            latest = _read_token(path, kind)
            if latest.key == found.key or not latest.lasts(lasting_s):
                self._renew(kind, read_key(path, "API")["key"])
                latest = _read_token(path, kind)
        return latest

    def instead_of(self, refused: Mapping[str, str], kind: str, error: RequestFailed) -> dict[str, str]:
        """Return the header to send after the server refused one: of the token that took its place.

        Raises:
            RequestFailed: `error`; there is no other token.
        """
        if self._key_file is None or "Authorization" not in refused:
            raise error
        try:
            return self.token(self._key_file, kind, refused=refused["Authorization"].removeprefix("Bearer ")).header()
        except (HandlergenError, OSError):
            raise error from None

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


def _read_token(path: Path, kind: str) -> Token:
    entry = read_key(path, kind)
    # A Java Instant in UTC. Python 3.10 cannot parse its nanoseconds and Z.
    ends = datetime.fromisoformat(f"{entry.get('expiration time', _NEVER)[:19]}+00:00")
    return Token(entry["key"], ends.timestamp())


class ApiConnection:
    """Requests to one address, with the token for one kind of API (`inference` or `management`).

    Args:
        tls_name: The name that an https server's certificate must have; "": the address's host.
    """

    def __init__(self, http: httpx.Client, base_url: str, kind: str, tokens: Tokens, tls_name: str = "") -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._kind = kind
        self._tokens = tokens
        self._extensions = {"sni_hostname": tls_name} if tls_name else {}

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request and read the whole response. A token that the server refuses is renewed once.

        Raises:
            NoServer: No server is listening.
            TlsError: The server's certificate is refused, or only one side uses TLS.
            ServerError: The host is unknown, or the response took too long.
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
        # The caller's own overrides the key file.
        token = {} if "authorization" in sent else self._tokens.header(self._kind)
        try:
            with ExitStack() as opened:
                for again in (False, True):
                    call = self._http.stream(
                        method, url, headers={**sent, **token}, extensions=self._extensions, **options
                    )
                    response = opened.enter_context(call)
                    refusal = self._refusal(response)
                    if refusal is None:
                        break
                    if again or error_text(refusal.body)[0] != _TOKEN_REFUSED:
                        raise refusal
                    token = self._tokens.instead_of(token, self._kind, refusal)
                yield response
        except httpx.ConnectError as error:
            raise self._not_connected(error) from error
        except httpx.ConnectTimeout as error:
            raise ServerError(
                f"timed out connecting to {self._base_url}",
                hint="the machine is unreachable or overloaded, or a firewall drops the connection",
            ) from error
        except httpx.TimeoutException as error:
            raise ServerError(
                f"timed out waiting for {url} ({type(error).__name__})",
                hint="`handlergen status` shows how many requests are queued; --timeout sets how long to wait",
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(f"the connection to {url} broke: {error or type(error).__name__}") from error

    def _refusal(self, response: httpx.Response) -> RequestFailed | None:
        """Return the error for a response with a status of 400 or above; else None."""
        if response.status_code < 400:
            return None
        response.read()
        if response.status_code == 403 and _ONLY_TLS in response.content:
            raise only_tls(self._base_url)
        kind, message = error_text(response.content)
        return RequestFailed(
            f"{response.status_code}: {message or response.reason_phrase}",
            status=response.status_code,
            body=response.content,
            hint=self._tokens.advice() if kind == _TOKEN_REFUSED else None,
        )

    def _not_connected(self, error: httpx.ConnectError) -> ServerError:
        """Return what a failed connection means: the cause is the exception at the end of httpx's chain."""
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        if isinstance(cause, ssl.SSLCertVerificationError):
            return certificate_refused(self._base_url, cause.verify_message)
        if isinstance(cause, ssl.SSLError):
            return no_tls(self._base_url)
        if isinstance(cause, socket.gaierror):
            return unknown_host(self._base_url, cause.strerror)
        return no_server(self._base_url, cause.strerror if isinstance(cause, OSError) else str(cause))


def no_server(address: str, reason: str | None) -> NoServer:
    """Return the error for a connection that was refused."""
    because = f": {reason}" if reason else ""
    return NoServer(f"no server answers at {address}{because}", hint="start one with `handlergen serve`")


def unknown_host(address: str, reason: str | None) -> ServerError:
    """Return the error for a host name without an address."""
    return ServerError(
        f"the host of {address} is unknown: {reason}", hint="check the host name in the server's configuration"
    )


def form_body(parts: Mapping[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return body and content type of a multipart form: name -> content type, empty for a plain field, and content."""
    files: list[tuple[str, Any]] = [
        (name, (name, content, mime) if mime else (None, content)) for name, (mime, content) in parts.items()
    ]
    form = httpx.Request("POST", "http://localhost", files=files)
    return form.read(), form.headers["content-type"]


def request_of(example: Example, *, over_grpc: bool = False) -> dict[str, Any]:
    """Return an example's request as the arguments of `Client.predict`, or of `Client.predict_grpc`."""
    if over_grpc:
        inputs = {name: part.body for name, part in example.parts.items()}
        return {"inputs": inputs if example.is_form else {"data": inputs[BODY]}}
    content, content_type = b"", example.content_type
    if example.is_form:
        content, content_type = form_body(
            {name: (part.content_type, part.body) for name, part in example.parts.items()}
        )
    else:
        content = example.parts[BODY].body
    return {"content": content, "content_type": content_type}
