"""What to do about a refused request: hints that need a look at the server, or at its log."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from handlergen.cli.given_data import HOW_TO_QUOTE
from handlergen.configuration import handlergen_command
from handlergen.errors import HandlergenError, RequestFailed
from handlergen.runtime.failures import in_the_log
from handlergen.settings import shown

if TYPE_CHECKING:
    from handlergen.client import Client


_TOO_LARGE = ("RST_STREAM", "Sent message larger than max")
"""Of a request over gRPC: what the server's ending of the stream is called, and what the client's own limit."""


@contextmanager
def advised(client: Client, config: Path, name: str, *, data: str | None = None) -> Iterator[None]:
    """Give a request to model `name` that fails the hint of what to do next.

    Args:
        data: The JSON text that was sent, if that is what was sent.
    """
    try:
        yield
    except RequestFailed as error:
        if error.hint is None:
            error.hint = _hint(error, client, config, name, data)
        raise


def _hint(error: RequestFailed, client: Client, config: Path, name: str, data: str | None) -> str | None:
    _, logged, request_id = error.message.partition(in_the_log(""))
    if logged:
        return _where_it_is_logged(config, request_id)
    if error.status == 413 or any(text in error.message for text in _TOO_LARGE):
        return (
            f"the server takes requests of up to {client.settings.max_request_size:,} bytes: max_request_size in "
            f"{shown(config)}, written by `handlergen config --max-request-size`"
        )
    if data is not None and "is not valid JSON" in error.message:
        return HOW_TO_QUOTE
    with suppress(HandlergenError):  # the management address may be out of reach
        return _of_the_model(error, client, config, name)
    return None


def _of_the_model(error: RequestFailed, client: Client, config: Path, name: str) -> str | None:
    if error.status == 404:
        return _registered(client, config, name)
    if "has no worker" in error.message:
        return _no_worker(client, config, name)
    if "Worker died" in error.message:  # WorkerThread.java: it ended while it had this request, or before
        return f"`{handlergen_command('status', config)}` shows the workers, and why one could not load the model"
    return None


def _where_it_is_logged(config: Path, request_id: str) -> str | None:
    from handlergen.server import log_directory

    log = log_directory(config.parent) / "model_log.log"
    return f"grep -A 20 {request_id} {shlex.quote(shown(log))}" if log.is_file() else None


def _registered(client: Client, config: Path, name: str) -> str:
    models = client.models()
    if name in models:
        versions = ", ".join(status.version for status in client.status() if status.name == name)
        return f"{name} is there in version {versions}"
    if not models:
        archive = "`handlergen archive SOURCE` makes an archive; the server loads it when it starts anew"
        return f"the server has no models: {archive}"
    near = difflib.get_close_matches(name, models, n=1)
    if near:
        return f"did you mean {near[0]}? The server has: {', '.join(models)}"
    return (
        f"the server has: {', '.join(models)}. An archive that came later is loaded after "
        f"`{handlergen_command('stop', config)}` and `{handlergen_command('serve', config)}`"
    )


def _no_worker(client: Client, config: Path, name: str) -> str:
    if client.describe(name).min_workers == 0:
        return f"it was scaled to none: `{handlergen_command(f'scale {name} --workers 1', config)}`"
    return f"`{handlergen_command('status', config)}` says why its workers do not start"
