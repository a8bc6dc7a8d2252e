"""Signals that this process got, for a thread that is not the main one."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading

_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
_PASS = getattr(socket, "SO_PASSCRED", None)  # Linux
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size)


def default_in_children(number: int) -> None:
    """Let a signal mean to forked children what it means to any process; and what `OwnSignals` notes, nothing.

    To be called once, on the main thread. A multiprocessing pool ends its children by SIGTERM, which must end them,
    however soon it comes: until a child has forgotten this process's handler, the signal waits.
    """
    before: dict[int, set[int | signal.Signals]] = {}

    def block() -> None:
        before[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.pop(threading.get_ident()))

    def forget() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(number, signal.SIG_DFL)
        go_on()

    os.register_at_fork(before=block, after_in_parent=go_on, after_in_child=forget)


class OwnSignals:
    """Tells which signals came; made on the main thread, which alone may ask Python to note them.

    Python notes them in a socket that a forked child has too, until it does something about it. A multiprocessing pool
    ends its children by SIGTERM, sometimes before they have come to that, so that theirs would count as this
    process's. Where the system says who wrote (Linux), they do not.
    """

    def __init__(self) -> None:
        self._socket, noting = socket.socketpair()
        if _PASS is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, _PASS, 1)
        noting.setblocking(False)
        signal.set_wakeup_fd(noting.detach(), warn_on_full_buffer=False)

    def wait(self, seconds: float) -> bytes:
        """The numbers of the signals that came, a byte each; none when there were none for so long."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return b""
        data, ancillary, _flags, _address = self._socket.recvmsg(64, _ANCILLARY)
        for _level, _kind, raw in ancillary:
            if len(raw) == _CREDENTIALS.size and _CREDENTIALS.unpack(raw)[0] != os.getpid():
                return b""
        return data
