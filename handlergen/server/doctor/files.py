"""Files that servers write and leave behind, and the directories they write to."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from handlergen.client.connection import KEY_FILE, KeyFile
from handlergen.errors import ServerError
from handlergen.runtime.device.lock import lock_directory
from handlergen.runtime.store import open_store
from handlergen.server.doctor.situation import Finding, Situation, error, note, ok, warning
from handlergen.server.launching import TEMP_PREFIX, marked, state_path

_FRONTEND = "org.pytorch.serve.ModelServer"
_UNIX_SOCKETS = Path("/proc/net/unix")
_PID_FILE = ".model_server.pid"


def key_file(situation: Situation) -> Iterator[Finding]:
    """The tokens: there while the server runs, for nobody else to read."""
    path = situation.directory / KEY_FILE
    if not situation.settings.token_authorization:
        return
    if not path.exists():
        if situation.running:
            yield error(
                f"{path} is missing, though the server runs",
                "Nobody can get a token any more: every request is refused.",
                situation.restart,
            )
        return
    if not situation.running:
        yield note(f"{path} is there, though no server of handlergen's runs", "The next server replaces it.")
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        yield warning(
            f"others may read {path} (mode {stat.S_IMODE(found.st_mode):04o})",
            "Who has the tokens can predict and manage.",
            f"chmod 600 {shlex.quote(str(path))}",
        )
    try:
        KeyFile(path).token("inference")
    except ServerError as wrong:
        yield warning(wrong.message, "No request can be sent.", situation.restart)
    else:
        if situation.running:
            yield ok(f"tokens in {path}")


def server_state(situation: Situation) -> Iterator[Finding]:
    """What `serve` wrote down, against what runs."""
    path, state = state_path(situation.config), situation.state
    if state is None:
        if path.exists():
            yield warning(
                f"{path} cannot be read",
                "`handlergen stop` and `status` do not find the server by it.",
                f"rm {shlex.quote(str(path))}",
            )
        return
    if situation.running:
        yield ok(f"a server runs on this configuration (pid {state.pid})")
        return
    left = marked(state.marker)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        yield warning(
            f"the server (pid {state.pid}) has ended, but processes of it are left: {pids}",
            "They hold memory and perhaps the device.",
            situation.command("stop"),
        )
    else:
        yield note(
            f"{path} tells of a server (pid {state.pid}) that has ended",
            "It was killed; `handlergen serve` cleans up after it.",
            situation.command("stop"),
        )


def left_sockets(situation: Situation) -> Iterator[Finding]:
    """Sockets that TorchServe's workers left in the temp directory. `serve` uses one of its own."""
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
            names = f"{len(stale)} socket{'' if len(stale) == 1 else 's'} that nobody listens on ({stale[0].name}, …)"
            if own:
                yield note(
                    f"{directory} has {names}",
                    "Left by a TorchServe that was killed; harmless.",
                    f"rm {shlex.quote(str(directory))}/.ts.sock.*",
                )
            else:
                yield warning(
                    f"{directory} has {names}, of another user",
                    "A worker of plain `torchserve` cannot replace them and dies; `handlergen serve` uses a "
                    "directory of its own.",
                    "export TEMP=$(mktemp -d)   # before torchserve --start",
                )


def left_pid_files(situation: Situation) -> Iterator[Finding]:
    """Pid files of servers that are gone, in the temp directory and in those that `serve` made there."""
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
                        "Plain `torchserve --start` is refused while it does.",
                    )
            elif own_directory:
                if situation.state is None or str(path.parent) != situation.state.temp_dir:
                    yield note(
                        f"{path.parent} was left by a server that was killed",
                        "It holds unpacked archives, and takes disk space.",
                        f"rm -r {shlex.quote(str(path.parent))}",
                    )
            elif text.isdigit():
                yield note(
                    f"{path} names a process that is no TorchServe (any more): {text}",
                    "TorchServe removes it when it starts.",
                    f"rm {shlex.quote(str(path))}",
                )
            else:
                yield warning(
                    f"{path} holds no process id: {text!r}",
                    "Plain `torchserve --start` ends with a traceback; `handlergen serve` uses a file of its own.",
                    f"rm {shlex.quote(str(path))}",
                )


def writable(situation: Situation) -> Iterator[Finding]:
    """Directories that TorchServe, its workers and handlergen write to."""
    logs = situation.logs
    metrics = situation.directory / situation.environ.get("METRICS_LOCATION", "logs")
    wanted = {
        situation.directory: "TorchServe writes its tokens there, handlergen which server runs.",
        logs: "TorchServe logs there.",
        metrics: "TorchServe logs its metrics there.",
        open_store("any", situation.environ).path.parent: "context.store keeps its values there.",
    }
    refused = [(path, why) for path, why in wanted.items() if not _can_write(path)]
    for path, why in refused:
        fix = f"chown -R $USER {shlex.quote(str(path))}"
        if _is_read_only(path):
            fix = "start the server in another directory, or mount this one so that it can be written"
        yield error(f"{path} cannot be written", why, fix)
    store = situation.store
    if store.is_dir() and not os.access(store, os.R_OK | os.X_OK):
        yield error(
            f"{store} cannot be read", "No archive can be loaded.", f"chmod u+rx {shlex.quote(str(store))}"
        )
    elif store.is_dir() and not os.access(store, os.W_OK):
        yield note(
            f"{store} cannot be written", "`handlergen archive` cannot put archives there; serving can."
        )
    if not refused:
        yield ok("configuration, log and state directories can be written")


def locks(situation: Situation) -> Iterator[Finding]:
    """The directory of the device locks: this user's, and closed to others."""
    try:
        yield ok(f"device locks in {lock_directory(situation.environ)}, of mode 0700")
    except OSError as wrong:
        yield error(
            str(wrong),
            "Workers refuse to load: who can write there can hold or break the turns on the device.",
            "export HANDLERGEN_STATE_DIR=~/.local/state/handlergen   # or: remove that directory",
        )


def is_plain_server(pid: int, directory: Path) -> bool:
    """Is this a TorchServe that was started in a directory?"""
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


def _is_read_only(path: Path) -> bool:
    """Whether its file system is mounted so: no owner could write there."""
    return bool(os.statvfs(_existing(path)).f_flag & os.ST_RDONLY)


def _can_write(path: Path) -> bool:
    """Whether a file can be made there, the directory itself perhaps included."""
    path = _existing(path)
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
