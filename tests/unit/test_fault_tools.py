"""What the tests of faults judge by: growth over time, right answers, and histories of predicts."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.growth import slope
from tests.histories import in_predict, is_right, overlapping, predicted


def test_a_slope_and_its_error() -> None:
    line = slope([(0.0, 10.0), (60.0, 11.0), (120.0, 12.0)])
    assert (line.first, line.last, line.per_minute, line.error) == pytest.approx((10, 12, 1, 0))
    chance = random.Random(1)
    noisy = slope([(float(second), chance.gauss(100, 5)) for second in range(300)])
    assert abs(noisy.per_minute) < 3 * noisy.error < 2


def test_only_a_requests_own_answer_is_right() -> None:
    digest = "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce"  # of "3"
    answer = f'{{"n":3,"digest":"{digest}","predictor":7,"worker":8}}'.encode()
    assert is_right(3, answer)
    assert not is_right(4, answer)
    assert not any(is_right(3, answer[:index] + b"x" + answer[index + 1 :]) for index in range(len(answer)))
    assert not is_right(3, answer + b" ")


def test_overlaps_and_unfinished_predicts_are_seen(tmp_path: Path) -> None:
    history, own = tmp_path / "history", os.getpid()
    history.write_text(f"0 begin 0 1\n1 begin 1 100\n1 end 1 200\n2 begin 2 150\n2 end 2 250\n{own} begin 3 300\n")
    predictions = predicted(history)
    assert [(one.number, other.number) for one, other in overlapping(predictions)] == [(1, 2)]
    assert [each.number for each in predictions if each.end_ns is None] == [0, 3]
    assert in_predict(history) == own
