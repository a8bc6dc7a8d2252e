"""Start and stop TorchServe."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from handlergen.archives.mar import archived_examples, read_mar
from handlergen.client import Client, ModelStatus
from handlergen.client.connection import KEY_FILE, request_of
from handlergen.errors import HandlergenError, ModuleFailed, ServerError
from handlergen.project.settings import shown
from handlergen.runtime.codec.content_encoding import LIMIT_VARIABLE
from handlergen.runtime.device.lock import STATE_DIR_VARIABLE, lock_directory
from handlergen.runtime.predictor_process.run_directory import remove_orphans
from handlergen.runtime.server_process import remove_left_behind
from handlergen.server import ports
from handlergen.server.certificates import check_tls
from handlergen.server.configuration import archive_command, handlergen_command
from handlergen.server.draining import StopReport, drain_server
from handlergen.server.java import find_java
from handlergen.server.launching import (
    STATE_DIR,
    TEMP_PREFIX,
    ServerState,
    end_marked,
    exclusive,
    launch,
    read_state,
    state_path,
    temp_directory,
    uninterrupted,
    write_state,
)
from handlergen.server.model_store import ModelVersion, require_signatures
from handlergen.server.properties import ServerSettings, read_properties
from handlergen.server.property_text import line_not_utf8
from handlergen.server.readiness import Progress, ServerLogs, wait_until_ready
from handlergen.server.remembered import keep_until_ready, last_server, prepare_directory, record_ready
from handlergen.server.starting_models import StartingModels, starting_models

_POLL_S = 0.25
_ENDING_POLL_S = 0.05
_WORKER_GRACE_S = 3.0
_ANSWERS_S = 5.0
"""A server that does not answer in this time is ended without a drain."""


@dataclass(frozen=True)
class RunningServer:
    """A running TorchServe that `serve` started.

    Attributes:
        models: The models when the server became ready; empty from `running_server`.
        restored: Versions that have the last server's number of workers again -> the number they started with.
        warnings: Messages about which versions were loaded, and which became the default.
    """

    state: ServerState
    settings: ServerSettings
    models: tuple[ModelStatus, ...]
    restored: Mapping[ModelVersion, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """Process id of the frontend."""
        return self.state.pid

    @property
    def directory(self) -> Path:
        """The server's working directory: the configuration's, which also holds key_file.json and logs/."""
        return Path(self.state.config).parent

    @property
    def key_file(self) -> Path | None:
        """TorchServe's key file; None when the server requires no tokens."""
        return self.directory / KEY_FILE if self.settings.token_authorization else None

    @property
    def log_directory(self) -> Path:
        """Directory of model_log.log and ts_log.log."""
        return log_directory(self.directory)

    def running(self) -> bool:
        """Return whether the frontend is still alive."""
        return self.state.running()

    def client(self, *, timeout: float = 300.0) -> Client:
        """Return a new client for the server."""
        return Client(self.settings, directory=self.directory, timeout=timeout)

    def wait(self) -> bool:
        """Wait until the server has ended; return whether `stop` ended it."""
        while self.running():
            time.sleep(_POLL_S)
        left = read_state(Path(self.state.config))  # `stop` removes it when it is done
        return left is None or left.marker != self.state.marker or left.stopping

    def stop(self, *, timeout: float = 30.0, drain: float = 30.0) -> StopReport | None:
        """Stop the server and every process it started; see `stop`."""
        return stop(Path(self.state.config), timeout=timeout, drain=drain)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    config: Path | str = "config.properties",
    *,
    timeout: float = 600.0,
    progress: Progress | None = None,
    environ: Mapping[str, str] | None = None,
    console: bool = False,
    keep: bool = False,
    require_signature: Path | str | None = None,
) -> RunningServer:
    """Start TorchServe on a config.properties and return when every worker of every model is READY.

    Each model has the default version, and each version the number of workers, that they had on the last server of
    this configuration; a replaced archive starts with its own number.

    The server runs in the configuration's directory, with its own session and temp directory. When `serve` fails or
    is interrupted, it leaves no process of the server behind.

    Args:
        timeout: Seconds until every worker must be READY.
        progress: Called several times a second with the models' status.
        environ: Environment of the server; None for this process's.
        console: Let the server write to this process's stdout and stderr.
        keep: Leave the server running when a model fails to load; the error is raised all the same.
        require_signature: An Ed25519 public key (see `archives/signing.py`); every archive must be signed with it.

    Raises:
        ModuleFailed: A worker died while loading its model; `traceback` holds the user's frames.
        ServerError: No Java, ports in use, already running, an archive was refused, or not ready in time.
        HandlergenError: The configuration is missing or invalid, or its certificate is (see `certificates.check_tls`).
    """
    path = Path(config).resolve()
    settings = read_properties(path)
    if line := line_not_utf8(path):  # Java can read it
        raise HandlergenError(
            f"{path}:{line}: this line is not UTF-8, and TorchServe's launcher cannot read it",
            hint="write characters outside ASCII as \\uXXXX",
        )
    check_tls(settings, path.parent)
    environ = dict(os.environ if environ is None else environ)
    environ[LIMIT_VARIABLE] = str(settings.max_request_size)
    java = find_java(environ)
    # On a file system without locks two servers at once fail on their ports.
    with exclusive(path.parent / STATE_DIR / f"{path.name}.lock", lambda: _is_starting(path)):
        _refuse_conflicts(path, settings)
        log_files = log_directory(path.parent, environ)
        last = last_server(path, log_files)
        starting = starting_models(path, settings, last)
        if require_signature is not None:
            store = path.parent / settings.model_store
            require_signatures(store, starting.expected.values(), settings, Path(require_signature))
        (path.parent / KEY_FILE).unlink(missing_ok=True)
        _require_lock_directory(environ)
        marker = uuid.uuid4().hex
        temp_dir = temp_directory()
        logs = ServerLogs(log_files)
        prepare_directory(log_files)
        deadline = time.monotonic() + timeout
        try:
            if last is not None:
                keep_until_ready(path, last)
            state = launch(
                path,
                environ,
                java_home=java.home,
                marker=marker,
                temp_dir=temp_dir,
                console=console,
                models=starting.arguments,
            )
            write_state(state)
            models = wait_until_ready(
                state, settings, logs, expected=starting.expected, timeout=timeout, progress=progress
            )
            running = RunningServer(state, settings, models, warnings=starting.warnings)
            running = _with_workers(running, starting, deadline, progress)
            _warm_frontend(running, starting)
            record_ready(path, log_files, settings.load_models, starting.archives)
            return running
        except BaseException as error:
            if not (keep and isinstance(error, ModuleFailed)):
                end_marked(marker, grace=_WORKER_GRACE_S)
                _clean_up(path, temp_dir)
            raise


def _warm_frontend(running: RunningServer, starting: StartingModels) -> None:
    """Send an example through TorchServe, whose first request takes 40 ms more than the next ones.

    The workers have asked their examples themselves: whatever fails here is no reason not to serve.
    """
    for (name, version), file in starting.expected.items():
        path = running.directory / running.settings.model_store / file
        with contextlib.suppress(HandlergenError):
            examples = archived_examples(path)
            bundle = read_mar(path, whole=False).bundle if examples else None
            if bundle is not None and bundle.settings.examples_at_start != "off":
                with running.client(timeout=60) as client:
                    client.predict(name, version=version, **request_of(examples[0]))
                return


def _with_workers(
    running: RunningServer, starting: StartingModels, deadline: float, progress: Progress | None
) -> RunningServer:
    """Scale each version to the last server's number of workers, and return the server as it is then."""
    restored = {
        (model.name, model.version): model.min_workers
        for model in running.models
        if starting.workers.get((model.name, model.version), model.min_workers) != model.min_workers
    }
    if not restored:
        return running

    def report(model: ModelStatus) -> None:
        if progress:
            changed = (model.name, model.version)
            progress([model if (each.name, each.version) == changed else each for each in running.models])

    with running.client(timeout=30) as client:
        for name, version in restored:
            client.scale(
                name,
                starting.workers[name, version],
                version=version,
                timeout=max(0.0, deadline - time.monotonic()),
                progress=report,
            )
        return replace(running, models=tuple(client.status()), restored=restored)


def running_server(config: Path | str = "config.properties") -> RunningServer | None:
    """Return the running server that `serve` started on this configuration; None when there is none."""
    path = Path(config).resolve()
    state = read_state(path)
    if state is None or not state.running():
        return None
    return RunningServer(state, read_properties(path), ())


def stop(config: Path | str = "config.properties", *, timeout: float = 30.0, drain: float = 30.0) -> StopReport | None:
    """Stop the server that `serve` started on this configuration, and every process it started.

    The server begins no new requests, and answers those under way (see `draining`). Then the frontend gets SIGTERM and
    `timeout` seconds; then the remaining processes are killed. Only processes that carry this server's marker are
    touched. After KeyboardInterrupt the processes are ended at once, and it is raised again.

    Args:
        timeout: Seconds that the frontend has to end.
        drain: Seconds that requests under way have at most; 0: they are cut off.

    Returns:
        What became of its requests; None if no server was running.
    """
    path = Path(config).resolve()
    state = read_state(path)
    if state is None:
        return None
    try:
        return _drain_and_terminate(path, state, timeout, drain) if state.running() else None
    finally:
        with uninterrupted():
            end_marked(state.marker, grace=_WORKER_GRACE_S)
            with contextlib.suppress(OSError):  # files left by the processes that were just killed
                locks = lock_directory({STATE_DIR_VARIABLE: state.state_dir})
                remove_orphans(locks)
                remove_left_behind(locks)
            _clean_up(path, Path(state.temp_dir))


def _drain_and_terminate(config: Path, state: ServerState, timeout: float, drain: float) -> StopReport:
    report = StopReport(drain)
    with contextlib.suppress(OSError):  # a full disk must not keep a server running
        write_state(replace(state, stopping=True))
    with contextlib.ExitStack() as stack:
        if drain:
            try:
                client = Client.from_config(config, timeout=_ANSWERS_S)
            except HandlergenError as error:
                report = StopReport(drain, failure=error.message)
            else:
                stack.enter_context(client)  # until the server has ended: a busy worker's queue may have a command
                report = drain_server(client, drain)
        with contextlib.suppress(psutil.Error):
            psutil.Process(state.pid).terminate()
        deadline = time.monotonic() + timeout
        while state.running() and time.monotonic() < deadline:
            time.sleep(_ENDING_POLL_S)
    return report


def log_directory(directory: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Return the log directory of a server started in `directory` (ConfigManager.java: LOG_LOCATION, else logs)."""
    return directory / (os.environ if environ is None else environ).get("LOG_LOCATION", "logs")


def _is_starting(config: Path) -> ServerError:
    return ServerError(
        f"another `handlergen serve` is starting a server on {shown(config)}",
        hint="wait until it is done, or stop it with Ctrl-C",
    )


def _refuse_conflicts(config: Path, settings: ServerSettings) -> None:
    """Raise ServerError for a missing model store, and for anything that two servers would share."""
    state = read_state(config)
    if state is not None:
        if state.running():
            raise ServerError(
                f"a server is already running on {shown(config)} (pid {state.pid})",
                hint=f"`{handlergen_command('stop', config)}` stops it",
            )
        stop(config)  # remove what a crashed server left behind
    if not settings.model_store:
        raise ServerError(
            f"{shown(config)} does not set model_store",
            hint="add model_store=DIRECTORY, the directory that `handlergen archive` writes archives to",
        )
    store = config.parent / settings.model_store
    if not store.is_dir():
        raise ServerError(
            f"there is no model store at {shown(store)}",
            hint=f"`{archive_command(store)}` creates it; model_store in {shown(config)} sets the directory",
        )
    problems = ports.unavailable(settings.addresses())
    if problems:
        raise ServerError(
            "\n".join(problems),
            hint="stop that program, or choose other ports with `handlergen config` (--help lists the options, --force "
            f"changes {shown(config)})",
        )
    if settings.token_authorization:
        for path in sorted(state_path(config).parent.glob("*.json")):
            neighbour = read_state(config.parent / path.stem)
            if neighbour is not None and neighbour.running():
                raise ServerError(
                    f"the server on {neighbour.config} (pid {neighbour.pid}) keeps its tokens in the same directory",
                    hint=f"move one of the two configurations to another directory: both servers write {KEY_FILE}",
                )


def _require_lock_directory(environ: Mapping[str, str]) -> None:
    """Raise ServerError when no worker could create a device lock, which workers would only report after a minute."""
    try:
        directory = lock_directory(environ)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} cannot be written")
    except OSError as error:
        raise ServerError(
            f"no directory for the device locks: {error}",
            hint=f"{STATE_DIR_VARIABLE} sets the directory for locks and stored values; all servers that share a "
            "device must use the same one",
        ) from error


def _clean_up(config: Path, temp_dir: Path) -> None:
    """Remove the temp directory, tokens and state of a stopped server."""
    # The state file may have been edited: remove only a directory that temp_directory could have created.
    if temp_dir.name.startswith(TEMP_PREFIX) and temp_dir.is_dir() and not temp_dir.is_symlink():
        shutil.rmtree(temp_dir, ignore_errors=True)
    (config.parent / KEY_FILE).unlink(missing_ok=True)
    state_path(config).unlink(missing_ok=True)
