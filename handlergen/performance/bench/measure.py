"""One load test: what is sent, where the server runs, the load itself, and what was recorded meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import psutil

from handlergen.client import Client, ModelStatus
from handlergen.client.rest import FieldValue
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.local.offline.sources import open_source
from handlergen.local.requests import content_type_of, read_file
from handlergen.performance.bench.bottleneck import CpuMeter, CpuUse, Readings, Verdict, judge
from handlergen.performance.bench.load import LONGEST_ANSWER_S, Exchange, run_load
from handlergen.performance.bench.traffic import RIGHT, Figures, Load, Pace
from handlergen.performance.recordings import Recorded, Span, read_spans, recorded_so_far, summarize
from handlergen.runtime.codec.content import JSON
from handlergen.runtime.telemetry.recording import TRACE_DIR_VARIABLE
from handlergen.server.launching import MARKER, marked

MOST_ROWS = 10_000
_MOST_BYTES = 1 << 30
TURN_ON = "start the server with `handlergen serve --trace DIR` (or with HANDLERGEN_TRACE_DIR set)"


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        content: The body over REST.
        content_type: Its type.
        fields: Over gRPC the entries of the request; a body is the entry `data`.
    """

    content: bytes
    content_type: str
    fields: Mapping[str, bytes]


def of_body(content: bytes, content_type: str) -> Sample:
    """A request that is nothing but a body."""
    return Sample(content, content_type, {"data": content})


def of_json_text(text: str) -> Sample:
    """JSON as somebody wrote it; the model, not this function, is its judge."""
    return of_body(text.encode("utf-8", "surrogateescape"), JSON)


def of_file(path: Path, content_type: str | None = None) -> Sample:
    """A file's bytes, with the type that its name tells.

    Raises:
        HandlergenError: It cannot be read.
    """
    return of_body(read_file(path), content_type or content_type_of(path))


def of_fields(fields: Mapping[str, FieldValue]) -> Sample:
    """A multipart form.

    Raises:
        HandlergenError: A file cannot be read.
    """
    import httpx

    from handlergen.client.rest import payload

    entries = {}
    for name, value in fields.items():
        if isinstance(value, Path):
            entries[name] = read_file(value)
        else:
            entries[name] = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    headers, options = payload(fields=fields)
    request = httpx.Request("POST", "http://localhost/", headers=headers, **options)
    return Sample(request.read(), request.headers["Content-Type"], entries)


def of_input(given: str, *, content_type: str | None = None) -> list[Sample]:
    """The rows of what `map` takes: JSONL, CSV, .npy, a directory of files, a glob; the first 10 000 of them.

    Raises:
        HandlergenError: It cannot be read, has no rows, or they are too large to be kept.
    """
    kept: list[Sample] = []
    size = 0
    for row in islice(open_source(given, content_type=content_type).rows(), MOST_ROWS):
        content = read_file(row.body) if isinstance(row.body, Path) else row.body
        size += len(content)
        if size > _MOST_BYTES:
            break
        kept.append(of_body(content, row.content_type))
    if not kept:
        raise HandlergenError(f"there is no row in {given}", hint="give at least one request to send")
    return kept


@dataclass(frozen=True)
class ServerProcesses:
    """A model's server.

    Attributes:
        workers: Processes of its workers, and what else serves models beside them.
        frontend: TorchServe's own process, as a list of one or none.
        trace_dir: Where they record spans; None: nowhere, or it cannot be told.
        missing: Why there is none.
    """

    workers: Sequence[int] = ()
    frontend: Sequence[int] = ()
    trace_dir: Path | None = None
    missing: str = ""


def find_processes(status: ModelStatus) -> ServerProcesses:
    """Look at the processes that the server names as the model's workers."""
    workers = [process for worker in status.workers if (process := _worker(worker.pid)) is not None]
    if not workers:
        return ServerProcesses(
            missing="the server's processes are not on this machine, and its spans neither"
        )
    first = workers[0]
    try:
        environ, parent = first.environ(), first.ppid()
    except psutil.Error:
        return ServerProcesses(missing="the workers belong to another user: their spans cannot be found")
    pids = {process.pid for process in workers}
    if marker := environ.get(MARKER):
        # A process that predicts for several workers is no child of any of them.
        pids |= {process.pid for process in marked(marker)}
    pids.discard(parent)
    named = environ.get(TRACE_DIR_VARIABLE)
    if not named:
        return ServerProcesses(sorted(pids), [parent], None, f"the server records no spans: {TURN_ON}")
    directory = Path(named)
    if not directory.is_absolute():
        with contextlib.suppress(psutil.Error):
            directory = Path(first.cwd()) / directory
    return ServerProcesses(sorted(pids), [parent], directory)


def _worker(pid: int) -> psutil.Process | None:
    """The process, if it is a worker of a TorchServe here: on another machine its number means nothing."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return process
    return None


@dataclass(frozen=True)
class LoadPlan:
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
    plan: LoadPlan
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
    plan: LoadPlan,
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
    place = find_processes(status)
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


def _try_one(client: Client, name: str, sample: Sample, plan: LoadPlan) -> None:
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


def _run(client: Client, name: str, samples: Sequence[Sample], plan: LoadPlan) -> Load:
    seconds = plan.warmup_s + plan.seconds
    limit = plan.longest_answer_s
    if plan.over_grpc:
        from handlergen.performance.bench.grpc_load import prediction_request, run_grpc_load

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


def _spans(place: ServerProcesses, name: str, before: dict[Path, int]) -> tuple[list[Span], str]:
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
