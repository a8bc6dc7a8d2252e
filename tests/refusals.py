"""What file systems refuse: system calls that the kernel answers with an error in a process and in all that it starts.

A file system without locks, or one whose files cannot be mapped (some network and user space ones), is seldom at hand.
A filter of system calls (seccomp(2)) needs no rights, and the program cannot tell it from such a file system.

    python tests/refusals.py locks,maps COMMAND ...
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_NUMBER, _ARGUMENTS = 0, 16  # offsets in struct seccomp_data
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_NUMBERS = {  # of system calls: flock, fcntl, mmap
    "x86_64": (73, 72, 9),
    "aarch64": (32, 25, 222),
}
_SETLK, _OFD_SETLKW = (6, 7), (37, 38)
_WRITE, _SHARED, _ANONYMOUS = 2, 1, 0x20


def possible() -> bool:
    """Whether this machine has such filters."""
    return sys.platform == "linux" and platform.machine() in _NUMBERS


def refuse(*what: str) -> None:
    """Refuse from now on, here and in every process that this one starts.

    Args:
        what: `locks`: flock(2) and the locks of fcntl(2) fail with ENOLCK. `maps`: files cannot be mapped for shared
            writing, mmap(2) fails with ENODEV.

    Raises:
        OSError: The kernel does not take the filter.
    """
    flock, fcntl, mmap = _NUMBERS[platform.machine()]
    code: list[tuple[int, int, int, int]] = []
    if "locks" in what:
        refused = _ERRNO | errno.ENOLCK
        code += _when([(_NUMBER, _EQUAL, flock)], refused)
        for command in (*_SETLK, *_OFD_SETLKW):
            code += _when([(_NUMBER, _EQUAL, fcntl), (_ARGUMENTS + 8, _EQUAL, command)], refused)
    if "maps" in what:
        code += _when(
            [
                (_NUMBER, _EQUAL, mmap),
                (_ARGUMENTS + 16, _ANY_BIT, _WRITE),
                (_ARGUMENTS + 24, _ANY_BIT, _SHARED),
                (_ARGUMENTS + 24, -_ANY_BIT, _ANONYMOUS),
            ],
            _ERRNO | errno.ENODEV,
        )
    code.append((_RETURN, 0, 0, _ALLOW))
    _install(b"".join(struct.pack("=HBBI", *line) for line in code))


def _when(conditions: list[tuple[int, int, int]], answer: int) -> list[tuple[int, int, int, int]]:
    """Instructions that give that answer when all conditions hold: (offset, comparison or its negation, value)."""
    code: list[tuple[int, int, int, int]] = []
    for index, (offset, comparison, value) in enumerate(conditions):
        past = 2 * (len(conditions) - index - 1) + 1  # instructions behind this comparison, up to the answer's end
        jumps = (0, past) if comparison > 0 else (past, 0)
        code += [(_LOAD, 0, 0, offset), (abs(comparison), *jumps, value)]
    return [*code, (_RETURN, 0, 0, answer)]


def _install(code: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    buffer = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
    ):
        if prctl(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"no filter of system calls: {os.strerror(number)}")


if __name__ == "__main__":
    refuse(*sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
