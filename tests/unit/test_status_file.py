"""What the status file says of a predictor process, to whoever looks and after its death."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from handlergen.runtime.predictor_process.run_directory import IDLE, PREDICTING, SLOTS, StatusFile


def test_the_status_says_what_the_process_does_even_after_it(tmp_path: Path) -> None:
    status = StatusFile.make(tmp_path / "status")
    seen = StatusFile.open(tmp_path / "status")
    assert seen.look().state == "loading"
    status.enter(PREDICTING)
    slot = status.take_slot(3, 7)
    assert seen.holds(3, 7)
    assert not any(seen.holds(*other) for other in [(7, 3), (3, 8), (3 << 16, 7 << 16)])
    status.count(4)
    status.count(1)
    status.free_slot(slot)
    assert not seen.holds(3, 7)
    picture = seen.look()
    assert (picture.pid, picture.state) == (os.getpid(), "predicting")
    assert (picture.predictions, picture.requests, picture.largest_batch) == (2, 5, 4)
    status.enter(IDLE)
    assert seen.look().state == "idle"
    assert not status.timed_out
    seen.note_timeout()
    assert status.timed_out
    fresh = StatusFile.make(tmp_path / "status")
    assert not fresh.timed_out
    assert status.timed_out  # the old one stays with whoever has it open


def test_a_look_at_the_status_never_mixes_two_states(tmp_path: Path) -> None:
    """It was filled byte by byte: a predict that had just begun seemed to have run for hours, and was killed for it."""
    status = StatusFile.make(tmp_path / "status")
    seen = StatusFile.open(tmp_path / "status")
    writer = os.fork()
    if writer == 0:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            status.enter(PREDICTING)
            status.enter(IDLE)
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


def test_more_requests_than_the_status_has_room_for(tmp_path: Path) -> None:
    status = StatusFile.make(tmp_path / "status")
    slots = [status.take_slot(1, number) for number in range(SLOTS + 2)]
    assert slots[-2:] == [-1, -1]
    assert len(set(slots)) == SLOTS + 1
    assert status.holds(1, SLOTS - 1)
    for slot in slots:
        status.free_slot(slot)
    assert status.take_slot(1, 5) >= 0


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(256 + SLOTS * 8)])
def test_a_file_that_is_no_status_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status").write_bytes(content)
    with pytest.raises(ValueError, match="not a status file"):
        StatusFile.open(tmp_path / "status")
