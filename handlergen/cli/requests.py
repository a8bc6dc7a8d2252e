"""Requests on the command line: data, fields and headers, and hints about requests that the server refused."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlergen.errors import HandlergenError, RequestFailed
from handlergen.project.settings import shown
from handlergen.runtime.codec.errors import logged_request_id
from handlergen.server.configuration import handlergen_command

if TYPE_CHECKING:
    from handlergen.client import Client

HOW_TO_QUOTE = """quote JSON for the shell: '{"x": 1}'; JSON text needs quotes of its own: '"text"'"""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")  # RFC 9110, 5.5, without obsolete characters
_BODY_HEADERS = ("content-length", "transfer-encoding")

_TOO_LARGE = ("RST_STREAM", "Sent message larger than max")
"""Messages about a gRPC request that is too large: from the server, which resets the stream, and from the client."""


def option_for(text: str) -> str:
    """Return the option that sends a text: `--file PATH` for an existing file's name, else `--data JSON`."""
    path = text.removeprefix("@")
    with suppress(OSError, ValueError):  # too long for a name, or a zero byte
        if Path(path).is_file():
            return f"--file {shlex.quote(path)}"
    return f"--data {shlex.quote(text)}"


def refuse_file_name(text: str) -> None:
    """Refuse the name of an existing file where JSON is expected, the most common mistake in a request.

    Raises:
        click.UsageError: The message says how to send the file.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        option = option_for(text)
        if option.startswith("--file"):
            raise click.UsageError(
                f"{text} is not JSON but the name of a file. To send its contents: {option}"
            ) from None


def field_of(text: str) -> tuple[str, str | Path]:
    """Parse `NAME=VALUE` or `NAME=@PATH`; return the name, and the value or the absolute path."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--field requires NAME=VALUE or NAME=@PATH, not {text!r}")
    if any("\ud800" <= character <= "\udfff" for character in name):  # PEP 383
        raise click.UsageError(f"a field's name must be UTF-8, not {name!r}")
    if not value.startswith("@"):
        return name, value
    path = Path(value[1:])
    if not path.is_file():
        raise HandlergenError(f"there is no file {path}", hint=f"--field {name}=@PATH sends a file")
    return name, path.absolute()


def headers_of(texts: Iterable[str]) -> dict[str, str]:
    """Parse headers of the form `NAME:VALUE`.

    Raises:
        click.UsageError: An HTTP request cannot have such a header.
    """
    headers = {}
    for text in texts:
        name, colon, value = (part.strip() for part in text.partition(":"))
        if not name or not colon:
            raise click.UsageError(f"--header requires NAME:VALUE, not {text!r}")
        if not _HEADER_NAME.fullmatch(name):
            raise click.UsageError(f"--header: {name!r} is not a valid header name (RFC 9110, 5.6.2)")
        if not _HEADER_VALUE.fullmatch(value):
            raise click.UsageError(
                f"--header: the value {value!r} of {name} is not printable ASCII; encode it (percent-encoding, base64) "
                "and decode it in the module"
            )
        if name.lower() in _BODY_HEADERS:
            raise click.UsageError(f"--header: {name} follows from the body and cannot be set")
        headers[name] = value
    return headers


@contextmanager
def advised(client: Client, config: Path, name: str, *, data: str | None = None) -> Iterator[None]:
    """Add a hint to the error of a failed request to model `name`; `data` is its JSON text, if it was JSON."""
    try:
        yield
    except RequestFailed as error:
        if error.hint is None:
            error.hint = _hint(error, client, config, name, data)
        raise


def _hint(error: RequestFailed, client: Client, config: Path, name: str, data: str | None) -> str | None:
    request_id = logged_request_id(error.message)
    if request_id is not None:
        from handlergen.server.lifecycle import log_directory

        log = log_directory(config.parent) / "model_log.log"
        return f"`{handlergen_command(f'logs {request_id}', config)}` shows why" if log.is_file() else None
    if error.status == 413 or any(text in error.message for text in _TOO_LARGE):
        return (
            f"the server accepts requests of up to {client.settings.max_request_size:,} bytes: max_request_size in "
            f"{shown(config)}, set by `handlergen config --max-request-size`"
        )
    if data is not None and "is not valid JSON" in error.message:
        return HOW_TO_QUOTE
    with suppress(HandlergenError):  # the management address may be unreachable
        return _of_the_model(error, client, config, name)
    return None


def _of_the_model(error: RequestFailed, client: Client, config: Path, name: str) -> str | None:
    if error.status == 404:
        return _of_unknown_model(client, config, name)
    status = f"`{handlergen_command('status', config)}` shows"
    if "Worker died" in error.message:  # WorkerThread.java: the worker died during this request, or before
        return f"{status} the workers, and why a worker could not load the model"
    if "has no worker" not in error.message:
        return None
    model = client.describe(name)
    if model.ready_workers:  # TorchServe says the same of both (ApiUtils.java)
        scale = handlergen_command(f"scale {name} --workers N", config)
        return (
            f"its workers are READY, so its queue was full: retry the request. More fit after `{scale}`, or with a "
            "larger queue_size in handlergen.yaml"
        )
    if model.min_workers:
        return f"{status} why its workers do not start"
    return f"the model was scaled to 0 workers: `{handlergen_command(f'scale {name} --workers 1', config)}`"


def _of_unknown_model(client: Client, config: Path, name: str) -> str:
    models = client.models()
    if name in models:
        versions = ", ".join(status.version for status in client.status() if status.name == name)
        return f"the server has {name} in version {versions}"
    if not models:
        return "the server has no models: create one with `handlergen archive SOURCE`, then restart the server"
    near = difflib.get_close_matches(name, models, n=1)
    if near:
        return f"did you mean {near[0]}? The server has: {', '.join(models)}"
    return (
        f"the server has: {', '.join(models)}. To load an archive that was added later: "
        f"`{handlergen_command('stop', config)}`, then `{handlergen_command('serve', config)}`"
    )
