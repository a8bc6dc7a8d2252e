"""One load test: the requests, the server's processes, the load, and the spans recorded meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil

from handlergen.client import Client, ModelStatus
from handlergen.client.client import FieldValue, payload
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.local.offline.sources import open_source
from handlergen.local.requests import content_type_of, form_request, read_file
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
    """One request: the body and its type over REST; over gRPC the entries (a plain body is the entry `data`)."""

    content: bytes
    content_type: str
    fields: Mapping[str, bytes]


def _of_body(content: bytes, content_type: str) -> Sample:
    return Sample(content, content_type, {"data": content})


def of_json_text(text: str) -> Sample:
    """Return a request with JSON text, which is not validated."""
    return _of_body(text.encode("utf-8", "surrogateescape"), JSON)


def of_file(path: Path, content_type: str | None = None) -> Sample:
    """Return a request with a file's bytes, whose type is guessed; raise HandlergenError if it cannot be read."""
    return _of_body(read_file(path), content_type or content_type_of(path))


def of_fields(fields: Mapping[str, FieldValue]) -> Sample:
    """Return a request with a multipart form; raise HandlergenError if a file cannot be read."""
    entries, _ = form_request(fields)
    _, options = payload(fields=fields)
    request = httpx.Request("POST", "http://localhost/", **options)
    return Sample(request.read(), request.headers["Content-Type"], {name: bytes(entries[name]) for name in entries})


def of_input(given: str, *, content_type: str | None = None) -> list[Sample]:
    """Return the first 10,000 rows (or 1 GiB) of an input as for `map`; raise HandlergenError if there are none."""
    kept: list[Sample] = []
    size = 0
    for row in islice(open_source(given, content_type=content_type).rows(), MOST_ROWS):
        content = read_file(row.body) if isinstance(row.body, Path) else row.body
        size += len(content)
        if size > _MOST_BYTES:
            break
        kept.append(_of_body(content, row.content_type))
    if not kept:
        raise HandlergenError(f"{given} has no rows", hint="give at least one request to send")
    return kept


@dataclass(frozen=True)
class ServerProcesses:
    """The processes of a model's server.

    Attributes:
        workers, frontend: Pids of the model's workers and predictor processes, and TorchServe's own, if any.
        trace_dir, missing: Where they record spans; None if they do not, or it is unknown, and why.
    """

    workers: Sequence[int] = ()
    frontend: Sequence[int] = ()
    trace_dir: Path | None = None
    missing: str = ""


def find_processes(status: ModelStatus) -> ServerProcesses:
    """Find the processes of a model's server."""
    workers = [process for worker in status.workers if (process := _worker(worker.pid)) is not None]
    if not workers:
        return ServerProcesses(missing="the server's processes and spans are not on this machine")
    first = workers[0]
    try:
        environ, parent = first.environ(), first.ppid()
    except psutil.Error:
        return ServerProcesses(missing="the workers belong to another user: their spans cannot be found")
    pids = {process.pid for process in workers}
    if marker := environ.get(MARKER):
        # A predictor process is not a child of its workers.
        pids |= {process.pid for process in marked(marker)}
    pids.discard(parent)
    directory = environ.get(TRACE_DIR_VARIABLE)
    if not directory:
        return ServerProcesses(sorted(pids), [parent], None, f"the server records no spans: {TURN_ON}")
    with contextlib.suppress(psutil.Error):
        return ServerProcesses(sorted(pids), [parent], Path(first.cwd(), directory))
    return ServerProcesses(sorted(pids), [parent], Path(directory))


def trace_directory(client: Client, model: str | None = None) -> Path:
    """Return the directory in which a server of this machine records spans.

    Args:
        model: The model whose workers are looked at; None: any of the server's.

    Raises:
        HandlergenError: The server records none, or its processes cannot be seen.
        ServerError: The server cannot be reached, or there is no such model.
    """
    found = ServerProcesses(missing="the server has no models")
    for status in [client.describe(model)] if model is not None else client.status():
        found = find_processes(status)
        if found.trace_dir is not None:
            return found.trace_dir
    raise HandlergenError(found.missing, hint="name the directory of the spans: handlergen trace DIR")


def _worker(pid: int) -> psutil.Process | None:
    """Return the process if it is a TorchServe worker; the pid may be of another machine."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return process
    return None


@dataclass(frozen=True)
class LoadPlan:
    """A load test's options.

    Attributes:
        seconds, warmup_s: Length of the measured window, and of the load before it.
        version: Of the model; None: the default version.
        headers: Sent with every request. REST only.
        longest_answer_s: Timeout of a response.
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
    """The result of a load test.

    Attributes:
        rows, workers: Number of different requests, and of the model's READY workers.
        batch_size: The most requests that a worker gets at once.
        load: All answers, including those of the warm-up.
        window: The measured window, in ns of the monotonic clock.
        spans, recorded: Spans of all models, since before the load, and their summary; empty and None without any.
        missing: Why there are no spans.
        cpu: CPU use by process group; None if it could not be measured.
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
        """Number of failed requests by outcome: `503`, `connection closed`."""
        return {
            outcome.removeprefix("status "): count
            for outcome, count in sorted(self.figures.outcomes.items())
            if outcome != RIGHT
        }

    @property
    def share_of_limit(self) -> float | None:
        """Requests/s divided by the devices' limit; None without spans."""
        if self.recorded is None or not self.recorded.limit_per_s:
            return None
        return self.figures.requests_per_s / self.recorded.limit_per_s


def measure(
    client: Client, name: str, samples: Sequence[Sample], plan: LoadPlan, *, trace_dir: Path | None = None
) -> Measurement:
    """Run a load test on a running model, and name its bottleneck.

    The first sample is sent once before the load, so that a model that rejects it is reported as such.

    Args:
        samples: Sent in turn.
        trace_dir: Where the server records spans, if its processes do not show it.

    Raises:
        RequestFailed: There is no such model, or it rejects the first sample.
        ServerError: The server cannot be reached.
    """
    status = client.describe(name, version=plan.version)
    if not status.ready_workers:
        raise ServerError(f"{name} has no READY worker", hint="see `handlergen status`")
    _try_one(client, name, samples[0], plan)
    processes = find_processes(status)
    if trace_dir is not None:
        processes = replace(processes, trace_dir=trace_dir, missing="")
    before = recorded_so_far(processes.trace_dir) if processes.trace_dir else {}
    meter = CpuMeter({"workers": processes.workers, "frontend": processes.frontend})
    with Readings(meter, plan.warmup_s, plan.warmup_s + plan.seconds) as readings:
        load = _run(client, name, samples, plan)
    window = load.steady(skip_first_s=plan.warmup_s)
    figures = load.figures(window)
    spans, missing = _spans(processes, name, before)
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
    timing = {"seconds": plan.warmup_s + plan.seconds, "longest_answer_s": plan.longest_answer_s}
    # The token is not renewed meanwhile.
    lasting_s = plan.warmup_s + plan.seconds + plan.longest_answer_s
    if plan.over_grpc:
        from handlergen.performance.bench.grpc_load import prediction_request, run_grpc_load

        return run_grpc_load(
            client.settings.addresses()["gRPC inference"],
            [prediction_request(name, sample.fields, version=plan.version) for sample in samples],
            pace=plan.pace,
            metadata=client.authorization(lasting_s=lasting_s),
            tls=client.verification if client.settings.grpc_tls else None,
            **timing,
        )
    path = f"/predictions/{quote(name, safe='')}" + (f"/{quote(plan.version, safe='')}" if plan.version else "")
    carried = {**client.authorization(lasting_s=lasting_s), **plan.headers}
    https = client.settings.inference_address.startswith("https:")
    return run_load(
        client.settings.addresses()["inference"],
        [Exchange(path, sample.content, sample.content_type, headers=carried) for sample in samples],
        pace=plan.pace,
        tls=(client.verification.context(), client.verification.name) if https else None,
        **timing,
    )


def _spans(processes: ServerProcesses, name: str, before: dict[Path, int]) -> tuple[list[Span], str]:
    """Return the spans recorded since, or why there are none."""
    if processes.trace_dir is None:
        return [], processes.missing
    try:
        found = read_spans(processes.trace_dir, after=before)
    except HandlergenError as error:
        return [], error.message
    if any(span.model == name for span in found):
        return found, ""
    return [], f"nothing was recorded for {name} in {processes.trace_dir}: only archives of handlergen record spans"
