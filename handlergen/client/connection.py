"""HTTP to one address of the server: tokens, errors, one retry with a fresh token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from handlergen.client.key_file import KeyFile
from handlergen.errors import NoServer, RequestFailed, ServerError
from handlergen.runtime.error_body import error_text

#: TorchServe answers a wrong, expired or missing token with 400 and this type (InvalidKeyException.java).
_TOKEN_REFUSED = "InvalidKeyException"  # noqa: S105 - the name of an exception, no password


class Tokens:
    """The Authorization values for inference and management; renews what has expired."""

    def __init__(self, key_file: KeyFile | None, renew: Callable[[str, str], None]) -> None:
        self._key_file = key_file
        self._renew = renew

    def header(self, kind: str) -> dict[str, str]:
        """`{"Authorization": "Bearer …"}`, or nothing when the server wants no token."""
        if self._key_file is None or not self._key_file.path.exists():
            # Without the file the request goes out bare: "no server answers" and "it wants a token" both say
            # more than "there is no file".
            return {}
        if self._key_file.expired(kind):
            self._renew(kind, self._key_file.token("API"))
        return {"Authorization": f"Bearer {self._key_file.token(kind)}"}

    def advice(self) -> str:
        """What to do when the server refuses the token that `header` gave, or that there was none."""
        if self._key_file is None:
            return (
                "the server wants a token, but its configuration as it is read here says that it wants none"
            )
        if not self._key_file.path.exists():
            return (
                f"the server wants a token, and there is no {self._key_file.path}: start handlergen in the "
                "server's directory or pass --key-file"
            )
        return (
            f"the tokens in {self._key_file.path} are not this server's: it wrote its own into the directory that it "
            "was started in; pass that file with --key-file"
        )


class Connection:
    """Requests to one address with the token of one kind."""

    def __init__(self, http: httpx.Client, base_url: str, kind: str, tokens: Tokens) -> None:
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._kind = kind
        self._tokens = tokens

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Send and read the whole answer.

        Raises:
            ServerError: Nobody answers at the address.
            RequestFailed: The answer's status is 400 or above; its body is kept.
        """
        with self._sent(method, path, headers, options) as response:
            response.read()
            self._raise_for_status(response)
            return response

    @contextmanager
    def stream(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[httpx.Response]:
        """Send; the body is read by the caller as it arrives. Raises like `request`."""
        with self._sent(method, path, headers, options) as response:
            if response.status_code >= 400:
                response.read()
            self._raise_for_status(response)
            yield response

    @contextmanager
    def _sent(
        self, method: str, path: str, headers: Mapping[str, str] | None, options: dict[str, Any]
    ) -> Iterator[httpx.Response]:
        url = self._base_url + path
        # A caller's own Authorization wins over the key file.
        own = dict(headers or {})
        carried = (
            own
            if "authorization" in {name.lower() for name in own}
            else {**self._tokens.header(self._kind), **own}
        )
        try:
            with self._http.stream(method, url, headers=carried, **options) as response:
                yield response
        except httpx.ConnectError as error:
            raise NoServer(
                f"no server answers at {self._base_url}", hint="start one with `handlergen serve`"
            ) from error
        except httpx.TimeoutException as error:
            raise ServerError(
                f"no answer from {url} in time ({type(error).__name__})",
                hint="`handlergen status` shows how many requests wait; a longer timeout waits longer",
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(f"the connection to {url} broke: {error or type(error).__name__}") from error

    def _raise_for_status(self, response: httpx.Response) -> None:
        if response.status_code < 400:
            return
        kind, message = error_text(response.content)
        raise RequestFailed(
            f"{response.status_code}: {message or response.reason_phrase}",
            status=response.status_code,
            body=response.content,
            hint=self._tokens.advice() if kind == _TOKEN_REFUSED else None,
        )
