"""One load test: find the server, load it, read what was recorded meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from handlergen.bench.answers import RIGHT, Figures, Load
from handlergen.bench.cpu import CpuMeter, CpuUse, Readings
from handlergen.bench.load import LONGEST_ANSWER_S, Exchange, run_load
from handlergen.bench.pace import Pace
from handlergen.bench.place import Place, find
from handlergen.bench.recorded import Recorded, summarize
from handlergen.bench.samples import Sample
from handlergen.bench.verdict import Verdict, judge
from handlergen.client import Client
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.recordings import Span, read_spans, recorded_so_far


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        pace: A closed loop of clients, or an open one.
        seconds: Length of what counts.
        warmup_s: Length of what comes before and does not.
        over_grpc: gRPC instead of REST.
        version: Of the model; None: the default one.
        headers: Sent with every request. REST only.
        longest_answer_s: What takes longer is given up.
    """

    pace: Pace
    seconds: float = 10.0
    warmup_s: float = 2.0
    over_grpc: bool = False
    version: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    longest_answer_s: float = LONGEST_ANSWER_S


@dataclass(frozen=True)
class Measurement:
    """What came of it.

    Attributes:
        rows: How many different requests were sent.
        workers: READY workers of the model; `batch_size`: the most requests that one gets at once.
        load: Every answer, those of the warm-up included.
        window: What counts, in ns of the monotonic clock.
        spans: Of all models, since before the load; empty without a recording.
        recorded: What they say; None without any.
        missing: Why there is no recording.
        cpu: Whose CPU time it was; None when that could not be measured.
    """

    model: str
    version: str
    plan: Plan
    rows: int
    workers: int
    batch_size: int
    load: Load
    window: tuple[int, int]
    figures: Figures
    spans: Sequence[Span]
    recorded: Recorded | None
    missing: str
    cpu: CpuUse | None
    verdict: Verdict

    @property
    def errors(self) -> dict[str, int]:
        """How many requests failed, by what they got: `503`, `connection closed`."""
        return {
            outcome.removeprefix("status "): count
            for outcome, count in sorted(self.figures.outcomes.items())
            if outcome != RIGHT
        }

    @property
    def share_of_limit(self) -> float | None:
        """Requests a second by what the devices could predict; None without spans."""
        if self.recorded is None or not self.recorded.limit_per_s:
            return None
        return self.figures.requests_per_s / self.recorded.limit_per_s


def measure(
    client: Client,
    name: str,
    samples: Sequence[Sample],
    plan: Plan,
    *,
    trace_dir: Path | None = None,
) -> Measurement:
    """Load a running model and say what limits it.

    The first sample is sent once before, so that a request the model refuses is told as what it is.

    Args:
        client: For the server.
        samples: Sent in turn, again and again.
        trace_dir: Where the server records spans, if that cannot be seen from its processes.

    Raises:
        RequestFailed: There is no such model, or it refuses the first sample.
        ServerError: No server answers (any more).
    """
    status = client.describe(name, version=plan.version)
    if not status.ready_workers:
        raise ServerError(f"{name} has no READY worker", hint="see `handlergen status`")
    _try_one(client, name, samples[0], plan)
    place = find(status)
    if trace_dir is not None:
        place = replace(place, trace_dir=trace_dir, missing="")
    before = recorded_so_far(place.trace_dir) if place.trace_dir else {}
    meter = CpuMeter({"workers": place.workers, "frontend": place.frontend})
    with Readings(meter, plan.warmup_s, plan.warmup_s + plan.seconds) as readings:
        load = _run(client, name, samples, plan)
    window = load.steady(skip_first_s=plan.warmup_s)
    figures = load.figures(window)
    spans, missing = _spans(place, name, before)
    recorded = summarize(spans, name, window) if spans else None
    cpu = readings.use()
    verdict = judge(plan.pace, figures, recorded, cpu, status.batch_size)
    return Measurement(
        model=status.name,
        version=status.version,
        plan=plan,
        rows=len(samples),
        workers=status.ready_workers,
        batch_size=status.batch_size,
        load=load,
        window=window,
        figures=figures,
        spans=spans,
        recorded=recorded,
        missing=missing,
        cpu=cpu,
        verdict=verdict,
    )


def _try_one(client: Client, name: str, sample: Sample, plan: Plan) -> None:
    try:
        if plan.over_grpc:
            client.predict_grpc(name, inputs=sample.fields, version=plan.version)
        else:
            client.predict(
                name,
                content=sample.content,
                content_type=sample.content_type,
                headers=plan.headers,
                version=plan.version,
            )
    except RequestFailed as error:
        raise RequestFailed(
            f"{name} answers the first request with an error: {error.message}",
            status=error.status,
            body=error.body,
            hint=error.hint or "give a request that it can answer: --data, --file, --field or --inputs",
        ) from error


def _run(client: Client, name: str, samples: Sequence[Sample], plan: Plan) -> Load:
    seconds = plan.warmup_s + plan.seconds
    limit = plan.longest_answer_s
    if plan.over_grpc:
        from handlergen.bench.grpc_load import prediction_request, run_grpc_load

        return run_grpc_load(
            client.settings.addresses()["gRPC inference"],
            [prediction_request(name, sample.fields, version=plan.version) for sample in samples],
            pace=plan.pace,
            seconds=seconds,
            metadata=client.authorization(),
            longest_answer_s=limit,
        )
    if client.settings.inference_address.startswith("https:"):
        raise HandlergenError(
            "the load generator speaks no TLS, and the server's inference_address is https",
            hint="measure over gRPC (--grpc), or on an http address",
        )
    path = f"/predictions/{quote(name, safe='')}" + (
        f"/{quote(plan.version, safe='')}" if plan.version else ""
    )
    carried = {**client.authorization(), **plan.headers}
    return run_load(
        client.settings.addresses()["inference"],
        [Exchange(path, sample.content, sample.content_type, headers=carried) for sample in samples],
        pace=plan.pace,
        seconds=seconds,
        longest_answer_s=limit,
    )


def _spans(place: Place, name: str, before: dict[Path, int]) -> tuple[list[Span], str]:
    """What was recorded since, and why there is nothing."""
    if place.trace_dir is None:
        return [], place.missing
    try:
        found = read_spans(place.trace_dir, after=before)
    except HandlergenError as error:
        return [], error.message
    if not any(span.model == name for span in found):
        why = "only archives of handlergen record spans"
        return [], f"nothing was recorded for {name} in {place.trace_dir}: {why}"
    return found, ""
