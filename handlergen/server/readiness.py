"""Wait until a starting server is ready, or report why it failed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from handlergen.client import Client, ModelStatus
from handlergen.client.connection import KEY_FILE
from handlergen.errors import HandlergenError, ModuleFailed, ServerError
from handlergen.project.settings import shown
from handlergen.server.launching import ServerState
from handlergen.server.model_store import ModelVersion
from handlergen.server.properties import ServerSettings
from handlergen.server.worker_log import load_failures, registration_failures, silent_deaths

_POLL_S = 0.25
_LAST_LINES = 30
_DEATHS = 3

Progress = Callable[[Sequence[ModelStatus]], None]


class ServerLogs:
    """The text that a server appends to its logs from now on.

    Args:
        directory: Directory of model_log.log and ts_log.log; the files need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.model_log = directory / "model_log.log"
        self.server_log = directory / "ts_log.log"
        self._start = {path: _mark(path) for path in (self.model_log, self.server_log)}

    def new_text(self, path: Path) -> str:
        """Return the text appended to one of the two logs since this object was created."""
        inode, size = self._start[path]
        try:
            with path.open("rb") as file:
                # A log that was rotated meanwhile is a new file: all of it is new.
                if _mark(path)[0] == inode:
                    file.seek(size)
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""


def wait_until_ready(
    state: ServerState,
    settings: ServerSettings,
    logs: ServerLogs,
    *,
    expected: Mapping[ModelVersion, str],
    timeout: float,
    progress: Progress | None,
) -> tuple[ModelStatus, ...]:
    """Wait until every archive of the store is registered and all its workers are READY; return the models.

    `/ping` is not enough: it returns Healthy while models are still loading.

    Args:
        expected: (Model name, version) -> archive file; see `expected_models`.

    Raises:
        ModuleFailed: A worker's load raised.
        ServerError: The server exited, refused an archive, or was not ready in time.
    """
    directory = Path(state.config).parent
    deadline = time.monotonic() + timeout
    models: tuple[ModelStatus, ...] = ()
    with Client(settings, key_file=directory / KEY_FILE, timeout=30) as client:
        while True:
            if not state.running():
                raise ServerError(f"TorchServe exited during startup\n{_last_output(state, logs)}".rstrip())
            listening = False
            with contextlib.suppress(HandlergenError):
                models = tuple(client.status())
                listening = True
            if listening:
                _check_registered(expected, {(model.name, model.version) for model in models}, logs)
                if progress:
                    progress(models)
                if all(model.ready for model in models):
                    return models
            _check_workers(logs)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"not ready after {timeout:g} s: {_readiness(models) or 'the server is not listening yet'}",
                    hint=f"worker output: {shown(logs.model_log)}; --timeout sets how long to wait",
                )
            time.sleep(_POLL_S)


def _check_registered(expected: Mapping[ModelVersion, str], registered: set[ModelVersion], logs: ServerLogs) -> None:
    """Raise ServerError for the archives that TorchServe refused.

    TorchServe listens only after it has tried every archive, so a model that is missing now was refused. A model
    whose requirements could not be installed stays registered without workers: only the log shows the failure.
    """
    reasons = registration_failures(logs.new_text(logs.server_log))
    refused = {file for model, file in expected.items() if model not in registered or file in reasons}
    if not refused:
        return
    raise ServerError(
        "\n".join(f"TorchServe refused {file}: {reasons.get(file, 'no reason given')}" for file in sorted(refused)),
        hint=f"see {shown(logs.server_log)}",
    )


def _check_workers(logs: ServerLogs) -> None:
    """Raise for a worker that failed to load its model, because TorchServe would retry for minutes.

    A worker that died without a traceback (killed, perhaps out of memory) may succeed on the next attempt, so only
    a model's third such death counts.
    """
    if load_failures(logs.new_text(logs.model_log)):
        time.sleep(_POLL_S)  # the traceback may be incomplete
        first = load_failures(logs.new_text(logs.model_log))[0]
        raise ModuleFailed(
            f"model {first.model}: worker {first.worker} could not load it",
            traceback=first.traceback,
            hint="`handlergen predict SOURCE DATA` loads the model without a server; once that works, archive it again "
            f"with --force. Worker output: {shown(logs.model_log)}",
        )
    for model, reasons in silent_deaths(logs.new_text(logs.server_log)).items():
        if len(reasons) >= _DEATHS:
            raise ServerError(
                f"model {model}: its workers die without an exception while loading it ({reasons[-1]})\n"
                "the process exited or was killed, perhaps because memory ran out",
                hint=f"worker output: {shown(logs.model_log)}",
            )


def _last_output(state: ServerState, logs: ServerLogs) -> str:
    try:
        console = Path(state.console).read_text("utf-8", "replace")
    except OSError:
        console = ""
    lines = (console + logs.new_text(logs.server_log)).strip().splitlines()
    return "\n".join(lines[-_LAST_LINES:])


def _readiness(models: Sequence[ModelStatus]) -> str:
    return ", ".join(
        f"{model.name} {model.version}: {model.ready_workers} of {model.min_workers} workers READY" for model in models
    )


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_ino, found.st_size
