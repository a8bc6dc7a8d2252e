"""TorchServe's own launcher, run with a session, an environment and a temp directory of the server's own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from handlergen.errors import ServerError
from handlergen.runtime.device_lock import STATE_DIR_VARIABLE
from handlergen.runtime.spans import TRACE_DIR_VARIABLE
from handlergen.server_state import MARKER, STATE_DIR, TEMP_PREFIX, ServerState

#: A unix socket's path has at most 107 characters on Linux, 103 on macOS; TorchServe's is TEMP/.ts.sock.9000.
_LONGEST_TEMP = 103 - len("/.ts.sock.65535")


def temp_directory() -> Path:
    """A new directory of this user's (0700), short enough for the unix sockets in it."""
    base = tempfile.gettempdir()
    if len(base) + len(f"/{TEMP_PREFIX}12345678") > _LONGEST_TEMP:
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=base))


def environment(
    environ: Mapping[str, str], *, java_home: Path, temp_dir: Path, marker: str
) -> dict[str, str]:
    """What the server's environment has beyond this one's."""
    return {
        MARKER: marker,
        "JAVA_HOME": str(java_home),
        # TEMP is what TorchServe hands to Java, TMPDIR where its launcher puts .model_server.pid: with both
        # its own, two servers don't meet, and what workers leave in their temp directory goes when it stops.
        "TEMP": str(temp_dir),
        "TMPDIR": str(temp_dir),
    }


def absolute(environ: Mapping[str, str]) -> dict[str, str]:
    """Directories by names that mean the same in the server's processes, each of which works in one of its own."""
    names = (TRACE_DIR_VARIABLE, STATE_DIR_VARIABLE)
    return {name: str(Path(environ[name]).expanduser().resolve()) for name in names if environ.get(name)}


def launch(
    config: Path, environ: dict[str, str], *, marker: str, temp_dir: Path, console: bool
) -> ServerState:
    """Run TorchServe's own launcher, which starts Java and returns.

    Raises:
        ServerError: The launcher refused; with what it said.
    """
    environ.pop("TS_CONFIG_FILE", None)  # it would win over --ts-config
    script = Path(sysconfig.get_path("scripts")) / "torchserve"
    # The script rather than `-m ts.model_server`: with -m the working directory comes first on sys.path, and
    # a user's platform.py or ts.py would be imported.
    launcher = [str(script)] if script.is_file() else ["-m", "ts.model_server"]
    command = [sys.executable, *launcher, "--start", "--ts-config", config.name, "--ncs"]
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
