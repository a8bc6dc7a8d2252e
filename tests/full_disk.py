"""Disks that are full: a small file system of its own where this process may mount one, and the kernel's limit on file
sizes, which needs no rights and makes the same writes fail in a process that runs."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Disk:
    """A directory that can be filled up.

    Attributes:
        directory: Where it is.
        own: It is a file system of its own, of which nothing else can fall short.
    """

    directory: Path
    own: bool

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not one more byte fits."""
        assert self.own
        filler = self.directory / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                for size in (1 << 16, 1):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)):
                            pass
            yield
        finally:
            filler.unlink()


def mount(directory: Path, options: str) -> bool:
    """Mount a file system in memory; False where that is not allowed."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def unmount(directory: Path) -> None:
    """Lazily: what still has a file open there keeps it until it ends."""
    subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)


@contextlib.contextmanager
def small_disk(directory: Path, size: str = "256m") -> Iterator[Disk]:
    """A file system of that size, or just a directory where none can be mounted."""
    own = mount(directory, f"size={size},mode=0700")
    try:
        yield Disk(directory, own)
    finally:
        if own:
            unmount(directory)


@contextlib.contextmanager
def files_limited(processes: Iterable[psutil.Process], limit: int) -> Iterator[None]:
    """No file of these processes, or of those that they start, may grow beyond so many bytes (setrlimit(2): EFBIG)."""
    changed = []
    try:
        for process in processes:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, before[1]))
                changed.append((process.pid, before))
        yield
    finally:
        for pid, before in changed:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
