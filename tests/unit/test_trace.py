"""Recorded spans to Chrome traces: what comes out is what the Trace Event Format asks for, whatever was recorded."""

from __future__ import annotations

import gzip
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlergen.cli import cli
from handlergen.errors import HandlergenError
from handlergen.performance.recordings import Span
from handlergen.performance.trace import Trace, TraceSummary, survey, wanted_spans, write_trace

MS = 1_000_000
STAGES = ("decode", "preprocess", "lock_wait", "predict", "postprocess", "encode")


def span(
    stage: str, start: float, end: float, request: str = "a", *, pid: int = 100, device: str = "cpu", model: str = "m"
) -> Span:
    """Times in ms."""
    return Span(stage, round(start * MS), round(end * MS), pid, 1, str(pid), device, model, request)


def request_of(request: str, start: float, *, pid: int = 100, predictor: int | None = None) -> list[Span]:
    """All stages of a request that starts at `start` ms and takes 10 ms; predict lasts 2 ms."""
    where = predictor or pid
    return [
        span("decode", start, start + 1, request, pid=pid),
        span("preprocess", start + 1, start + 4, request, pid=pid),
        span("lock_wait", start + 4, start + 5, request, pid=where),
        span("predict", start + 5, start + 7, request, pid=where),
        span("postprocess", start + 7, start + 9, request, pid=pid),
        span("encode", start + 9, start + 10, request, pid=pid),
    ]


def record(directory: Path, spans: Iterable[Span]) -> Path:
    """A recording as the workers would leave it: a file a process, lines as the spans ended."""
    directory.mkdir(exist_ok=True)
    for one in spans:
        with (directory / f"spans-{one.model}-{one.pid}.jsonl").open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
    return directory


def convert(directory: Path, **wanted: Any) -> tuple[dict[str, Any], TraceSummary]:
    output = io.BytesIO()
    summary = write_trace(Trace(directory, **wanted), output)
    trace = json.loads(output.getvalue())
    validate(trace)
    return trace, summary


def validate(trace: dict[str, Any]) -> None:
    """The rules of the Trace Event Format, and what Perfetto's importer asks beyond them."""
    # Perfetto reads no further than a key it does not know.
    assert list(trace) == ["displayTimeUnit", "traceEvents", "otherData"]
    assert trace["displayTimeUnit"] == "ms"
    process_names: dict[int, str] = {}
    row_names: dict[tuple[int, int], str] = {}
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    flows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert type(event["pid"]) is int
        assert event["pid"] > 0
        assert not any(isinstance(value, list) for value in event.values())
        match event["ph"]:
            case "M":
                named, _, what = event["name"].partition("_")
                assert named in {"process", "thread"}
                assert what in {"name", "sort_index"}
                if event["name"] == "process_name":
                    assert event["pid"] not in process_names
                    process_names[event["pid"]] = event["args"]["name"]
                elif event["name"] == "thread_name":
                    assert (event["pid"], event["tid"]) not in row_names
                    row_names[event["pid"], event["tid"]] = event["args"]["name"]
            case "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                assert event["name"]
                assert event["cat"] in {"worker", "device"}
                slices[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
            case "s" | "t" | "f":
                assert (event["name"], event["cat"], event["bp"]) == ("request", "request", "e")
                flows[event["id"]].append(event)
            case phase:
                pytest.fail(f"unexpected phase {phase}")
    # Every row is named and belongs to a named group; Perfetto looks rows up by tid alone.
    assert set(slices) <= set(row_names)
    assert {pid for pid, _ in row_names} <= set(process_names)
    tids = [tid for _, tid in row_names]
    assert len(tids) == len(set(tids))
    assert not set(tids) & set(process_names)
    for row in slices.values():
        row.sort()
        for (start, length), (next_start, _) in pairwise(row):
            assert start + length <= next_start + 1e-4  # ts and dur are doubles, in microseconds
    for points in flows.values():
        phases = "".join(point["ph"] for point in points)
        assert phases == "s" + "t" * (len(points) - 2) + "f"
        assert all(one["ts"] <= other["ts"] for one, other in pairwise(points))
        for point in points:
            row = slices[point["pid"], point["tid"]]
            assert any(start <= point["ts"] <= start + length + 1e-4 for start, length in row)


def rows_of(trace: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Group name -> row name -> names of its slices."""
    events = trace["traceEvents"]
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event["ph"] == "X":
            found[groups[event["pid"]]][rows[event["tid"]]].append(event["name"])
    return {group: dict(named) for group, named in found.items()}


def arrows_of(trace: dict[str, Any]) -> list[list[str]]:
    """The slices that each request's arrows lead through."""
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    ways: dict[int, list[str]] = defaultdict(list)
    for point in trace["traceEvents"]:
        if point["ph"] in "stf":
            (on,) = [
                event["name"]
                for event in slices
                if event["tid"] == point["tid"] and event["ts"] <= point["ts"] < event["ts"] + event["dur"]
            ]
            ways[point["id"]].append(on)
    return list(ways.values())


def test_a_row_a_worker_and_stage_and_one_a_device(tmp_path: Path) -> None:
    spans = request_of("a", 0, pid=100) + request_of("b", 3, pid=200)
    trace, summary = convert(record(tmp_path / "spans", spans))
    rows = rows_of(trace)
    assert set(rows) == {"m worker", "device cpu"}
    assert rows["device cpu"] == {"predict": ["predict m", "predict m"]}
    assert set(rows["m worker"]) == {stage.replace("_", " ") for stage in STAGES}
    assert {e["pid"] for e in trace["traceEvents"] if e["name"] == "process_name"} >= {100, 200}
    assert arrows_of(trace) == [["preprocess", "predict m", "postprocess"]] * 2
    assert (summary.requests, summary.devices["cpu"].overlaps) == (2, 0)
    assert summary.devices["cpu"].busy == pytest.approx(4 / 13)


def test_times_are_microseconds_since_the_start_to_the_nanosecond(tmp_path: Path) -> None:
    boot = 90 * 24 * 3600 * 1_000_000_000  # a machine that has been up for a quarter of a year
    one = Span("predict", boot, boot + 1, 7, 1, "7", "cpu", "m", "a")
    other = Span("predict", boot + 1_234_567, boot + 2_000_001, 7, 1, "7", "cpu", "m", "b")
    trace, _ = convert(record(tmp_path / "spans", [one, other]))
    device = [(e["ts"], e["dur"]) for e in trace["traceEvents"] if e.get("cat") == "device"]
    assert device == [(0, 0.001), (1234.567, 765.434)]
    assert trace["otherData"]["start_monotonic_ns"] == str(boot)


def test_the_stages_of_a_request_may_belong_to_several_processes(tmp_path: Path) -> None:
    spans = request_of("a", 0, pid=100, predictor=300) + request_of("b", 3, pid=200, predictor=300)
    trace, _ = convert(record(tmp_path / "spans", spans))
    rows = rows_of(trace)
    assert rows["m predictor"]["predict"] == ["predict", "predict"]
    assert "predict" not in rows["m worker"]
    assert arrows_of(trace) == [["preprocess", "predict m", "postprocess"]] * 2


def test_a_batch_is_one_slice_with_an_arrow_for_each_request(tmp_path: Path) -> None:
    spans = [span("preprocess", 0, 2, name) for name in "abc"]
    spans += [span("lock_wait", 2, 3, name) for name in "abc"]
    spans.append(span("predict", 3, 5, "a,b,c"))
    spans += [span("postprocess", 5, 6, name) for name in "abc"]
    trace, _ = convert(record(tmp_path / "spans", spans))
    rows = rows_of(trace)
    assert rows["device cpu"] == {"predict": ["predict m"]}
    # Side by side in one worker: rows of their own.
    assert {"preprocess", "preprocess 2", "preprocess 3"} <= set(rows["m worker"])
    assert "preprocess 4" not in rows["m worker"]
    assert arrows_of(trace) == [["preprocess", "predict m", "postprocess"]] * 3
    (predict,) = [event for event in trace["traceEvents"] if event.get("cat") == "device"]
    assert predict["args"] == {"request": "a,b,c", "model": "m", "requests": 3, "pid": 100}


def test_without_hooks_arrows_start_at_decode_and_end_at_encode(tmp_path: Path) -> None:
    spans = [s for s in request_of("a", 0) if s.stage not in ("preprocess", "postprocess")]
    trace, _ = convert(record(tmp_path / "spans", spans))
    assert arrows_of(trace) == [["decode", "predict m", "encode"]]


def test_predictions_that_overlap_are_seen_and_counted(tmp_path: Path) -> None:
    spans = [span("predict", 0, 4, "a"), span("predict", 2, 6, "b", pid=200)]
    spans += [span("predict", 0, 6, "c", pid=300, device="GPU-1")]
    trace, summary = convert(record(tmp_path / "spans", spans))
    assert rows_of(trace)["device cpu"] == {"predict": ["predict m"], "predict 2": ["predict m"]}
    assert {device: use.overlaps for device, use in summary.devices.items()} == {"cpu": 1, "GPU-1": 0}
    assert summary.devices["cpu"].busy == pytest.approx(1)
    assert summary.devices["cpu"].total_ns == 8 * MS


def test_what_the_runtime_records_becomes_a_valid_trace(serve_project: Callable[..., Any], tmp_path: Path) -> None:
    hooks = ("preprocess(data): return data", "predict(inputs): return inputs", "postprocess(outputs): return outputs")
    model = serve_project("\n".join(f"def {hook}" for hook in hooks), batch="each")
    model(1)
    model(2, 3, 4, 5)
    trace, summary = convert(tmp_path / "spans")
    # Ids repeat from batch to batch here, as TorchServe's do not: each is one request at a time all the same.
    assert arrows_of(trace) == [["preprocess", "predict m", "postprocess"]] * 5
    assert (summary.requests, summary.devices["cpu"].predicts, summary.devices["cpu"].overlaps) == (5, 5, 0)


def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path) -> None:
    spans = record(tmp_path / "spans", request_of("a", 0))
    with (spans / "spans-m-100.jsonl").open("a") as file:
        file.write('{"stage": "predict", "start_ns": 12')
    trace, summary = convert(spans)
    assert summary.torn == 1
    assert summary.spans == 6
    assert len(arrows_of(trace)) == 1


def test_a_worker_that_writes_on_does_not_disturb(tmp_path: Path) -> None:
    spans = record(tmp_path / "spans", request_of("a", 0))
    recording = survey(spans)
    record(spans, request_of("b", 20))
    assert {one.request_id for one in wanted_spans(Trace(spans), recording)} == {"a"}


def test_a_span_that_ends_before_it_starts_is_left_out(tmp_path: Path) -> None:
    backwards = Span("lock_wait", 9 * MS, 8 * MS, 100, 1, "100", "cpu", "m", "a")
    _, summary = convert(record(tmp_path / "spans", [*request_of("a", 0), backwards]))
    assert (summary.backwards, summary.spans) == (1, 6)


def test_only_a_model_and_only_a_time(tmp_path: Path) -> None:
    spans = [one for number in range(10) for one in request_of(f"r{number}", 100 * number)]
    spans.append(span("predict", 250, 251, "x", pid=500, model="other"))
    directory = record(tmp_path / "spans", spans)
    assert convert(directory, model="m")[1].requests == 10
    assert convert(directory, model="other")[1].devices["cpu"].predicts == 1
    assert convert(directory, last_s=0.15)[1].requests == 2
    trace, summary = convert(directory, model="m", from_s=0.2, to_s=0.35)
    assert summary.requests == 2
    first = min(event["ts"] for event in trace["traceEvents"] if event["ph"] == "X")
    assert first == 200_000  # times stay those of the recording, whatever part of it is shown
    with pytest.raises(HandlergenError) as caught:
        convert(directory, from_s=5)
    assert "second 0.910" in str(caught.value.hint)
    with pytest.raises(HandlergenError) as caught:
        convert(directory, model="neither")
    assert "m, other" in str(caught.value.hint)


def test_a_window_that_cuts_requests_leaves_no_loose_arrow(tmp_path: Path) -> None:
    directory = record(tmp_path / "spans", request_of("a", 0))
    assert arrows_of(convert(directory, to_s=0.006)[0]) == [["preprocess", "predict m"]]
    assert arrows_of(convert(directory, to_s=0.003)[0]) == []
    assert arrows_of(convert(directory, from_s=0.0055)[0]) == [["predict m", "postprocess"]]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(
        st.builds(
            span,
            st.sampled_from((*STAGES, "explain")),
            start := st.integers(0, 30),
            start.map(lambda moment: moment + 31),
            st.sampled_from(["a", "b", "a,b", 'quoted "c"', "ä"]),
            pid=st.integers(1, 4),
            device=st.sampled_from(["cpu", "GPU-1"]),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_any_recording_becomes_a_valid_trace(tmp_path_factory: pytest.TempPathFactory, spans: list[Span]) -> None:
    directory = record(tmp_path_factory.mktemp("spans"), spans)
    trace, summary = convert(directory)
    assert sum(event.get("cat") == "worker" for event in trace["traceEvents"]) == len(spans) == summary.spans
    predicts = [one for one in spans if one.stage in ("predict", "explain")]
    assert sum(event.get("cat") == "device" for event in trace["traceEvents"]) == len(predicts)


def test_a_file_in_disorder_comes_in_order(tmp_path: Path) -> None:
    starts = [(7 * number) % 1000 for number in range(1000)]
    directory = record(tmp_path / "spans", [span("predict", one, one + 1) for one in starts])
    spans = wanted_spans(Trace(directory), survey(directory))
    assert [one.start_ns for one in spans] == [number * MS for number in range(1000)]


def test_the_command_writes_a_file_and_says_what_is_in_it(tmp_path: Path) -> None:
    directory = record(tmp_path / "spans", request_of("a", 0) + request_of("b", 20))
    output = tmp_path / "trace.json"
    result = CliRunner().invoke(cli, ["trace", str(directory), "-o", str(output)])
    assert result.exit_code == 0, result.output
    validate(json.loads(output.read_text()))
    assert "2 requests answered by 1 process in 0.030 s" in result.stderr
    assert "cpu: 2 predicts, 0 overlaps, busy 13.3 % of the time, 2 ms each" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    result = CliRunner().invoke(cli, ["trace", str(directory), "-o", str(output), "--json"])
    report = json.loads(result.stdout)
    assert report["devices"]["cpu"] == {
        "predicts": 2,
        "overlaps": 0,
        "busy_s": 0.004,
        "busy_share": pytest.approx(0.133, abs=1e-3),
    }
    assert (report["requests"], report["processes"], report["torn_lines"]) == (2, [100], 0)


def test_packed_and_on_stdout_it_is_the_same(tmp_path: Path) -> None:
    directory = record(tmp_path / "spans", request_of("a", 0))
    run = CliRunner().invoke
    packed = tmp_path / "trace.json.gz"
    assert run(cli, ["trace", str(directory), "-o", str(packed)]).exit_code == 0
    on_stdout = run(cli, ["trace", "-o", "-"], env={"HANDLERGEN_TRACE_DIR": str(directory)})
    assert gzip.decompress(packed.read_bytes()) == on_stdout.stdout_bytes
    validate(json.loads(on_stdout.stdout))
    first = packed.read_bytes()
    run(cli, ["trace", str(directory), "-o", str(packed)])
    assert packed.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`handlergen trace DIR` needs no running server"),
        (["nowhere"], "there is no such directory"),
        (["spans", "--last", "1", "--to", "2"], "--last cannot be used"),
        (["spans", "--from", "3", "--to", "2"], "--to must be later"),
        (["spans", "-o", "-", "--json"], "--json and -o - cannot be combined"),
        (["spans", "-o", "missing/trace.json"], "there is no directory missing"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HANDLERGEN_TRACE_DIR", raising=False)
    record(tmp_path / "spans", request_of("a", 0))
    (tmp_path / "config.properties").write_text("management_address=http://127.0.0.1:1\n")  # no server listens there
    status, _, said = run("trace", *arguments)
    assert status in (1, 2, 5)
    assert message in said


def test_a_span_with_a_value_of_another_kind_is_told(tmp_path: Path) -> None:
    record(tmp_path / "spans", [span("predict", 0, 1)])
    (file,) = (tmp_path / "spans").iterdir()
    good = json.loads(file.read_text())
    for field in ("model", "stage", "worker", "device", "request_id", "pid", "thread"):
        file.write_text(json.dumps({**good, field: None}) + "\n")
        with pytest.raises(HandlergenError, match=rf"jsonl:1: not a recorded span: its {field} is None"):
            survey(tmp_path / "spans")
