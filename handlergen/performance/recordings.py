"""Recorded spans: read them, query them, and summarize a load test.

`runtime/telemetry/recording.py` writes them, one JSON line per span, when `HANDLERGEN_TRACE_DIR` is set. The spans of
one request may come from several processes (a worker and a predictor process); the request's id connects them.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from handlergen.errors import HandlergenError
from handlergen.runtime.telemetry.stages import BY_PREDICTOR, ON_DEVICE, STAGE_NAMES


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of one request, or one predict call for several requests.

    Attributes:
        stage: A name of `runtime/telemetry/stages.py`.
        start_ns, end_ns: `time.monotonic_ns()`, comparable between all processes of a machine.
        worker: TorchServe's name for the worker, or its pid.
        device: Key of the physical device.
        request_id: TorchServe's, after the client's and a slash if it sent one; of a batch's predict, all of them,
            joined by commas.
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
    """Return the files of a recording and their sizes in bytes, for `read_spans(after=...)`."""
    return {file: file.stat().st_size for file in Path(directory).glob("spans-*.jsonl")}


def read_spans(
    directory: Path | str, *, model: str | None = None, after: Mapping[Path, int] | None = None
) -> list[Span]:
    """Return the spans recorded in a directory, ordered by start.

    Args:
        model: Return only this model's spans.
        after: Skip what `recorded_so_far` found.

    Raises:
        HandlergenError: There is no recording, or a line is not a span.
    """
    known = after or {}
    spans = [span for file in span_files(directory) for span in read_file(file, start=known.get(file, 0))]
    return sorted((span for span in spans if model in (None, span.model)), key=attrgetter("start_ns", "end_ns"))


def read_file(file: Path, *, start: int = 0, size: int | None = None) -> Iterator[Span]:
    """Yield the spans of one file, in file order, without an unfinished last line (of a worker killed mid-write).

    `start` is the offset of a line; `size` the most bytes to read: a worker may still be appending. A file that cannot
    be read, or has a line that is not a span, raises HandlergenError.
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
    """Parse a line. Raises ValueError or TypeError."""
    span = Span(**json.loads(line))
    for name, kind in _KINDS.items():
        if type(getattr(span, name)) is not kind:
            raise ValueError(f"its {name} is {getattr(span, name)!r}")
    return span


def span_files(directory: Path | str) -> list[Path]:
    """Return the files of a recording; raise HandlergenError if the directory has none."""
    files = sorted(Path(directory).glob("spans-*.jsonl"))
    if not files:
        missing = "" if Path(directory).is_dir() else ": there is no such directory"
        raise HandlergenError(
            f"no recorded spans in {directory}{missing}",
            hint="start the server with HANDLERGEN_TRACE_DIR set to that directory, and send it requests",
        )
    return files


def grouped(spans: Iterable[Span], attribute: str) -> dict[str, list[Span]]:
    """Return the spans by the value of an attribute, in the order of the values."""
    key = attrgetter(attribute)
    return {value: list(own) for value, own in groupby(sorted(spans, key=key), key)}


def of_stage(spans: Iterable[Span], *stages: str) -> list[Span]:
    """Return the spans of these stages, in the given order."""
    return [span for span in spans if span.stage in stages]


def overlapping(spans: Iterable[Span]) -> list[tuple[Span, Span]]:
    """Return pairs of spans that overlap on one device: each with the earlier span that ends last."""
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
    """Return the spans that overlap one of another request in `others`, which must not overlap each other."""
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
    """Return the part of the window, 0..1, that the spans cover; raise ValueError if the window is empty."""
    if end_ns <= start_ns:
        raise ValueError("the window must end after it starts")
    return covered(((span.start_ns, span.end_ns) for span in spans), (start_ns, end_ns))


def covered(intervals: Iterable[tuple[int, int]], window: tuple[int, int]) -> float:
    """Return the part of a window, 0..1, that lies in at least one of the intervals."""
    start_ns, end_ns = window
    filled, reached = 0, start_ns
    for start, end in sorted(intervals):
        low, high = max(start, reached), min(end, end_ns)
        if high > low:
            filled += high - low
            reached = high
    return filled / (end_ns - start_ns)


_MS = 1e6


@dataclass(frozen=True)
class StageTimes:
    """Durations of one stage: per call, and the total divided by the number of requests."""

    stage: str
    calls: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    per_request_ms: float


@dataclass(frozen=True)
class DeviceUse:
    """How one device was used within the window. Shares are 0..1.

    Attributes:
        busy: Share of the time in which a predict or an explanation of any model ran.
        busy_with_others: Share taken by other models and by explanations.
        predictions: Calls of this model's predict.
        requests_each: Mean number of requests per call.
        limit_per_s: Requests/s if the device only predicted for this model, without gaps.
        overlaps: Pairs of spans, of any models, that ran at the same time.
    """

    device: str
    busy: float
    busy_with_others: float
    predictions: int
    predict_ms: float
    requests_each: float
    limit_per_s: float
    overlaps: int


@dataclass(frozen=True)
class Recorded:
    """A summary of one model's spans within a window.

    Attributes:
        requests: Requests that ended within the window.
        stages: In pipeline order, without stages that did not run.
        devices: The devices that the model predicted on.
        occupied: Worker -> share of the time, 0..1, in which it had a request.
        in_workers_ms: Mean time from the start of decode to the end of encode.
    """

    requests: int
    stages: tuple[StageTimes, ...]
    devices: tuple[DeviceUse, ...]
    occupied: dict[str, float]
    in_workers_ms: float

    @property
    def limit_per_s(self) -> float:
        """Requests/s if every device only predicted, without gaps."""
        return sum(device.limit_per_s for device in self.devices)

    @property
    def busy(self) -> float:
        """Mean over all devices, 0..1."""
        return fmean(device.busy for device in self.devices) if self.devices else 0.0

    @property
    def overlaps(self) -> int:
        return sum(device.overlaps for device in self.devices)

    @property
    def mean_occupied(self) -> float:
        """Mean over all workers, 0..1."""
        return fmean(self.occupied.values()) if self.occupied else 0.0

    def per_request_ms(self, *, without: Sequence[str]) -> float:
        """Return the time of a request in all stages but these."""
        return sum(stage.per_request_ms for stage in self.stages if stage.stage not in without)

    def stage(self, name: str) -> StageTimes | None:
        """Return one stage, or None if it did not run."""
        return next((stage for stage in self.stages if stage.stage == name), None)


def summarize(spans: Sequence[Span], model: str, window: tuple[int, int]) -> Recorded | None:
    """Summarize one model within a window in ns; None if it has no spans there. `spans` are those of all models."""
    start_ns, end_ns = window
    inside = [span for span in spans if span.end_ns > start_ns and span.start_ns < end_ns]
    own = [span for span in inside if span.model == model]
    if not own:
        return None
    whole = [span for span in spans if span.model == model]  # a request may have begun before the window
    requests = by_request(whole)
    ended = {name: (start, end) for name, (start, end) in requests.items() if start_ns <= end < end_ns} or requests
    predicted_on = {span.device for span in of_stage(own, "predict")}
    on_device = grouped(of_stage(inside, *ON_DEVICE), "device")
    return Recorded(
        requests=len(ended),
        stages=tuple(_stages(own, window)),
        devices=tuple(
            _device(device, held, model, window) for device, held in on_device.items() if device in predicted_on
        ),
        # Predictor processes are not workers.
        occupied={
            worker: covered(by_request(parts).values(), window)
            for worker, parts in grouped(whole, "worker").items()
            if not only_predicts(parts)
        },
        in_workers_ms=fmean(end - start for start, end in ended.values()) / _MS,
    )


def only_predicts(spans: Iterable[Span]) -> bool:
    """Return whether these are the spans of a predictor process."""
    return all(span.stage in BY_PREDICTOR for span in spans)


def by_request(spans: Iterable[Span]) -> dict[str, tuple[int, int]]:
    """Return request id -> its first start and last end, in any process."""
    found: dict[str, tuple[int, int]] = {}
    for span in spans:
        for name in span.request_id.split(","):
            start, end = found.get(name, (span.start_ns, span.end_ns))
            found[name] = (min(start, span.start_ns), max(end, span.end_ns))
    return found


def _stages(spans: Sequence[Span], window: tuple[int, int]) -> Iterable[StageTimes]:
    lengths: dict[str, list[int]] = defaultdict(list)
    requests: dict[str, int] = defaultdict(int)
    for span in spans:
        if window[0] <= span.end_ns < window[1]:
            lengths[span.stage].append(span.end_ns - span.start_ns)
            requests[span.stage] += span.request_id.count(",") + 1
    known = [stage for stage in STAGE_NAMES if stage in lengths]
    for stage in (*known, *sorted(set(lengths) - set(STAGE_NAMES))):
        took = lengths[stage]
        yield StageTimes(
            stage,
            len(took),
            fmean(took) / _MS,
            percentile(took, 50) / _MS,
            percentile(took, 99) / _MS,
            sum(took) / requests[stage] / _MS,
        )


def _device(device: str, held: Sequence[Span], model: str, window: tuple[int, int]) -> DeviceUse:
    own = [span for span in held if span.model == model and span.stage == "predict"]
    others = [span for span in held if span.model != model or span.stage != "predict"]
    requests = sum(span.request_id.count(",") + 1 for span in own)
    spent_ns = sum(span.end_ns - span.start_ns for span in own)
    return DeviceUse(
        device=device,
        busy=busy_share(held, *window),
        busy_with_others=busy_share(others, *window),
        predictions=len(own),
        predict_ms=spent_ns / len(own) / _MS,
        requests_each=requests / len(own),
        limit_per_s=requests / max(spent_ns, 1) * 1e9,
        overlaps=len(overlapping(held)),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed (nearest rank).

    Raises:
        ValueError: No values, or `percent` is not in 0..100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError("a percentile needs values and a percentage")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
