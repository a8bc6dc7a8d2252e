"""Reading recorded spans: what they prove must not depend on luck in how they are read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlergen.errors import HandlergenError
from handlergen.performance.recordings import Span, beside, busy_share, overlapping, read_spans
from handlergen.runtime.telemetry.recording import Spans


def span(start: int, end: int, *, stage: str = "predict", request: str = "a", device: str = "cpu") -> Span:
    return Span(stage, start, end, 1, 1, "w", device, "m", request)


def test_reads_what_the_runtime_writes(tmp_path: Path) -> None:
    recorder = Spans(tmp_path, model="digits", device="cpu")
    recorder.record("predict", "one,two", 20, 30)
    recorder.record("preprocess", "one", 5, 10)
    recorder.flush()
    read = read_spans(tmp_path)
    assert [(s.stage, s.request_id, s.start_ns, s.end_ns) for s in read] == [
        ("preprocess", "one", 5, 10),
        ("predict", "one,two", 20, 30),
    ]
    assert {(s.model, s.device, s.worker) for s in read} == {("digits", "cpu", str(os.getpid()))}
    assert read_spans(tmp_path, model="other") == []


def test_a_line_cut_by_a_killed_worker_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(asdict(span(1, 2)))
    (tmp_path / "spans-m-1.jsonl").write_text(f"{whole}\n{whole[:20]}")
    assert read_spans(tmp_path) == [span(1, 2)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "spans-m-1.jsonl").write_text(f"{json.dumps(asdict(span(1, 2)))}\n{{}}\n")
    with pytest.raises(HandlergenError, match=r"spans-m-1\.jsonl:2: not a recorded span"):
        read_spans(tmp_path)


def test_no_recording_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HandlergenError) as caught:
        read_spans(tmp_path)
    assert "HANDLERGEN_TRACE_DIR" in str(caught.value.hint)


def test_spans_that_touch_do_not_overlap() -> None:
    assert overlapping([span(0, 10), span(10, 20)]) == []
    assert overlapping([span(0, 11), span(10, 20)]) == [(span(0, 11), span(10, 20))]
    assert overlapping([span(0, 10, device="gpu-a"), span(5, 15, device="gpu-b")]) == []


def test_a_long_span_is_not_forgotten_behind_a_short_one() -> None:
    long, short, late = span(0, 100), span(1, 2), span(50, 60)
    assert overlapping([long, short, late]) == [(long, short), (long, late)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8))
def test_overlaps_are_found_exactly_when_two_spans_share_a_moment(drawn: list[tuple[int, int]]) -> None:
    spans = [span(start, start + length) for start, length in drawn]
    moments = [moment for one in spans for moment in range(one.start_ns, one.end_ns)]
    assert bool(overlapping(spans)) == (len(moments) != len(set(moments)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.tuples(st.integers(0, 40), st.integers(1, 20)))
def test_beside_agrees_with_comparing_every_pair(lengths: list[int], one: tuple[int, int]) -> None:
    others, moment = [], 0
    for number, length in enumerate(lengths):
        others.append(span(moment, moment + length, request="b" if number % 3 else "a"))
        moment += length + number % 2
    asked = span(one[0], one[0] + one[1], stage="preprocess", request="a")
    expected = any(
        other.start_ns < asked.end_ns and asked.start_ns < other.end_ns and other.request_id != "a" for other in others
    )
    assert beside([asked], others) == ([asked] if expected else [])
    assert beside([asked], [span(0, 100, request="b,a")]) == []  # its own batch


def test_busy_share_counts_only_the_window() -> None:
    assert busy_share([span(0, 10), span(20, 40)], 5, 25) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="window"):
        busy_share([], 5, 5)
