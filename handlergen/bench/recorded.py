"""What the spans of a load say: stages, devices, workers.

The spans of one request may come from several processes (a worker, and a predictor of its device): they belong
together by the request's id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from handlergen.bench.answers import percentile
from handlergen.recordings import Span, overlapping
from handlergen.runtime.spans import ON_DEVICE, STAGES

_MS = 1e6


@dataclass(frozen=True)
class StageTimes:
    """One stage, per call, in ms.

    Attributes:
        calls: How many there were.
        per_request_ms: All of it together, by the number of requests.
    """

    stage: str
    calls: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    per_request_ms: float


@dataclass(frozen=True)
class DeviceUse:
    """One device within the window.

    Attributes:
        device: Its key.
        busy: The part of the time, 0..1, in which a predict or an explanation ran on it, of whichever model.
        busy_with_others: The part that other models took, or explanations.
        predictions: Calls of the model's predict.
        predict_ms: Their mean length.
        requests_each: How many requests one call answers, by the mean.
        limit_per_s: Requests a second if it did nothing but predict for this model, back to back.
        overlaps: Pairs of them, of any models, that ran at the same time.
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
    """What was recorded within the window.

    Attributes:
        requests: That ended within it.
        stages: In the order of a request; those that did not happen are left out.
        devices: That the model predicted on.
        occupied: Worker (its name or pid) -> the part of the time, 0..1, in which it had a request.
        in_workers_ms: From a request's decode to the end of its encode, by the mean.
    """

    requests: int
    stages: tuple[StageTimes, ...]
    devices: tuple[DeviceUse, ...]
    occupied: dict[str, float]
    in_workers_ms: float

    @property
    def limit_per_s(self) -> float:
        """Requests a second if every device did nothing but predict, back to back."""
        return sum(device.limit_per_s for device in self.devices)

    @property
    def busy(self) -> float:
        """Of all devices, by the mean; 0..1."""
        return fmean(device.busy for device in self.devices) if self.devices else 0.0

    @property
    def overlaps(self) -> int:
        return sum(device.overlaps for device in self.devices)

    @property
    def mean_occupied(self) -> float:
        """Of all workers; 0..1."""
        return fmean(self.occupied.values()) if self.occupied else 0.0

    def stage(self, name: str) -> StageTimes | None:
        """One stage, None when it did not happen."""
        return next((stage for stage in self.stages if stage.stage == name), None)


def summarize(spans: Sequence[Span], model: str, window: tuple[int, int]) -> Recorded | None:
    """What spans of all models say of one model's window, in ns; None when none of its lie in it."""
    start_ns, end_ns = window
    inside = [span for span in spans if span.end_ns > start_ns and span.start_ns < end_ns]
    own = [span for span in inside if span.model == model]
    if not own:
        return None
    whole = [span for span in spans if span.model == model]  # a request may have begun before the window
    requests = _by_request(whole)
    ended = {
        name: (start, end) for name, (start, end) in requests.items() if start_ns <= end < end_ns
    } or requests
    on_device = [span for span in inside if span.stage in ON_DEVICE]
    devices = dict.fromkeys(span.device for span in on_device if _is_predict(span, model))
    return Recorded(
        requests=len(ended),
        stages=tuple(_stages(own, window)),
        devices=tuple(
            _device(device, [span for span in on_device if span.device == device], model, window)
            for device in sorted(devices)
        ),
        occupied=_occupied(whole, window),
        in_workers_ms=fmean(end - start for start, end in ended.values()) / _MS,
    )


def covered(intervals: Iterable[tuple[int, int]], window: tuple[int, int]) -> float:
    """The part of a window, 0..1, that lies in at least one of the intervals."""
    start_ns, end_ns = window
    filled, reached = 0, start_ns
    for start, end in sorted(intervals):
        low, high = max(start, reached), min(end, end_ns)
        if high > low:
            filled += high - low
            reached = high
    return filled / (end_ns - start_ns)


def only_predicts(spans: Iterable[Span]) -> bool:
    """Are these the spans of a process that predicts for workers, and is none itself?"""
    return all(span.stage == "lock_wait" or span.stage in ON_DEVICE for span in spans)


def _by_request(spans: Iterable[Span]) -> dict[str, tuple[int, int]]:
    """Request id -> its first start and last end, whichever process they are from."""
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
    known = [stage for stage in STAGES if stage in lengths]
    for stage in (*known, *sorted(set(lengths) - set(STAGES))):
        took = lengths[stage]
        yield StageTimes(
            stage,
            len(took),
            fmean(took) / _MS,
            percentile(took, 50) / _MS,
            percentile(took, 99) / _MS,
            sum(took) / requests[stage] / _MS,
        )


def _is_predict(span: Span, model: str) -> bool:
    return span.model == model and span.stage == "predict"


def _device(device: str, held: Sequence[Span], model: str, window: tuple[int, int]) -> DeviceUse:
    own = [span for span in held if _is_predict(span, model)]
    others = [(span.start_ns, span.end_ns) for span in held if not _is_predict(span, model)]
    requests = sum(span.request_id.count(",") + 1 for span in own)
    spent_ns = sum(span.end_ns - span.start_ns for span in own)
    return DeviceUse(
        device=device,
        busy=covered(((span.start_ns, span.end_ns) for span in held), window),
        busy_with_others=covered(others, window),
        predictions=len(own),
        predict_ms=spent_ns / len(own) / _MS,
        requests_each=requests / len(own),
        limit_per_s=requests / max(spent_ns, 1) * 1e9,
        overlaps=len(overlapping(held)),
    )


def _occupied(spans: Sequence[Span], window: tuple[int, int]) -> dict[str, float]:
    """By worker: the time between a request's first and last span there. A mere predictor is no worker."""
    there: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        there[span.worker].append(span)
    return {
        worker: covered(_by_request(own).values(), window)
        for worker, own in sorted(there.items())
        if not only_predicts(own)
    }
