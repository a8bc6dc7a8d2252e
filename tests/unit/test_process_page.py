"""What the page says of a predictor process, to whoever looks and after its death."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from handlergen.runtime.process.page import IDLE, PREDICTING, SLOTS, Page


def test_the_page_says_what_the_process_does_even_after_it(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    seen = Page.open(tmp_path / "page")
    assert seen.look().state == "loading"
    page.enter(PREDICTING)
    slot = page.take_slot(3, 7)
    assert seen.holds(3, 7)
    assert not seen.holds(7, 3)
    assert not seen.holds(3, 8)
    page.count(4, 2)
    page.count(1, 0)
    page.free_slot(slot)
    assert not seen.holds(3, 7)
    picture = seen.look()
    assert (picture.pid, picture.state) == (os.getpid(), "predicting")
    assert (picture.predictions, picture.requests, picture.largest_batch, picture.waiting) == (2, 5, 4, 0)
    page.enter(IDLE)
    assert seen.look().state == "idle"
    assert not page.timed_out
    seen.condemn()
    assert page.timed_out
    fresh = Page.make(tmp_path / "page")
    assert not fresh.timed_out
    assert page.timed_out  # the old one stays with whoever has it open


def test_a_look_at_the_page_never_mixes_two_states(tmp_path: Path) -> None:
    """It was filled byte by byte: a predict that had just begun seemed to have run for hours, and was killed for it."""
    page = Page.make(tmp_path / "page")
    seen = Page.open(tmp_path / "page")
    writer = os.fork()
    if writer == 0:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            page.enter(PREDICTING)
            page.enter(IDLE)
        os._exit(0)
    try:
        longest, looks = 0.0, 0
        while os.waitpid(writer, os.WNOHANG) == (0, 0):
            longest = max([longest, *[seen.look().since_s for _ in range(100)]])
            looks += 100
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(writer, signal.SIGKILL)
    assert looks > 1000
    assert longest < 60  # a torn look gives the time since the machine was started, or 146 years


def test_more_requests_than_the_page_has_room_for(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    slots = [page.take_slot(1, number) for number in range(SLOTS + 2)]
    assert slots[-2:] == [-1, -1]
    assert len(set(slots)) == SLOTS + 1
    assert page.holds(1, SLOTS - 1)
    for slot in slots:
        page.free_slot(slot)
    assert page.take_slot(1, 5) >= 0


def test_numbers_that_look_alike_in_memory_are_told_apart(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    page.take_slot(1 << 16, 1 << 16)
    page.take_slot(0, 0)
    assert not page.holds(1, 1)
    assert not page.holds(1, 0)
    assert page.holds(1 << 16, 1 << 16)


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(256 + SLOTS * 8)])
def test_a_file_that_is_no_page_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(ValueError, match="not a page"):
        Page.open(tmp_path / "page")
