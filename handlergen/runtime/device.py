"""Which device a worker has, moving nested values to and from it, and waiting until it is done."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .failures import is_out_of_memory
from .nested import map_tensors, own_copy

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
