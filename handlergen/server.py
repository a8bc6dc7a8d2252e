"""Starting and stopping TorchServe: the only place from which its processes are started or ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from handlergen import ports
from handlergen.client import Client, ModelStatus
from handlergen.client.connection import KEY_FILE
from handlergen.command_text import archive_command, handlergen_command
from handlergen.errors import HandlergenError, ModuleFailed, ServerError
from handlergen.java import find_java
from handlergen.launching import absolute, environment, launch, temp_directory
from handlergen.processes import end_marked
from handlergen.properties import ServerSettings, read_properties
from handlergen.property_text import line_not_utf8
from handlergen.readiness import Progress, ServerLogs, expected_models, wait_until_ready
from handlergen.runtime.copies import remove_left_behind
from handlergen.runtime.device_lock import STATE_DIR_VARIABLE, lock_directory
from handlergen.runtime.process.home import remove_orphans
from handlergen.server_state import (
    STATE_DIR,
    TEMP_PREFIX,
    ServerState,
    read_state,
    running_neighbours,
    state_path,
    write_state,
)
from handlergen.settings import shown
from handlergen.signed_store import require_signatures

DEFAULT_TIMEOUT_S = 600.0
_POLL_S = 0.25
_ENDING_POLL_S = 0.05
_WORKER_GRACE_S = 3.0


@dataclass(frozen=True)
class RunningServer:
    """A TorchServe that is ready.

    Attributes:
        models: As they were when it became ready.
    """

    state: ServerState
    settings: ServerSettings
    models: tuple[ModelStatus, ...]

    @property
    def pid(self) -> int:
        """The frontend's process."""
        return self.state.pid

    @property
    def directory(self) -> Path:
        """Its working directory, the configuration's own: key_file.json and logs/ lie there."""
        return Path(self.state.config).parent

    @property
    def key_file(self) -> Path | None:
        """Where TorchServe wrote the tokens; None when it wants none."""
        return self.directory / KEY_FILE if self.settings.token_authorization else None

    @property
    def log_directory(self) -> Path:
        return log_directory(self.directory)

    def running(self) -> bool:
        return self.state.running()

    def client(self, *, timeout: float = 300.0) -> Client:
        """A new client for it."""
        return Client(self.settings, key_file=self.key_file, timeout=timeout)

    def wait(self) -> None:
        """Return when the server has ended."""
        while self.running():
            time.sleep(_POLL_S)

    def stop(self, *, timeout: float = 30.0) -> None:
        """End it and every process it started; see `stop`."""
        stop(Path(self.state.config), timeout=timeout)

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    config: Path | str = "config.properties",
    *,
    timeout: float = DEFAULT_TIMEOUT_S,
    progress: Progress | None = None,
    environ: Mapping[str, str] | None = None,
    console: bool = False,
    keep: bool = False,
    require_signature: Path | str | None = None,
) -> RunningServer:
    """Start TorchServe on a config.properties and return when every worker of every model is READY.

    It runs in a session and with a temp directory of its own, in the directory of the configuration. When
    this fails or is interrupted, none of its processes is left.

    Args:
        timeout: Seconds until everything must be READY.
        progress: Called several times a second with the models as they are.
        environ: In place of this process's environment.
        console: Let the server write to this process's stdout and stderr.
        keep: Leave the server running when a model fails to load; it is raised all the same.
        require_signature: An Ed25519 public key (see `handlergen.signing`) that every archive must be signed with.

    Raises:
        ModuleFailed: A worker died while it loaded the model; `traceback` is the user's own.
        ServerError: No Java, ports in use, already running, an archive was refused, not ready in time.
        HandlergenError: The configuration is missing or wrong.
    """
    path = Path(config).resolve()
    settings = read_properties(path)
    _refuse_foreign(path)
    environ = dict(os.environ if environ is None else environ)
    java = find_java(environ)
    with _starting(path):
        _refuse_conflicts(path, settings)
        store = path.parent / settings.model_store
        expected = expected_models(store, settings.load_models)
        if require_signature is not None:
            require_signatures(store, expected.values(), settings, Path(require_signature))
        (path.parent / KEY_FILE).unlink(missing_ok=True)
        environ.update(absolute(environ))
        _refuse_without_locks(environ)
        marker = uuid.uuid4().hex
        temp_dir = temp_directory()
        logs = ServerLogs(log_directory(path.parent, environ))
        try:
            environ.update(environment(environ, java_home=java.home, temp_dir=temp_dir, marker=marker))
            if not console:
                environ["HANDLERGEN_CONSOLE"] = "off"
            state = launch(path, environ, marker=marker, temp_dir=temp_dir, console=console)
            write_state(state)
            models = wait_until_ready(
                state, settings, logs, expected=expected, timeout=timeout, progress=progress
            )
            return RunningServer(state, settings, models)
        except BaseException as error:
            if not (keep and isinstance(error, ModuleFailed)):
                end_marked(marker, grace=_WORKER_GRACE_S)
                _clean_up(path, temp_dir)
            raise


def _refuse_foreign(config: Path) -> None:
    """Raises HandlergenError for a configuration that Java could read, but not TorchServe's launcher."""
    if line := line_not_utf8(config):
        raise HandlergenError(
            f"{config}:{line}: there is a byte that is not UTF-8, and TorchServe's launcher does not start on it",
            hint="write letters outside ASCII as \\uXXXX",
        )


def running_server(config: Path | str = "config.properties") -> RunningServer | None:
    """The server that `serve` started on this configuration, None when there is none (any more)."""
    path = Path(config).resolve()
    state = read_state(path)
    if state is None or not state.running():
        return None
    return RunningServer(state, read_properties(path), ())


def stop(config: Path | str = "config.properties", *, timeout: float = 30.0) -> bool:
    """End the server that `serve` started on this configuration, and every process that it started.

    The frontend gets SIGTERM and `timeout` seconds; whatever is left then is killed. Only processes that
    carry this server's mark are touched.

    Returns:
        Whether one was running.
    """
    path = Path(config).resolve()
    state = read_state(path)
    if state is None:
        return False
    was_running = state.running()
    if was_running:
        with contextlib.suppress(psutil.Error):
            psutil.Process(state.pid).terminate()
        deadline = time.monotonic() + timeout
        while state.running() and time.monotonic() < deadline:
            time.sleep(_ENDING_POLL_S)
    end_marked(state.marker, grace=_WORKER_GRACE_S)
    with contextlib.suppress(OSError):  # what processes left that were killed just now
        locks = lock_directory({STATE_DIR_VARIABLE: state.state_dir})
        remove_orphans(locks)
        remove_left_behind(locks)
    _clean_up(path, Path(state.temp_dir))
    return was_running


def log_directory(directory: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Where a server started in this directory logs (ConfigManager.java: LOG_LOCATION, else logs)."""
    return directory / (os.environ if environ is None else environ).get("LOG_LOCATION", "logs")


@contextlib.contextmanager
def _starting(config: Path) -> Iterator[None]:
    """Two `serve` on one configuration at once: the second waits for no one, it is refused."""
    lock = config.parent / STATE_DIR / f"{config.name}.lock"
    try:
        lock.parent.mkdir(mode=0o700, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise ServerError(f"{lock.parent} cannot be written: {error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                f"another `handlergen serve` is starting a server on {shown(config)}",
                hint="wait for it, or press Ctrl-C where it runs",
            ) from None
        except OSError:  # a file system without locks: whoever starts two at once sees their ports taken
            pass
        yield


def _refuse_conflicts(config: Path, settings: ServerSettings) -> None:
    """Raises ServerError for whatever would make two servers collide."""
    state = read_state(config)
    if state is not None:
        if state.running():
            raise ServerError(
                f"a server is already running on {shown(config)} (pid {state.pid})",
                hint=f"`{handlergen_command('stop', config)}` ends it",
            )
        stop(config)  # what a crash left behind
    if not settings.model_store:
        raise ServerError(
            f"{shown(config)} names no model store",
            hint="write model_store=DIRECTORY into it, where `handlergen archive` puts archives",
        )
    store = config.parent / settings.model_store
    if not store.is_dir():
        raise ServerError(
            f"there is no model store at {shown(store)}",
            hint=f"`{archive_command(store)}` makes one; model_store in {shown(config)} names it",
        )
    problems = ports.taken(settings.addresses())
    if problems:
        raise ServerError(
            "\n".join(problems),
            hint=f"stop that program, or choose other ports: `handlergen config --help` lists their options, --force "
            f"overwrites {shown(config)}",
        )
    if settings.token_authorization:
        for neighbour in running_neighbours(config):
            raise ServerError(
                f"the server on {neighbour.config} (pid {neighbour.pid}) keeps its tokens here, too",
                hint=f"put one of the two configurations into a directory of its own: both write {KEY_FILE}",
            )


def _refuse_without_locks(environ: Mapping[str, str]) -> None:
    """Raises ServerError when no worker could make a lock: before any of them has tried for a minute."""
    try:
        directory = lock_directory(environ)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} cannot be written")
    except OSError as error:
        raise ServerError(
            f"the device locks have no place: {error}",
            hint=f"{STATE_DIR_VARIABLE} names the directory for locks and stored values; every server of this "
            "machine that shares a device must have the same",
        ) from error


def _clean_up(config: Path, temp_dir: Path) -> None:
    """Remove what a stopped server leaves: its temp directory, its tokens, its state."""
    # The state file could have been edited: remove nothing but what temp_directory could have made.
    if temp_dir.name.startswith(TEMP_PREFIX) and temp_dir.is_dir() and not temp_dir.is_symlink():
        shutil.rmtree(temp_dir, ignore_errors=True)
    (config.parent / KEY_FILE).unlink(missing_ok=True)
    state_path(config).unlink(missing_ok=True)
