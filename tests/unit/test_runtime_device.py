"""Devices: nested values, how many threads torch gets, and memory that a process keeps for the next request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from handlergen.runtime.device.device import Device
from handlergen.runtime.pipeline.batching import map_tensors

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Sample:
    pixels: torch.Tensor
    label: str


def test_nested_tensors_are_moved_and_the_rest_is_kept() -> None:
    """Moving is tried with the meta device, the only other one there is without a GPU."""
    ones = torch.ones(2)
    value = {
        "a": [ones, 1],
        "b": (ones, "x"),
        "c": Pair(ones, None),
        "d": Sample(ones, "seven"),
        "e": OrderedDict(f=ones),
    }
    moved = map_tensors(value, lambda tensor: tensor.to("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == 1
    assert type(moved["b"]) is tuple
    assert moved["b"][0].is_meta
    assert isinstance(moved["c"], Pair)
    assert moved["c"].left.is_meta
    assert isinstance(moved["d"], Sample)
    assert moved["d"].pixels.is_meta
    assert moved["d"].label == "seven"
    assert isinstance(moved["e"], OrderedDict)
    assert moved["e"]["f"].is_meta
    assert not ones.is_meta


def test_a_value_without_tensors_is_not_copied() -> None:
    value = {"a": [1, {"b": (2,)}], "c": Sample(torch.ones(1), "x")}
    assert map_tensors(value, lambda tensor: tensor) is value


def test_without_a_gpu_everything_stays() -> None:
    device = Device(None)
    value = {"x": torch.ones(1)}
    assert (device.key, device.torch.type) == ("cpu", "cpu")
    assert device.put(value) is value
    assert device.fetch(value) is value
    device.wait()


class NotAGpu(Device):
    """What cannot exist here: a device other than the CPU, up to where its memory would be touched."""

    def __init__(self) -> None:
        super().__init__(None)
        self.is_cpu = False


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The tensors that were brought into page-locked memory: without CUDA there is none."""
    found: list[torch.Tensor] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return found


def test_large_tensors_are_pinned(pinned: list[torch.Tensor]) -> None:
    value = {"image": torch.ones(65537, dtype=torch.uint8), "label": torch.ones(65536, dtype=torch.uint8)}
    moved = NotAGpu().pin(value)
    assert pinned == [value["image"]]
    assert moved["image"] is not value["image"]
    assert moved["label"] is value["label"]
    assert torch.equal(moved["image"], value["image"])


def test_what_cannot_be_page_locked_stays(pinned: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = torch.ones(300, 300).to_sparse()
    elsewhere = torch.ones(1 << 17, device="meta")
    for value in (sparse, elsewhere):
        assert NotAGpu().pin(value) is value
    assert not pinned

    def refused(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    large = torch.ones(1 << 17)
    assert NotAGpu().pin(large) is large


def test_on_the_cpu_nothing_is_pinned() -> None:
    value = [torch.ones(1 << 17)]
    assert Device(None).pin(value) is value


CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("environ", "expected"), [({}, max(1, CORES // 2)), ({"OMP_NUM_THREADS": str(CORES)}, CORES)])
def test_threads_of_a_worker(environ: dict[str, str], expected: int) -> None:
    script = (
        "import torch\n"
        "from handlergen.runtime.device.device import share_the_cores\n"
        "share_the_cores()\n"
        "print(torch.get_num_threads())"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **environ}, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected


only_glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only glibc is told")

REQUESTS = """
import ctypes, resource
from handlergen.runtime.device.device import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def request():
    kept = [libc.malloc(3 << 20) for _ in range(8)]
    for place in kept:
        ctypes.memset(place, 1, 3 << 20)
    for place in reversed(kept):
        libc.free(place)

{keep}
for _ in range(3):
    request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    request()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * (24 << 20) // os.sysconf("SC_PAGE_SIZE")


def page_faults(keep: str = "keep_freed_memory()", **environ: str) -> int:
    """Of ten requests that take 24 MB each, after three."""
    ran = subprocess.run(
        [sys.executable, "-c", REQUESTS.format(keep=keep)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@only_glibc
def test_pages_are_there_for_the_next_request() -> None:
    assert page_faults(keep="") > PAGES / 4  # without it: the test sees the difference
    assert page_faults() < PAGES / 100


@only_glibc
@pytest.mark.parametrize(
    "own",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_who_has_said_how_much_is_obeyed(own: dict[str, str]) -> None:
    assert page_faults(**own) > PAGES / 4
