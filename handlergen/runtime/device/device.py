"""A worker's device: moving nested values to and from it, waiting for it; and the process's threads and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..codec.errors import is_out_of_memory
from ..pipeline.batching import map_tensors, own_copy

_NOTHING = nullcontext()
_PINNED_FROM = 65536
"""Bytes. Up to here CUDA's driver takes a copy of ordinary memory itself and lets the caller go on; beyond, the caller
and the device wait for it ("API synchronization behavior" in the documentation of the CUDA driver API)."""


class Device:
    """The device that one worker predicts on.

    Args:
        gpu_id: As TorchServe assigned it: a logical index into CUDA_VISIBLE_DEVICES, or None for the CPU.

    Attributes:
        torch: The `torch.device`.
        key: The physical device's name in the lock and in spans: a GPU's UUID, or `cpu`. No index: index 0 of two
            servers may be different cards.
        broken: Every later call fails too, until a new process is started (CUDA: an illegal address, a failed
            assertion).
    """

    def __init__(self, gpu_id: int | None) -> None:
        if gpu_id is not None and torch.cuda.is_available():
            self.torch = torch.device("cuda", gpu_id)
            # A module's plain "cuda" then means this device, not the machine's first. CUDA keeps this per thread;
            # load and predict run in the thread that starts the worker.
            torch.cuda.set_device(self.torch)
            self.key = _gpu_key(gpu_id)
        else:
            self.torch = torch.device("cpu")
            self.key = "cpu"
        self.is_cpu = self.torch.type == "cpu"
        self.broken = False

    def prepare_thread(self) -> None:
        """Make this device the one that the calling thread uses; torch gives each thread the first."""
        if self.torch.type == "cuda":
            torch.cuda.set_device(self.torch)

    def pin(self, value: Any) -> Any:
        """Return `value` with its large tensors in pinned memory, which the device reads itself.

        Called before the lock is taken: the transfer under the lock then neither copies nor waits for the CPU.
        """
        if self.is_cpu:
            return value
        return map_tensors(value, _pinned)

    def put(self, value: Any) -> Any:
        """Return `value` with every tensor on this device; containers are rebuilt only when a tensor moved."""
        if self.is_cpu:
            # A tensor can only be elsewhere when there is an elsewhere.
            return value
        return map_tensors(value, lambda tensor: tensor.to(self.torch, non_blocking=True))

    def fetch(self, value: Any) -> Any:
        """Return `value` with every tensor on the CPU."""
        if self.is_cpu:
            return value
        return map_tensors(value, lambda tensor: tensor.cpu())

    def own(self, value: Any) -> Any:
        """Return a hook's `value`, already on the CPU, in memory that no hook will write to."""
        return own_copy(value, tensors=self.is_cpu)

    def wait(self) -> None:
        """Wait until everything that was launched on the device has finished; launches are asynchronous."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch)

    def recover(self, error: BaseException) -> None:
        """After a failed call, wait for what it launched, and free cached memory if memory ran out.

        After a sticky CUDA error, with which every later call fails too, the device is `broken`.
        """
        try:
            self.wait()
            if not self.is_cpu and is_out_of_memory(error):
                torch.cuda.empty_cache()
        except RuntimeError:
            self.broken = True


def inference_mode() -> AbstractContextManager[object]:
    """Return `torch.inference_mode()`, or a context that does nothing where the mode is on already.

    Entering the mode again costs 2 µs, and 20 µs after a pause, when it is no longer in the CPU's caches.
    """
    return _NOTHING if torch.is_inference_mode_enabled() else torch.inference_mode()


def share_the_cores() -> None:
    """Let torch use half of this process's cores, unless OMP_NUM_THREADS sets the number of threads.

    One worker predicts at a time while the others preprocess and postprocess on the remaining cores. With a thread for
    every core the threads wait for one another: a predict of 1 ms in one thread took 84 ms and more in two, with four
    workers on two busy cores (examples/digits). A module can call `torch.set_num_threads` in its `load`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // 2))


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return tensor
    try:
        return tensor.pin_memory() if tensor.nbytes > _PINNED_FROM else tensor
    except RuntimeError:  # no more memory can be pinned: only the transfer is slower
        return tensor


def _gpu_key(index: int) -> str:
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return f"GPU-{uuid}"
    # Before torch 2.4 there is no UUID; the physical index is the next best name.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return f"GPU-index-{names[index] if index < len(names) else index}"


KEPT_BYTES = 64 << 20
"""The most freed memory that a process keeps."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""More is refused (mallopt(3): HEAP_MAX_SIZE/2)."""

_GLIBC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let glibc keep up to `KEPT_BYTES` of the memory that this process frees, unless the environment sets a limit.

    By default glibc returns a few megabytes to the system as soon as they are free, and the next request that decodes
    an image allocates them again, with a page fault for each page. Decoding and scaling a JPEG of 1024 x 768 took
    13.0 ms, and takes 9.2 ms (Pillow 13, on a virtual machine, where this costs most).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _GLIBC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
