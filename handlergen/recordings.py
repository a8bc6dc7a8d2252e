"""What recorded spans say: whether predictions overlapped, how busy the device was, what ran beside what.

`runtime/spans.py` writes them, one JSON line a span, when `HANDLERGEN_TRACE_DIR` is set.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from handlergen.errors import HandlergenError

#: One character a stage in `timeline`.
SYMBOLS = {
    "decode": "p",
    "preprocess": "p",
    "lock_wait": ".",
    "predict": "#",
    "explain": "#",
    "postprocess": "a",
    "encode": "a",
}


@dataclass(frozen=True)
class Span:
    """One stage of one request, or one predict over several.

    Attributes:
        stage: `decode`, `preprocess`, `lock_wait`, `predict`, `explain`, `postprocess` or `encode`.
        start_ns, end_ns: `time.monotonic_ns()`, comparable between all processes of a machine.
        worker: TorchServe's name for the worker, else its pid.
        device: Key of the physical device.
        request_id: As TorchServe gave it; several joined by commas for a predict over a batch.
    """

    stage: str
    start_ns: int
    end_ns: int
    pid: int
    thread: int
    worker: str
    device: str
    model: str
    request_id: str


_KINDS = {each.name: int if each.type in ("int", int) else str for each in fields(Span)}


def recorded_so_far(directory: Path | str) -> dict[Path, int]:
    """The files of a recording and their sizes in bytes, for `read_spans` to leave out."""
    return {file: file.stat().st_size for file in Path(directory).glob("spans-*.jsonl")}


def read_spans(
    directory: Path | str, *, model: str | None = None, after: Mapping[Path, int] | None = None
) -> list[Span]:
    """All spans recorded in a directory, by start.

    Args:
        model: Only this model's.
        after: Only what was recorded since (`recorded_so_far`).

    Raises:
        HandlergenError: There is no recording, or a line is not a span.
    """
    known = after or {}
    spans = [span for file in span_files(directory) for span in read_file(file, start=known.get(file, 0))]
    return sorted(
        (span for span in spans if model in (None, span.model)), key=attrgetter("start_ns", "end_ns")
    )


def read_file(file: Path, *, start: int = 0, size: int | None = None) -> Iterator[Span]:
    """The spans of one file, as they were written.

    A worker killed in the middle of a write (scaling down) leaves a last line without its end; it is left out.

    Args:
        start: Leave out so many bytes, which end with a line.
        size: Read no more than so many bytes; whoever writes the file may be at it still.

    Raises:
        HandlergenError: A line is not a span, or the file cannot be read.
    """
    left = math.inf if size is None else size
    try:
        with file.open("rb") as lines:
            lines.seek(start)
            for number, line in enumerate(lines, start=1):
                left -= len(line)
                if left < 0 or not line.endswith(b"\n"):
                    return
                try:
                    yield _span(line)
                except (ValueError, TypeError) as error:
                    raise HandlergenError(f"{file}:{number}: not a recorded span: {error}") from error
    except OSError as error:
        raise HandlergenError(f"{file} cannot be read: {error}") from error


def _span(line: bytes) -> Span:
    """Raises ValueError or TypeError."""
    span = Span(**json.loads(line))
    if type(span.start_ns) is not int or type(span.end_ns) is not int:
        raise ValueError("its times are not whole numbers")
    for name, kind in _KINDS.items():
        if type(getattr(span, name)) is not kind:
            raise ValueError(f"its {name} is {getattr(span, name)!r}")
    return span


def span_files(directory: Path | str) -> list[Path]:
    """The files of a recording.

    Raises:
        HandlergenError: There is none.
    """
    files = sorted(Path(directory).glob("spans-*.jsonl"))
    if not files:
        missing = "" if Path(directory).is_dir() else ": there is no such directory"
        raise HandlergenError(
            f"no recorded spans in {directory}{missing}",
            hint="start the server with HANDLERGEN_TRACE_DIR set to that directory, and send it requests",
        )
    return files


def of_stage(spans: Iterable[Span], *stages: str) -> list[Span]:
    """The spans of these stages, in the same order."""
    return [span for span in spans if span.stage in stages]


def overlapping(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Pairs of spans that ran at the same time on one device; one ending as the other starts is none.

    Each span is paired with one earlier one at most, the longest: enough to tell whether there is
    any, and which.
    """
    found = []
    last: dict[str, Span] = {}
    for span in sorted(spans, key=attrgetter("start_ns", "end_ns")):
        before = last.get(span.device)
        if before is not None and span.start_ns < before.end_ns:
            found.append((before, span))
        if before is None or span.end_ns > before.end_ns:
            last[span.device] = span
    return found


def beside(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Those of `spans` during which one of `others`, of another request, ran at least in part.

    `others` must not overlap each other (predictions of one device do not).
    """
    others = sorted(others, key=attrgetter("start_ns"))
    ends = [other.end_ns for other in others]
    found = []
    for span in spans:
        # The first other that ends after this span starts, and those that follow it until this span's end.
        for other in others[bisect_left(ends, span.start_ns + 1) :]:
            if other.start_ns >= span.end_ns:
                break
            if span.request_id not in other.request_id.split(","):
                found.append(span)
                break
    return found


def busy_share(spans: Iterable[Span], start_ns: int, end_ns: int) -> float:
    """The part of the window, 0..1, that the spans fill. They must not overlap each other.

    Raises:
        ValueError: The window is empty.
    """
    if end_ns <= start_ns:
        raise ValueError("the window must end after it starts")
    inside = (min(span.end_ns, end_ns) - max(span.start_ns, start_ns) for span in spans)
    return sum(max(0, length) for length in inside) / (end_ns - start_ns)


def busiest_window(spans: Sequence[Span], length_ns: int) -> int:
    """Start, in ns, of a window of this length in which most of the spans lie whole; ties to the middle one.

    The spans must not overlap each other.

    Raises:
        ValueError: No spans.
    """
    if not spans:
        raise ValueError("no spans")
    ends = sorted(span.end_ns for span in spans)
    starts = sorted(span.start_ns for span in spans)
    counts = [(bisect_left(ends, start + length_ns) - number, start) for number, start in enumerate(starts)]
    most = max(count for count, _ in counts)
    best = [start for count, start in counts if count == most]
    return best[len(best) // 2]


def timeline(spans: Iterable[Span], start_ns: int, end_ns: int, *, columns: int = 100) -> dict[str, str]:
    """Worker -> one line of `columns` characters: what it was doing in the middle of each column.

    `p` preprocessing, `.` waiting for the device, `#` predicting, `a` preparing the answer, blank: idle.
    Looking at one moment a column, two workers show `#` in the same column only when their predictions
    overlapped. What a predictor process does for a request stands in the row of the request's worker.
    """
    width = (end_ns - start_ns) / columns
    ordered = sorted(spans, key=attrgetter("start_ns"))
    workers = {span.request_id: span.worker for span in ordered if span.stage == "decode"}
    rows: dict[str, list[str]] = {}
    for span in ordered:
        if span.end_ns <= start_ns or span.start_ns >= end_ns:
            continue
        worker = workers.get(span.request_id.partition(",")[0], span.worker)
        row = rows.setdefault(worker, [" "] * columns)
        for column in range(columns):
            if span.start_ns <= start_ns + (column + 0.5) * width < span.end_ns:
                row[column] = SYMBOLS[span.stage]
    return {worker: "".join(rows[worker]) for worker in sorted(rows)}
