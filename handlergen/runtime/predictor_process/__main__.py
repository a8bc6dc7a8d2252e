"""The predictor process: `python -m handlergen_runtime.predictor_process RUN_DIRECTORY` (see `launcher`).

It listens before it imports anything heavy, so that whoever wants it waits for this one instead of starting another;
loads the model; predicts; and ends when no worker has held a connection for a while, or the server is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..diagnostics import logger, use
from .run_directory import ENDING, IDLE, RunDirectory, StatusFile

if TYPE_CHECKING:
    from .connections import Connections

_TICK_S = 0.1
_FIRST_WORKER_WITHIN_S = 30.0
_ALONE_S = 5.0  # TorchServe has a worker that died back in two to four seconds
_END_WITHIN_S = 2.0
_OWNER_WITHIN_S = 10.0
_LARGEST_LOG = 16 << 20
BROKEN_DEVICE = 70
CANNOT_LOAD = 71

_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
_PASS_CREDENTIALS = getattr(socket, "SO_PASSCRED", None)  # Linux
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size)


def main(arguments: list[str]) -> int:
    """Serve the workers that belong to a run directory; return the exit status."""
    directory = RunDirectory.at(Path(arguments[0]))
    owner = _own(directory)
    if owner is None:  # another process serves already
        return 0
    faulthandler.enable(all_threads=False)
    status = StatusFile.make(directory.status_file)
    return _Process(directory, owner, status, directory.listen()).run()


class _Process:
    def __init__(self, directory: RunDirectory, owner: int, status: StatusFile, listener: socket.socket) -> None:
        self._directory = directory
        self._owner = owner
        self._status = status
        self._arguments = directory.arguments()
        self._listener = listener
        self._end = self._end_at_once
        self._flush: Callable[[], None] = lambda: None
        self._connections: Connections | None = None
        self._termination = _Termination()

    def run(self) -> int:
        threading.Thread(target=self._watch, name="handlergen-watch", daemon=True).start()
        # Only now: torch takes a second or more.
        from ..codec.redaction import user_traceback, without_secrets
        from ..contract import Bundle
        from ..device.device import keep_freed_memory, share_the_cores
        from ..environment import reason_of
        from .connections import Connections, WorkerLogHandler
        from .server import Server
        from .transport import Kind, Refused, Welcome

        keep_freed_memory()
        share_the_cores()
        model_dir = Path(self._arguments["model_dir"])
        bundle = Bundle.from_json(self._arguments["bundle"])
        connections = self._connections = Connections(self._listener)
        handler = WorkerLogHandler(connections)
        logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
        use(handler)
        try:
            server = Server(
                bundle,
                self._arguments,
                server=self._directory.identity.server,
                status=self._status,
                connections=connections,
            )
        except BaseException as error:
            reason = without_secrets(reason_of(error, model_dir))
            refused = Refused(reason, user_traceback(error, user_root=str(model_dir)))
            self._directory.note_failure(*refused)
            connections.announce(Kind.REFUSED, refused)
            time.sleep(0.5)  # until they have it
            return CANNOT_LOAD
        connections.take = server.take
        self._end, self._flush = server.queue.end, server.flush
        self._status.enter(IDLE)
        connections.announce(Kind.WELCOME, Welcome(os.getpid(), server.device_key))
        if not server.predict_until_ended():
            logger().error(
                "the device does not answer any more; predictor process %d ends, and another one goes on",
                os.getpid(),
            )
            time.sleep(0.2)  # until the last answers are out
            server.flush()
            os._exit(BROKEN_DEVICE)
        self._status.enter(ENDING)
        server.flush()
        connections.close()
        self._directory.remove(self._owner)
        server.close()
        return 0

    def _end_at_once(self) -> None:
        self._directory.remove(self._owner)
        os._exit(0)

    def _watch(self) -> None:
        """End the process when no worker is connected any more, or SIGTERM comes; write spans meanwhile."""
        while True:
            terminated = self._termination.wait(_TICK_S)
            with contextlib.suppress(OSError):
                self._rotate_log()
            try:
                self._flush()
            except OSError as error:  # a full disk is no reason to end, nor never to
                logger().warning("spans cannot be written: %s", error)
                self._flush = lambda: None
            # Without its directory no worker finds it: those that come start another, and there must not be two.
            there = self._directory.owned(self._owner) and self._directory.identity.alive()
            if there and not terminated and not self._deserted():
                continue
            self._end()
            time.sleep(_END_WITHIN_S)
            self._end_at_once()  # predict does not return, or a thread of the user's does not end

    def _deserted(self) -> bool:
        """Return whether no worker comes any more; none can before this process accepts them, which may take long."""
        connections = self._connections
        if connections is None or len(connections):
            return False
        patience = _ALONE_S if connections.seen else _FIRST_WORKER_WITHIN_S
        return time.monotonic() - connections.alone_since >= patience

    def _rotate_log(self) -> None:
        """Begin a new log file when what was printed is too much, and keep one old file."""
        if os.fstat(1).st_size < _LARGEST_LOG:
            return
        path = Path(self._arguments["log"])
        path.replace(path.with_name(f"{path.name}.1"))
        new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for output in (1, 2):
            os.dup2(new, output)
        os.close(new)


class _Termination:
    """Tells whether SIGTERM came; made on the main thread, which alone may ask Python to note signals.

    The watching thread notices the signal, because the main thread may be in compiled code for minutes. Python notes
    signals in a socket that a forked child has too, until it does something about it. A multiprocessing pool ends its
    children by SIGTERM, sometimes before they have come to that, so that theirs would count as this process's. Where
    the system says who wrote (Linux), they do not. And SIGTERM must end such a child, however soon it comes: until the
    child has forgotten this process's handler, the signal waits.
    """

    def __init__(self) -> None:
        self._received = False
        signal.signal(signal.SIGTERM, self._note)
        self._socket, sender = socket.socketpair()
        if _PASS_CREDENTIALS is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, _PASS_CREDENTIALS, 1)
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
        self._masks: dict[int, set[int | signal.Signals]] = {}
        os.register_at_fork(before=self._block, after_in_parent=self._go_on, after_in_child=self._forget)

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds at most; return whether SIGTERM has come, then or before."""
        if select.select([self._socket], [], [], seconds)[0]:
            data, ancillary, _flags, _address = self._socket.recvmsg(64, _ANCILLARY)
            foreign = any(
                len(raw) == _CREDENTIALS.size and _CREDENTIALS.unpack(raw)[0] != os.getpid()
                for _level, _kind, raw in ancillary
            )
            if signal.SIGTERM in data and not foreign:
                self._received = True
        return self._received

    def _note(self, _number: int, _frame: object) -> None:
        self._received = True  # also when user code has taken the wakeup descriptor for itself

    def _block(self) -> None:
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _go_on(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.pop(threading.get_ident()))

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._go_on()


def _own(directory: RunDirectory) -> int | None:
    """Take the lock that says that this is the one; None when another process is it and listens."""
    deadline = time.monotonic() + _OWNER_WITHIN_S
    while (owner := directory.own()) is None:
        if directory.listens() or time.monotonic() > deadline:
            return None
        time.sleep(0.02)  # the one before is just ending
    return owner


def run(arguments: list[str]) -> None:
    """End with the status at once: the interpreter would wait for every thread, for one of the user's for ever."""
    try:
        status = main(arguments)
    except BaseException:  # CancelledError too: whatever passes a hook's own handling ends the process, and is logged
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])
