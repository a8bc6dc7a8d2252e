"""Which device a worker has, moving nested values to and from it, and waiting until it is done."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..codec.errors import is_out_of_memory
from ..descriptors import is_at
from ..pipeline.batching import map_tensors, own_copy

_NOTHING = nullcontext()
_PINNED_FROM = 65536
"""Bytes. Up to here CUDA's driver takes a copy of ordinary memory itself and lets the caller go on; beyond, the caller
and the device wait for it ("API synchronization behavior" in the documentation of the CUDA driver API)."""


class Device:
    """The device that one worker predicts on.

    Args:
        gpu_id: What TorchServe assigned: a logical index into CUDA_VISIBLE_DEVICES, or None for the CPU.

    Attributes:
        torch: The `torch.device`.
        key: What names the physical device in the lock and in spans: a GPU's UUID, or `cpu`. Two servers may
            both say index 0 and mean different cards, so an index would not do.
        broken: An error stays: every later call fails too (CUDA: an illegal address, a failed assertion), until a new
            process begins afresh.
    """

    def __init__(self, gpu_id: int | None) -> None:
        if gpu_id is not None and torch.cuda.is_available():
            self.torch = torch.device("cuda", gpu_id)
            # A module that says just "cuda" means the device it was given, not the first of the machine. (CUDA
            # keeps this per thread; load and predict run in the one that starts the worker.)
            torch.cuda.set_device(self.torch)
            self.key = _gpu_key(gpu_id)
        else:
            self.torch = torch.device("cpu")
            self.key = "cpu"
        self.is_cpu = self.torch.type == "cpu"
        self.broken = False

    def stage(self, value: Any) -> Any:
        """`value` with its large tensors in page-locked memory, from where the device takes them itself.

        Before the lock: the transfer, which happens inside it, then neither copies nor waits for the processor.
        """
        if self.is_cpu:
            return value
        return map_tensors(value, _page_locked)

    def put(self, value: Any) -> Any:
        """`value` with every tensor in it on this device; containers are rebuilt only when something moved."""
        if self.is_cpu:
            # A tensor can only be elsewhere when there is an elsewhere.
            return value
        return map_tensors(value, lambda tensor: tensor.to(self.torch, non_blocking=True))

    def fetch(self, value: Any) -> Any:
        """`value` with every tensor in it on the CPU."""
        if self.is_cpu:
            return value
        return map_tensors(value, lambda tensor: tensor.cpu())

    def own(self, value: Any) -> Any:
        """`value`, which a hook returned and `fetch` has brought here, with memory that no hook will write to."""
        return own_copy(value, tensors=self.is_cpu)

    def wait(self) -> None:
        """Return when everything that was launched on the device has finished; launches are asynchronous."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch)

    def recover(self, error: BaseException) -> None:
        """After a failed call: what it launched must have ended, and its cached memory be free, before the next turn.

        After a sticky CUDA error, which every later call fails with too, the device is `broken`.
        """
        try:
            self.wait()
            if not self.is_cpu and is_out_of_memory(error):
                torch.cuda.empty_cache()
        except RuntimeError:
            self.broken = True


def inference_mode() -> AbstractContextManager[object]:
    """`torch.inference_mode()`; where that is on already, nothing.

    Entering it anew costs some 2 µs, and ten times that after a pause, when none of it is in the processor's caches.
    """
    return _NOTHING if torch.is_inference_mode_enabled() else torch.inference_mode()


def share_the_cores() -> None:
    """Give torch half of this process's cores, unless OMP_NUM_THREADS says how many threads it shall have.

    Of all workers one predicts at a time while the others prepare and answer on the rest. With a thread for every
    core those wait for one another: a predict of 1 ms in one thread took 84 ms and more in two, with four workers on
    two busy cores (examples/digits). A module that knows better calls `torch.set_num_threads` in its `load`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // 2))


def _page_locked(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return tensor
    try:
        return tensor.pin_memory() if tensor.nbytes > _PINNED_FROM else tensor
    except RuntimeError:  # no more memory can be locked: the transfer is slower, and that is all
        return tensor


def _gpu_key(index: int) -> str:
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return f"GPU-{uuid}"
    # Before torch 2.4 there is no UUID; the physical index is the next best name.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return f"GPU-index-{names[index] if index < len(names) else index}"


_PREFIX = "copies-"
_TRIES, _PAUSE_S = 100, 0.01


class Copies:
    """The copies of one model on one device.

    Args:
        directory: The user's private one.
        server: What tells the server from all others.
        model, version, device: Whose copies.
    """

    def __init__(self, directory: Path, *, server: str, model: str, version: str, device: str) -> None:
        digest = hashlib.sha256("\0".join((server, model, version, device)).encode()).hexdigest()[:16]
        self._directory = directory / f"{_PREFIX}{digest}"
        self._own = str(os.getpid())
        self._held: int | None = None

    def add(self) -> None:
        """This process has one from now on.

        Raises:
            OSError: It cannot be noted.
        """
        remove_left_behind(self._directory.parent, but=self._directory)
        path = self._directory / self._own
        for _ in range(_TRIES):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the directory was empty, and is just removed
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if _lock(descriptor) and is_at(path, descriptor):
                    self._held = descriptor
                    return
                os.close(descriptor)
            time.sleep(_PAUSE_S)  # another process just looks at it
        raise TimeoutError(f"{path} is locked by another process")

    def count(self) -> int:
        """How many there are.

        Raises:
            OSError: That cannot be seen.
        """
        if self._held is None:
            return _alive(self._directory, leave="")
        return 1 + _alive(self._directory, leave=self._own)

    def close(self) -> None:
        """This process has none any more."""
        if self._held is not None:
            (self._directory / self._own).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None
            with contextlib.suppress(OSError):
                self._directory.rmdir()


def remove_left_behind(base: Path, *, but: Path | None = None) -> None:
    """Remove the directories in which no process holds a lock: servers end by killing their workers.

    Args:
        but: Is not looked at: a process loses its own lock when it closes any descriptor of the file.
    """
    for directory in base.glob(f"{_PREFIX}*"):
        if directory != but:
            with contextlib.suppress(OSError):
                _alive(directory, leave=str(os.getpid()))
                directory.rmdir()  # fails when there is one


def _alive(directory: Path, *, leave: str) -> int:
    """How many files of a directory are locked by others; removes those that are not.

    Args:
        leave: Is not looked at: a process loses its lock when it closes any descriptor of the file.
    """
    found = 0
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            if path.name != leave:
                found += _is_locked(path)
    return found


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _lock(descriptor):
            return True
        if is_at(path, descriptor):
            path.unlink()
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system
        return False
    return True


KEPT_BYTES = 64 << 20
"""What a process keeps of the memory that it has freed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""More is refused (mallopt(3): HEAP_MAX_SIZE/2)."""

_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let this process keep up to `KEPT_BYTES` of what it frees; with glibc, and unless its environment says how much.

    By default glibc gives a few megabytes back to the system as soon as they are free, and a request that decodes an
    image asks for them anew: the system clears each page, and the process stumbles over each. Decoding and scaling a
    JPEG of 1024 x 768 took 13.0 ms, and takes 9.2 ms (Pillow 13, on a virtual machine, where this costs most).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_CHOICE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
