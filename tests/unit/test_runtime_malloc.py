"""A process keeps the memory that it has freed: the next request finds its pages there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only glibc is told"
)

PROGRAM = """
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
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


def test_pages_are_there_for_the_next_request() -> None:
    assert page_faults(keep="") > PAGES / 4  # without it: the test sees the difference
    assert page_faults() < PAGES / 100


@pytest.mark.parametrize(
    "own",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_who_has_said_how_much_is_obeyed(own: dict[str, str]) -> None:
    assert page_faults(**own) > PAGES / 4
