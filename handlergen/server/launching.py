"""Processes of a server: TorchServe's launcher, the record of what it started, and the end of all of it.

`serve` writes a `ServerState` so that `stop` and `status` find the server from another shell. Every process of a
server carries its marker in the environment: that is how they are found, and no other process is ever touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from handlergen.errors import ServerError
from handlergen.runtime.device.lock import STATE_DIR_VARIABLE

STATE_DIR = ".handlergen"
MARKER = "HANDLERGEN_SERVER"
"""Environment variable of every process of a server: the frontend, its workers, their children."""

TEMP_PREFIX = "handlergen-"
_CREATE_TIME_SLACK_S = 1.0
_POLL_S = 0.05

#: A unix socket's path has at most 107 characters on Linux, 103 on macOS; TorchServe's is TEMP/.ts.sock.9000.
_LONGEST_TEMP = 103 - len("/.ts.sock.65535")


@dataclass(frozen=True)
class ServerState:
    """A server that `serve` started.

    Attributes:
        pid: Process id of the frontend (Java).
        created: When the frontend started, in seconds since the epoch; distinguishes it from a later process with
            the same pid.
        marker: Value of `MARKER` in the environment of the server's processes.
        config: The server's config.properties, absolute.
        temp_dir: The server's own temp directory, removed when it stops.
        console: File with the frontend's output.
        state_dir: HANDLERGEN_STATE_DIR of the server's processes; empty when it was not set.
        stopping: `stop` is ending it: for whoever waits for it, its end is no failure.
    """

    pid: int
    created: float
    marker: str
    config: str
    temp_dir: str
    console: str
    state_dir: str = ""
    stopping: bool = False

    def running(self) -> bool:
        """Return whether the frontend is still alive."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < _CREATE_TIME_SLACK_S and _alive(process)
        except psutil.Error:
            return False


def state_path(config: Path) -> Path:
    """Return the state file of the server on this configuration, in `.handlergen/` beside it."""
    return config.resolve().parent / STATE_DIR / f"{config.name}.json"


def read_state(config: Path) -> ServerState | None:
    """Return the recorded state; None when there is none or it cannot be read."""
    try:
        return ServerState(**json.loads(state_path(config).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(state: ServerState) -> None:
    """Record the state in a file that only this user can read. Raises OSError."""
    write_private(state_path(Path(state.config)), asdict(state))


def write_private(path: Path, value: Any) -> None:
    """Replace a file in the directory `STATE_DIR` by a value as JSON, atomically; only this user can read it.

    Raises:
        OSError: The file cannot be written; it is as it was.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def exclusive(lock: Path, taken: Callable[[], ServerError]) -> Iterator[None]:
    """Hold the lock on a file, which has this process's id; on a file system without locks, hold nothing.

    Args:
        lock: In the directory `STATE_DIR`, which is made if necessary.
        taken: Returns the error for a lock that another process holds.

    Raises:
        ServerError: Another process holds the lock, or the file cannot be made.
    """
    try:
        lock.parent.mkdir(mode=0o700, exist_ok=True)
        handle = lock.open("a+")
    except OSError as error:
        raise ServerError(f"{lock.parent} cannot be written: {error}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken() from None
        except OSError:
            pass
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def temp_directory() -> Path:
    """Create a private directory (0700) whose path is short enough for unix sockets in it."""
    base = tempfile.gettempdir()
    if len(base) + len(f"/{TEMP_PREFIX}12345678") > _LONGEST_TEMP:
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=base))


def _environment(
    environ: Mapping[str, str], *, java_home: Path, marker: str, temp_dir: Path, console: bool
) -> dict[str, str]:
    """Return the environment of a server's processes."""
    from handlergen.runtime.telemetry.recording import TRACE_DIR_VARIABLE  # imports torch

    names = (TRACE_DIR_VARIABLE, STATE_DIR_VARIABLE)
    # Absolute, because each process works in a directory of its own.
    directories = {name: str(Path(environ[name]).expanduser().resolve()) for name in names if environ.get(name)}
    changed = {
        **environ,
        **directories,
        MARKER: marker,
        "JAVA_HOME": str(java_home),
        # TorchServe passes TEMP to Java, and its launcher writes .model_server.pid into TMPDIR. A directory of its
        # own for both keeps two servers apart, and removes the workers' temporary files when the server stops.
        "TEMP": str(temp_dir),
        "TMPDIR": str(temp_dir),
    }
    changed.pop("TS_CONFIG_FILE", None)  # it would override --ts-config
    if not console:
        changed["HANDLERGEN_CONSOLE"] = "off"
    return changed


def launch(
    config: Path,
    environ: Mapping[str, str],
    *,
    java_home: Path,
    marker: str,
    temp_dir: Path,
    console: bool,
    models: Sequence[str] = (),
) -> ServerState:
    """Run TorchServe's launcher in a new session; it starts Java and exits. Raises ServerError with its output.

    Without `--ncs`, so that TorchServe saves which models it has; see `remembered`.

    Args:
        models: `FILE` or `NAME=FILE` in the model store, to load in this order; by default what load_models says.
    """
    environ = _environment(environ, java_home=java_home, marker=marker, temp_dir=temp_dir, console=console)
    script = Path(sysconfig.get_path("scripts")) / "torchserve"
    # The script, not `-m ts.model_server`: -m puts the working directory first on sys.path, so that a user's
    # platform.py or ts.py would be imported.
    launcher = [str(script)] if script.is_file() else ["-m", "ts.model_server"]
    command = [sys.executable, *launcher, "--start", "--ts-config", config.name]
    if models:
        command += ["--models", *models]
    console_file = config.parent / STATE_DIR / f"{config.name}.console"
    with console_file.open("wb") as capture:
        output = None if console else capture
        process = subprocess.Popen(
            command,
            cwd=config.parent,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
        process.wait()
    pid_file = temp_dir / ".model_server.pid"
    try:
        pid = int(pid_file.read_text())
        created = psutil.Process(pid).create_time()
    except (OSError, ValueError, psutil.Error) as error:
        said = console_file.read_text("utf-8", "replace").strip()
        raise ServerError(f"TorchServe did not start\n{said}".rstrip()) from error
    state_dir = environ.get(STATE_DIR_VARIABLE, "")
    return ServerState(pid, created, marker, str(config), str(temp_dir), str(console_file), state_dir)


def end_marked(marker: str, *, grace: float) -> None:
    """End every process that carries the marker: SIGTERM, `grace` seconds, then SIGKILL until none is left."""
    with uninterrupted():
        signal_to_send = signal.SIGTERM
        while found := marked(marker):
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal_to_send)
            # Not psutil.wait_procs: these are not our children, and they stay zombies where pid 1 does not reap.
            deadline = time.monotonic() + grace
            # Check the processes found, do not search again: the environment of an exiting process cannot be read,
            # although it still holds its ports.
            while any(map(_alive, found)) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            signal_to_send = signal.SIGKILL


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals, so that a second Ctrl-C does not leave half of the processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(marker: str) -> list[psutil.Process]:
    """Return this user's processes whose environment carries the marker."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and process.environ().get(MARKER) == marker and _alive(process):
                found.append(process)
    return found
