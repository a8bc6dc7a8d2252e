"""The directory in which the workers of one model, on one device of one server, find their predictor process.

A directory below the user's lock directory (0700, checked there), named after the server's process, the model, its
version, the directory that TorchServe unpacked it into, and the device. It holds the socket, what the launcher has to
know of earlier starts, and:

- `owner.lock` is held by the predictor process for its life: there are never two.
- `start.lock` is held by a worker while it starts one: twenty workers that want one start it once. The kernel frees
  both locks when their holder dies.
- `status`, a mapped file that outlives the process, says what it is doing. The workers read it without asking the
  process: whether their request is in the user's code or still waits, since when a predict runs, how many there were.
  When the process dies, the file still says which requests were in the user's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..descriptors import close, closed_in_children, descriptor_closed_in_children, has_name, reserve
from ..device.lock import STATE_DIR_VARIABLE, lock_directory
from ..server_process import started

_PREFIX = "predictor-"
_LONGEST_DELAY_S = 30.0
_LONGEST_DELAY_ONCE_LOADED_S = 4.0
_SETTLED_S = 60.0


class ForeignProcess(Exception):
    """The process at the other end of the socket is another user's."""


@dataclass(frozen=True)
class Identity:
    """What a predictor process serves. Two workers with equal identities share it.

    Attributes:
        server, server_started: The server's process id and start time (`server_process.started`).
        name, version: The model's.
        model_dir: Where its archive is unpacked.
        device: `cpu` or `gpu` with its logical index.
    """

    server: int
    server_started: int
    name: str
    version: str
    model_dir: str
    device: str

    def alive(self) -> bool:
        """Whether the server's process is."""
        return started(self.server) == self.server_started


@dataclass(frozen=True)
class Starts:
    """How the last starts went; the back-off follows from that.

    Attributes:
        last: When the last one began, `time.monotonic()`.
        in_a_row: How many ended before they had served for a while.
        reason, traceback: Why the last one could not load the model, and where in the user's code; empty when it could.
        total: How many there were.
    """

    last: float = 0.0
    in_a_row: int = 0
    reason: str = ""
    total: int = 0
    traceback: str = ""

    @property
    def restarts(self) -> int:
        """How often a process was started again."""
        return max(0, self.total - 1)

    def next_after(self) -> float:
        """Return when the next may begin: at once after a first death, then 1, 2, 4 ... 30 seconds after the last.

        4 at most when the last could load the model: requests that kill it are rare, and the others wait.
        """
        if self.in_a_row <= 1:
            return self.last
        longest = _LONGEST_DELAY_S if self.reason else _LONGEST_DELAY_ONCE_LOADED_S
        return self.last + min(longest, 2.0 ** (self.in_a_row - 2))


class RunDirectory:
    """The directory, below the user's private one: `lock_directory()`, unless a test passes another `base`."""

    def __init__(self, identity: Identity, base: Path | None = None) -> None:
        self.identity = identity
        self._base = base
        text = json.dumps(asdict(identity), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", identity.name)[:40]
        self.path = (base or lock_directory()) / f"{_PREFIX}{identity.server}-{readable}-{digest}"

    @classmethod
    def at(cls, path: Path) -> RunDirectory:
        """Open the directory that a worker has made; OSError or ValueError if it is not there, or not one."""
        return cls(Identity(**json.loads((path / "identity.json").read_text("utf-8"))), path.parent)

    def make(self) -> None:
        """Make the directory if it is not there, and remove those of servers that are gone.

        Raises:
            OSError: It cannot be made, or somebody else could change what is in it.
        """
        if self._base is None:
            lock_directory()  # which somebody may have deleted meanwhile
        remove_orphans(self.path.parent)
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._put("identity.json", json.dumps(asdict(self.identity)))

    @property
    def status_file(self) -> Path:
        return self.path / "status"

    def write_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Write down what the next process is to know: JSON values."""
        self._put("arguments.json", json.dumps(dict(arguments)))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that the process was started with; OSError or ValueError before the first start."""
        arguments: dict[str, Any] = json.loads((self.path / "arguments.json").read_text("utf-8"))
        return arguments

    def log_file(self) -> Path:
        """Return where the process is to print: beside the server's logs, else in this directory.

        TorchServe logs to LOG_LOCATION, `logs` by default, below its own working directory (ConfigManager.java).
        """
        identity = self.identity
        name = f"{_PREFIX}{identity.name}-{identity.version}-{identity.device}.log"
        try:
            logs = Path(f"/proc/{identity.server}/cwd").readlink() / os.environ.get("LOG_LOCATION", "logs")
        except OSError:  # no /proc, or another user's server
            logs = self.path
        if not (logs.is_dir() and os.access(logs, os.W_OK | os.X_OK)):
            logs = self.path
        return logs / re.sub(r"[^A-Za-z0-9._-]", "_", name)

    def listen(self) -> socket.socket:
        """Make the socket; whoever connects from then on waits until it is accepted."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _reachable(self.path) as place:
            draft = Path(place, ".socket")
            draft.unlink(missing_ok=True)
            listener.bind(str(draft))
            draft.chmod(0o600)
            listener.listen(256)
            draft.replace(Path(place, "socket"))
        closed_in_children(listener)
        return listener

    def connect(self) -> socket.socket | None:
        """Return a connection to the predictor process; None when none listens.

        Raises:
            ForeignProcess: Another user's process does.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _reachable(self.path) as place:
                connection.connect(f"{place}/socket")
        except OSError:
            connection.close()
            return None
        check_peer(connection)
        return connection

    def listens(self) -> bool:
        """Return whether there is a predictor process. See `connect`."""
        connection = self.connect()
        if connection is not None:
            connection.close()
        return connection is not None

    @contextlib.contextmanager
    def starting(self, wait_s: float) -> Iterator[bool]:
        """Hold `start.lock`; yields False when another holds it all that time.

        Raises:
            FileNotFoundError: The directory is gone; `make` it again.
        """
        path, deadline = self.path / "start.lock", time.monotonic() + wait_s
        while (descriptor := _try_lock(path)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                _unlock(descriptor)

    def own(self) -> int | None:
        """Take `owner.lock` for this process's life; return its descriptor, or None when another process has it."""
        return _try_lock(self.path / "owner.lock")

    def owned(self, owner: int) -> bool:
        """Return whether the directory is still there, and still that of the process with this `own` descriptor."""
        try:
            return has_name(os.fstat(owner), self.path / "owner.lock")
        except OSError:
            return False

    def starts(self) -> Starts:
        """Return how the last starts went."""
        try:
            return Starts(**json.loads((self.path / "starts.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return Starts()

    def note_start(self) -> None:
        """Note that a process is being started; only under `start.lock`."""
        before, now = self.starts(), time.monotonic()
        in_a_row = before.in_a_row + 1 if before.last and now - before.last < _SETTLED_S else 1
        self._put("starts.json", json.dumps(asdict(Starts(now, in_a_row, total=before.total + 1))))

    def note_failure(self, reason: str, traceback: str) -> None:
        """Note that the process that was started cannot load the model."""
        starts = replace(self.starts(), reason=reason, traceback=traceback)
        self._put("starts.json", json.dumps(asdict(starts)))

    def note_unsendable(self, reason: str) -> None:
        """Note why a worker sends whole requests, although preprocess and postprocess were to run in it."""
        self._put("unsendable", reason)

    def unsendable(self) -> str:
        """Return what the last worker that does so has noted; empty when none does."""
        try:
            return (self.path / "unsendable").read_text("utf-8")
        except OSError:
            return ""

    def _put(self, name: str, text: str) -> None:
        """Write a file of the directory; whoever reads it sees all of it, or the one before."""
        draft = self.path / f".{name}.{os.getpid()}"
        draft.write_text(text, "utf-8")
        draft.replace(self.path / name)

    def remove(self, owner: int) -> None:
        """Remove the directory and what is in it, unless a worker is just starting the next process, or has.

        When the server has ended, a worker that is just starting one has not noticed yet, and nobody comes after it.
        """
        with contextlib.suppress(OSError):
            if not self.owned(owner):
                return
            descriptor = _try_lock(self.path / "start.lock")
            if descriptor is not None or not self.identity.alive():
                shutil.rmtree(self.path, ignore_errors=True)
            if descriptor is not None:
                _unlock(descriptor)


def run_directories(base: Path) -> Iterator[Path]:
    """Yield those of all servers, models and devices below a user's private directory; some servers are gone."""
    return base.glob(f"{_PREFIX}*")


def remove_orphans(base: Path) -> None:
    """Remove the directories of servers that are gone, as SIGKILL leaves them behind."""
    for path in run_directories(base):
        with contextlib.suppress(OSError):
            if not _orphan(path):
                continue
            descriptor = _try_lock(path / "owner.lock")
            if descriptor is not None:  # else a predictor process is just about to end, and removes it itself
                shutil.rmtree(path, ignore_errors=True)
                _unlock(descriptor)


def _orphan(path: Path) -> bool:
    try:
        return not RunDirectory.at(path).identity.alive()
    except (OSError, ValueError, TypeError):
        # The worker that made it was killed before it had written whose it is; or is just about to.
        number = path.name.removeprefix(_PREFIX).split("-")[0]
        return number.isdigit() and started(int(number)) == -1


def check_peer(connection: socket.socket) -> None:
    """Check that the process at the other end is this user's.

    Raises:
        ForeignProcess: It is not; the connection is closed.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the directory is this user's alone
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", raw)
    if uid != os.geteuid():
        connection.close()
        raise ForeignProcess(f"the process at the predictor's socket is user {uid}'s")


@contextlib.contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """Yield a short name of the directory: a socket's address has room for about 100 bytes (unix(7))."""
    if len(os.fsencode(directory)) < 80 or not Path("/proc/self/fd").exists():
        yield str(directory)
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise OSError(
                error.errno,
                f"{path.parent.parent} has no locks ({error.strerror}); {STATE_DIR_VARIABLE} names another directory",
            ) from error
        if os.fstat(descriptor).st_nlink:
            descriptor_closed_in_children(descriptor)
            return descriptor
        os.close(descriptor)  # a predictor process that ended has just removed the directory


def _unlock(descriptor: int) -> None:
    """Give a lock back. Closing it would not do: a child that was forked meanwhile has it open too, and keeps it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    close(descriptor)


LOADING, IDLE, PREDICTING, ENDING = range(4)
STATES = ("loading", "idle", "predicting", "ending")
SLOTS = 1024
"""How many requests the file can name at once."""

# The file is an array of words of eight bytes. A word is stored and read as a whole: nobody sees a state without its
# beginning, so that a predict that has just begun never seems to have run since the machine was started.
_WORD = 8
_MAGIC_WORD, _PID, _STATE, _PREDICTIONS, _REQUESTS, _LARGEST_BATCH, _TIMED_OUT = range(7)
_FIRST_SLOT = 32
_WORDS = _FIRST_SLOT + SLOTS
_MAGIC = int.from_bytes(b"HGPAGE3\0", "little")


class Snapshot(NamedTuple):
    """The status at one moment: the state and its age, calls of the user's predict and how many requests they took."""

    pid: int
    state: str
    since_s: float
    predictions: int
    requests: int
    largest_batch: int

    @property
    def mean_batch(self) -> float:
        """Requests in one call, to two decimals; 0 before the first."""
        return round(self.requests / self.predictions, 2) if self.predictions else 0.0


class StatusFile:
    """The mapped file; its descriptor is closed.

    Raises:
        ValueError: It is no status file.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            if os.fstat(descriptor).st_size != _WORDS * _WORD:
                raise ValueError("not a status file of a predictor process")
            self._words = memoryview(mmap.mmap(descriptor, _WORDS * _WORD)).cast("Q")
        finally:
            os.close(descriptor)
        if self._words[_MAGIC_WORD] != _MAGIC:
            raise ValueError("not a status file of a predictor process")
        self._free = list(range(_WORDS - 1, _FIRST_SLOT - 1, -1))

    @classmethod
    def make(cls, path: Path) -> StatusFile:
        """Make a new file for this process; the one of the process before stays with whoever has it open."""
        draft = path.with_name(f".status.{os.getpid()}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            reserve(descriptor, _WORDS * _WORD)
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        os.pwrite(descriptor, _MAGIC.to_bytes(_WORD, "little"), _MAGIC_WORD * _WORD)
        status = cls(descriptor)
        status._words[_PID] = os.getpid()
        status.enter(LOADING)
        draft.replace(path)
        return status

    @classmethod
    def open(cls, path: Path) -> StatusFile:
        """Open the file of the process that runs; OSError or ValueError if there is none."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def enter(self, state: int) -> None:
        """Note what the process does from now on."""
        self._words[_STATE] = time.monotonic_ns() * len(STATES) + state  # 2**64 / 4 ns are 146 years

    def take_slot(self, connection: int, number: int) -> int:
        """Note that a request is in the user's code; before it is.

        Returns:
            The slot, for `free_slot`; -1 when none was left, and nothing is noted.
        """
        try:
            slot = self._free.pop()
        except IndexError:
            return -1
        self._words[slot] = _name(connection, number)
        return slot

    def free_slot(self, slot: int) -> None:
        """Note that the request has left the user's code."""
        if slot >= 0:
            self._words[slot] = 0
            self._free.append(slot)

    def count(self, requests: int) -> None:
        """Count one more call of predict, for so many requests."""
        words = self._words
        words[_PREDICTIONS] += 1
        words[_REQUESTS] += requests
        words[_LARGEST_BATCH] = max(words[_LARGEST_BATCH], requests)

    def holds(self, connection: int, number: int) -> bool:
        """Return whether a request is in the user's code, or was when the process died."""
        return _name(connection, number) in self._words[_FIRST_SLOT:].tolist()

    def note_timeout(self) -> None:
        """Note that the process is killed because its predict takes too long; before it is."""
        self._words[_TIMED_OUT] = 1

    @property
    def timed_out(self) -> bool:
        """Whether the process was killed for that."""
        return bool(self._words[_TIMED_OUT])

    def look(self) -> Snapshot:
        """Return what the process does now."""
        words = self._words
        since, state = divmod(words[_STATE], len(STATES))
        since_s = (time.monotonic_ns() - since) / 1e9
        counts = words[_PREDICTIONS], words[_REQUESTS], words[_LARGEST_BATCH]
        return Snapshot(words[_PID], STATES[state], since_s, *counts)


def _name(connection: int, number: int) -> int:
    return (connection << 32 | number & 0xFFFFFFFF) + 1
