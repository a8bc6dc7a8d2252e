"""Checks of the files that servers write and leave behind, and of the directories that they write to."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from handlergen.client.connection import KEY_FILE, read_key
from handlergen.errors import ServerError
from handlergen.runtime.device.lock import lock_directory
from handlergen.runtime.store import open_store
from handlergen.server.doctor.situation import Finding, Situation, counted, error, note, ok, warning
from handlergen.server.launching import TEMP_PREFIX, marked, state_path
from handlergen.server.lifecycle import log_directory

_FRONTEND = "org.pytorch.serve.ModelServer"
_UNIX_SOCKETS = Path("/proc/net/unix")
_PID_FILE = ".model_server.pid"


def key_file(situation: Situation) -> Iterator[Finding]:
    """Check the file with the tokens: it exists while the server runs, and no other user can read it."""
    path = situation.directory / KEY_FILE
    if not situation.settings.token_authorization:
        return
    if not path.exists():
        if situation.running:
            yield error(
                f"{path} is missing while the server is running",
                "Clients have no token: the server refuses every request.",
                situation.restart,
            )
        return
    if not situation.running:
        yield note(f"{path} exists, but no server is running", "The next server replaces it.")
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        yield warning(
            f"other users can read {path} (mode {stat.S_IMODE(found.st_mode):04o})",
            "The tokens in it allow predictions and management.",
            f"chmod 600 {shlex.quote(str(path))}",
        )
    try:
        read_key(path, "inference")
    except ServerError as wrong:
        yield warning(wrong.message, "Clients have no token: the server refuses every request.", situation.restart)
    else:
        if situation.running:
            yield ok(f"tokens in {path}")


def server_state(situation: Situation) -> Iterator[Finding]:
    """Compare the state that `serve` recorded with the running processes."""
    path, state = state_path(situation.config), situation.state
    if state is None:
        if path.exists():
            yield warning(
                f"{path} cannot be read",
                "`handlergen stop` and `status` cannot find the server.",
                f"rm {shlex.quote(str(path))}",
            )
        return
    if situation.running:
        yield ok(f"a server is running on this configuration (pid {state.pid})")
        return
    left = marked(state.marker)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        yield warning(
            f"the server (pid {state.pid}) has ended, but some of its processes are still running: {pids}",
            "They use memory, and perhaps the device.",
            situation.command("stop"),
        )
    else:
        yield note(
            f"{path} belongs to a server (pid {state.pid}) that has ended",
            "The server was killed; `handlergen serve` cleans up after it.",
            situation.command("stop"),
        )


def stale_sockets(situation: Situation) -> Iterator[Finding]:
    """Check the temp directory for sockets of dead workers; `serve` uses a private directory."""
    if not _UNIX_SOCKETS.exists():
        return
    bound = {line.rpartition(" ")[2] for line in _UNIX_SOCKETS.read_text("utf-8", "replace").splitlines()}
    for directory in situation.temp_dirs:
        for own in (True, False):
            stale = [
                path
                for path in sorted(directory.glob(".ts.sock.*"))
                if str(path) not in bound and (path.lstat().st_uid == os.geteuid()) is own
            ]
            if not stale:
                continue
            names = f"{counted(len(stale), 'socket')} without a listener ({stale[0].name}, …)"
            if own:
                yield note(
                    f"{directory} has {names}",
                    "A killed TorchServe left them; they are harmless.",
                    f"rm {shlex.quote(str(directory))}/.ts.sock.*",
                )
            else:
                yield warning(
                    f"{directory} has {names}, owned by another user",
                    "A worker of `torchserve` cannot replace them and dies; `handlergen serve` uses its own directory.",
                    "export TEMP=$(mktemp -d)   # before torchserve --start",
                )


def stale_pid_files(situation: Situation) -> Iterator[Finding]:
    """Check for pid files of ended servers, in the temp directory and in those that `serve` created there."""
    for directory in situation.temp_dirs:
        for path in [directory / _PID_FILE, *sorted(directory.glob(f"{TEMP_PREFIX}*/{_PID_FILE}"))]:
            try:
                text = path.read_text("utf-8", "replace").strip()
            except OSError:
                continue
            own_directory = path.parent != directory
            if text.isdigit() and _is_frontend(int(text)):
                if not own_directory and (situation.state is None or int(text) != situation.state.pid):
                    yield note(
                        f"a TorchServe that was started without handlergen runs (pid {text})",
                        "`torchserve --start` refuses to start a second one.",
                    )
            elif own_directory:
                if situation.state is None or str(path.parent) != situation.state.temp_dir:
                    yield note(
                        f"{path.parent} was left by a server that was killed",
                        "Unpacked archives in it take up disk space.",
                        f"rm -r {shlex.quote(str(path.parent))}",
                    )
            elif text.isdigit():
                yield note(
                    f"{path} names a process that is not TorchServe: {text}",
                    "TorchServe removes the file when it starts.",
                    f"rm {shlex.quote(str(path))}",
                )
            else:
                yield warning(
                    f"{path} does not contain a process id: {text!r}",
                    "`torchserve --start` fails with a traceback; `handlergen serve` uses another file.",
                    f"rm {shlex.quote(str(path))}",
                )


def writable(situation: Situation) -> Iterator[Finding]:
    """Check that TorchServe, its workers and handlergen can write to their directories."""
    metrics = situation.directory / situation.environ.get("METRICS_LOCATION", "logs")
    wanted = {
        situation.directory: "TorchServe writes its tokens there, handlergen the server's state.",
        log_directory(situation.directory, situation.environ): "TorchServe logs there.",
        metrics: "TorchServe logs its metrics there.",
        open_store("any", situation.environ).path.parent: "context.store saves its values there.",
    }
    refused = False
    for path, why in wanted.items():
        existing = _existing(path)
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            continue
        refused = True
        fix = f"chown -R $USER {shlex.quote(str(path))}"
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            fix = "start the server in another directory, or mount this one read-write"
        yield error(f"{path} cannot be written", why, fix)
    store = situation.store
    if store.is_dir() and not os.access(store, os.R_OK | os.X_OK):
        yield error(f"{store} cannot be read", "No archive can be loaded.", f"chmod u+rx {shlex.quote(str(store))}")
    elif store.is_dir() and not os.access(store, os.W_OK):
        yield note(f"{store} cannot be written", "`handlergen archive` cannot add archives; serving works.")
    if not refused:
        yield ok("the configuration, log and state directories can be written")


def locks(situation: Situation) -> Iterator[Finding]:
    """Check that the directory of the device locks belongs to this user and is closed to others."""
    try:
        yield ok(f"device locks in {lock_directory(situation.environ)} (mode 0700)")
    except OSError as wrong:
        yield error(
            str(wrong),
            "Workers refuse to load the model, because another user could hold the device locks.",
            "export HANDLERGEN_STATE_DIR=~/.local/state/handlergen   # or: remove that directory",
        )


def is_plain_server(pid: int, directory: Path) -> bool:
    """Return whether a process is a TorchServe that was started in this directory."""
    try:
        process = psutil.Process(pid)
        return _FRONTEND in process.cmdline() and process.cwd() == str(directory)
    except psutil.Error:
        return False


def _is_frontend(pid: int) -> bool:
    try:
        return _FRONTEND in psutil.Process(pid).cmdline()
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def _existing(path: Path) -> Path:
    """Return the path, or the nearest existing directory above it."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
