"""What a load test makes of answers and spans: figures, the bottleneck, the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from handlergen.cli import cli
from handlergen.errors import HandlergenError
from handlergen.performance.bench import report
from handlergen.performance.bench.bottleneck import CpuMeter, CpuUse, Readings, judge
from handlergen.performance.bench.measure import LoadPlan, Measurement, of_fields, of_input
from handlergen.performance.bench.report import latency_bars, lines, over_time, page, plain, timeline_of
from handlergen.performance.bench.traffic import RIGHT, Closed, Figures, Load, Open, Pace, TimedAnswer
from handlergen.performance.recordings import Recorded, Span, read_spans, recorded_so_far, summarize
from handlergen.runtime.telemetry.stages import STAGE_NAMES

MS = 1_000_000
WINDOW = (0, 100 * MS)


def span(stage: str, start: float, end: float, request: str, *, pid: int = 1, model: str = "m") -> Span:
    """Times in ms."""
    return Span(stage, int(start * MS), int(end * MS), pid, 1, str(pid), "cpu", model, request)


def served(number: int, *, predictor: int | None = None) -> list[Span]:
    """A request of 25 ms each 10 ms, of which the device has 10; workers 1 to 3 in turn."""
    start, name, pid = number * 10.0, f"r{number}", number % 3 + 1
    return [
        span("preprocess", start, start + 8, name, pid=pid),
        span("lock_wait", start + 8, start + 10, name, pid=predictor or pid),
        span("predict", start + 10, start + 20, name, pid=predictor or pid),
        span("postprocess", start + 20, start + 25, name, pid=pid),
    ]


def recorded_of(spans: Sequence[Span], window: tuple[int, int] = WINDOW) -> Recorded:
    found = summarize(spans, "m", window)
    assert found is not None
    return found


@pytest.mark.parametrize("predictor", [None, 77])
def test_spans_of_one_request_belong_together_whichever_process_they_are_from(predictor: int | None) -> None:
    spans = [part for number in range(-3, 12) for part in served(number, predictor=predictor)]
    found = recorded_of(spans)
    assert found.requests == 10
    assert found.in_workers_ms == 25.0
    (device,) = found.devices
    assert (device.busy, device.predict_ms, device.limit_per_s, device.overlaps) == (1.0, 10.0, 100.0, 0)
    assert list(found.occupied) == ["1", "2", "3"]  # a process that only predicts is no worker
    assert [stage.stage for stage in found.stages] == ["preprocess", "lock_wait", "predict", "postprocess"]
    if predictor is None:
        assert found.mean_occupied == pytest.approx(25 / 30, abs=0.05)


def test_a_predict_over_a_batch_counts_for_all_its_requests() -> None:
    spans = [span("predict", 0, 20, "a,b,c,d"), *(span("lock_wait", 0, 0, name) for name in "abcd")]
    found = recorded_of(spans)
    (device,) = found.devices
    assert (device.predictions, device.requests_each, device.limit_per_s) == (1, 4.0, 200.0)
    predict = found.stage("predict")
    assert predict is not None
    assert (predict.mean_ms, predict.per_request_ms) == (20.0, 5.0)


def test_overlaps_and_other_models_on_the_device_are_seen() -> None:
    other = span("predict", 5, 15, "b", pid=2, model="other")
    (device,) = recorded_of([span("predict", 0, 10, "a"), other, span("predict", 50, 60, "c")]).devices
    assert (device.overlaps, device.busy, device.busy_with_others, device.predictions) == (1, 0.25, 0.1, 2)
    # An explanation has the device too.
    (device,) = recorded_of([span("predict", 0, 10, "a"), span("explain", 20, 50, "b")]).devices
    assert (device.overlaps, device.busy, device.busy_with_others, device.predictions) == (0, 0.4, 0.3, 1)


def test_nothing_recorded_of_the_model() -> None:
    assert summarize([span("predict", 0, 10, "a", model="other")], "m", WINDOW) is None


def test_only_what_was_recorded_since(tmp_path: Path) -> None:
    file = tmp_path / "spans-m-1.jsonl"
    line = (
        '{"stage": "predict", "start_ns": %d, "end_ns": 9, "request_id": "a", "thread": 1, "pid": 1, '
        '"worker": "1", "device": "cpu", "model": "m"}\n'
    )
    file.write_text(line % 1)
    before = recorded_so_far(tmp_path)
    with file.open("a") as more:
        more.write(line % 2)
    (tmp_path / "spans-m-2.jsonl").write_text(line % 3)
    assert [found.start_ns for found in read_spans(tmp_path, after=before)] == [2, 3]
    assert len(read_spans(tmp_path)) == 3


def figures(rate: float, *, due: float | None = None, outcomes: dict[str, int] | None = None) -> Figures:
    return Figures(rate, {50: 40.0, 90: 50.0, 99: 60.0, 100: 70.0}, outcomes or {RIGHT: 100}, due or rate)


def use(**cores: float) -> CpuUse:
    return CpuUse(2, **{"client": 0.1, "workers": 0.1, "frontend": 0.1, "others": 0.0, **cores})


BUSY_DEVICE = recorded_of([part for number in range(-3, 12) for part in served(number)])
IDLE = replace(BUSY_DEVICE, devices=(replace(BUSY_DEVICE.devices[0], busy=0.4),))
OCCUPIED = replace(IDLE, occupied=dict.fromkeys("123", 0.97))
RARE = replace(IDLE, occupied=dict.fromkeys("123", 0.2))
SHARED = replace(BUSY_DEVICE, devices=(replace(BUSY_DEVICE.devices[0], busy_with_others=0.5),))


BUSY = "1.8 of 2 cores of the CPU are in use, 1.6 of them by the workers"
MIXED = use(workers=1.6, others=0.0, frontend=0.05, client=0.15)
ALONE = "busy 100.0% of the time, 50% of the time with other models"
UNANSWERED = figures(0, due=60, outcomes={"status 500": 9})


@pytest.mark.parametrize(
    ("bottleneck", "said", "pace", "found", "spans", "cpu"),
    [
        ("device", ALONE, Closed(16), figures(50), SHARED, use()),
        ("device", "It runs predict 100.0% of the time", Closed(16), figures(98), BUSY_DEVICE, use()),
        ("workers", "All 3 have a request 97% of the time", Closed(16), figures(60), OCCUPIED, use()),
        ("workers", "about 4: the other stages take 13.0 ms", Closed(16), figures(60), OCCUPIED, use()),
        ("preprocessing CPU", "1.8 of them by the workers", Closed(16), figures(60), OCCUPIED, use(workers=1.8)),
        ("preprocessing CPU", BUSY, Closed(16), figures(60), RARE, MIXED),
        ("server", "stages take 0.23 at most", Closed(16), figures(10), OCCUPIED, use(workers=1.8)),
        ("server", "1.7 of them by TorchServe", Closed(16), figures(60), RARE, use(frontend=1.7)),
        ("workers", "All 3 have a request", Closed(16), figures(60), OCCUPIED, use(others=1.7)),
        ("other processes", "1.7 of them by other", Closed(16), figures(60), RARE, use(others=1.7)),
        ("load generator", "95% of a core", Closed(16), figures(60), BUSY_DEVICE, use(client=0.95)),
        ("clients", "2 clients at a time", Closed(2), figures(60), RARE, use()),
        ("server", "15.0 ms of its 40.0 ms outside", Closed(16), figures(60), RARE, use()),
        ("none", "keeps up with 50 requests/s, its device busy 40%", Open(50), figures(49.0), IDLE, use()),
        ("workers", "All 3", Open(90), figures(60, due=90), OCCUPIED, use()),
        ("unknown", "Without spans", Closed(16), figures(60), None, None),
        ("errors", "No request was answered", Closed(16), UNANSWERED, IDLE, use()),
    ],
)
def test_the_bottleneck_is_named(
    bottleneck: str, said: str, pace: Pace, found: Figures, spans: Recorded | None, cpu: CpuUse | None
) -> None:
    verdict = judge(pace, found, spans, cpu)
    assert verdict.bottleneck == bottleneck
    assert said in verdict.sentence


@pytest.mark.parametrize(("second_s", "taken"), [(0.21, True), (30.0, False)])
def test_a_load_that_ends_a_little_early_is_read_at_its_end(second_s: float, *, taken: bool) -> None:
    with Readings(CpuMeter({"workers": []}), 0.0, second_s) as readings:
        time.sleep(0.2)
    assert (readings.use() is not None) == taken


def test_cpu_time_is_told_apart() -> None:
    meter = CpuMeter({"workers": [], "frontend": []})
    before = meter.read()
    after = {**before, "at": before["at"] + 2.0, "client": before["client"] + 1.0}
    after["machine"] += 3.0
    use_ = meter.use(before, after)
    assert use_.client == pytest.approx(0.5)
    assert use_.workers is None
    assert use_.others in (pytest.approx(1.0), None)


def measurement(*, model: str = "m", missing: str = "", error: bool = False) -> Measurement:
    """Ten requests a second for 12 s of which 2 are warm-up, 50 to 149 ms each."""
    load = Load(0, ended_ns=12_000 * MS)
    load.answers = [
        TimedAnswer(n * 100 * MS, (n * 100 + 50 + n % 100) * MS, "status 503" if error and n == 60 else RIGHT)
        for n in range(119)
    ]
    window = load.steady(skip_first_s=2.0)
    spans = [] if missing else [part for number in range(200, 1200) for part in served(number)]
    spans = [replace(part, model=model) for part in spans]
    recorded = summarize(spans, model, window) if spans else None
    found = load.figures(window)
    pace = Closed(4)
    return Measurement(
        model=model,
        version="1.0",
        plan=LoadPlan(pace),
        rows=1,
        workers=3,
        batch_size=1,
        load=load,
        window=window,
        figures=found,
        spans=spans,
        recorded=recorded,
        missing=missing,
        cpu=use(),
        verdict=judge(pace, found, recorded, use()),
    )


def test_the_bars_hold_every_answer_of_the_window() -> None:
    taken = measurement(error=True)
    bars = latency_bars(taken)
    assert sum(bars["counts"]) == taken.figures.outcomes[RIGHT]
    assert bars["edges"][0] <= 50.1
    assert not bars["log"]
    time_line = over_time(taken)
    assert sum(time_line["failed"]) * time_line["step_s"] == pytest.approx(1.0)
    assert time_line["from_s"] == 2.0
    assert len(time_line["right"]) == len(time_line["p99"]) <= 120


def test_requests_that_lie_beside_each_other_in_a_worker_get_lanes_of_their_own() -> None:
    spans = [
        span("preprocess", 0, 10, "a"),
        span("preprocess", 2, 12, "b"),
        span("predict", 12, 20, "a,b"),
        span("preprocess", 21, 22, "c"),
    ]
    laid = timeline_of(spans, "m", WINDOW)
    assert laid["rows"] == [{"label": "device cpu", "lanes": 1}, {"label": "worker 1", "lanes": 2}]
    places = sorted(tuple(part[:2]) for part in laid["spans"])
    assert places == [(0, 0), (1, 0), (1, 0), (1, 0), (1, 1), (1, 1)]
    assert {part[6] for part in laid["spans"] if laid["stages"][part[2]] == "predict"} == {2}


def test_a_page_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_SPANS", 600)
    laid = timeline_of([span("predict", at, at + 0.5, f"r{at}") for at in range(3000)], "m", (0, 3000 * MS))
    assert laid["slice_ms"] == 200
    assert len(laid["spans"]) <= 2 * 600  # on the device's row and on the worker's


def test_the_page_needs_nothing_else_and_nothing_in_it_runs_that_should_not() -> None:
    text = page(measurement(model="</script><b>"))
    assert text.count("</script>") == 2
    assert "<b>" not in text.split("</title>")[0]
    assert not re.findall(r"""(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)


def test_without_spans_the_report_says_what_is_missing() -> None:
    taken = measurement(missing="the server records no spans: start it so")
    assert "start it so" in page(taken)
    assert "start it so" in "\n".join(lines(taken))
    assert plain(taken)["spans_missing"] == "the server records no spans: start it so"
    assert plain(taken)["devices"] is None


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1100, "light")])
def test_a_browser_draws_the_page_and_it_fits(tmp_path: Path, width: int, scheme: str) -> None:
    """In a frame as wide as a phone: a window is never narrower than 500 pixels."""
    (tmp_path / "report.html").write_text(page(measurement(model="a_rather_long_name_of_a_model" * 3)), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<body style='margin:0'>"
        f'<iframe src="report.html" style="width:{width}px;height:3000px;border:0"></iframe><p id="found"></p>'
        "<script>onload = () => setTimeout(() => { const page = frames[0].document;"
        "const cut = [...page.querySelectorAll('main *')].filter((one) => { const box = one.getBoundingClientRect();"
        f"return box.left < -0.5 || box.right > {width} + 0.5; }});"
        "found.textContent = [page.documentElement.scrollWidth, cut.length, "
        "...['latency', 'time', 'waits', 'timeline']"
        ".map((id) => page.querySelectorAll(`#${id} rect, #${id} path`).length)].join(' '); }, 300)</script>"
    )
    picture = tmp_path / "page.png"
    assert BROWSER is not None
    result = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--no-first-run", "--hide-scrollbars", "--enable-logging=stderr"),
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"),
            *(f"--screenshot={picture}", f"--window-size={max(width, 500)},3000", "--dump-dom"),
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in result.stderr  # an error in the page's script
    found = re.search(r'id="found">([\d ]+)<', result.stdout)
    assert found is not None, result.stderr
    wide, cut, *drawn = map(int, found[1].split())
    assert (wide <= width, cut) == (True, 0)
    latency, over, waits, timeline = drawn
    assert latency > 10
    assert over >= 12
    assert waits >= 2
    assert timeline > 20
    with Image.open(picture) as shot:
        drawn_on = shot.convert("RGB").crop((0, 0, width, 3000))
    colours = {colour: count for count, colour in drawn_on.getcolors(1 << 24) or []}
    paper = max(colours, key=lambda colour: colours[colour])
    assert max(paper) < 48 if scheme == "dark" else min(paper) > 240
    predict = colours_of_the_page()[scheme]["predict"]
    assert colours.get(rgb(predict), 0) > 200, "the timeline shows no predict"


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@cache
def colours_of_the_page() -> dict[str, dict[str, str]]:
    """Scheme -> name -> `#rrggbb`, as the page's style sheet has them."""
    light, dark = page(measurement()).split("prefers-color-scheme: dark", 1)
    return {
        scheme: dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text.split("</style>")[0]))
        for scheme, text in (("light", light), ("dark", dark))
    }


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.1, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [part / 255 for part in rgb(colour)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_the_page_shows_can_be_told_from_what_it_lies_on(scheme: str) -> None:
    """WCAG 2.1: 4.5 for text, 3 for what is drawn."""
    colours = colours_of_the_page()[scheme]
    for ground in ("page", "card"):
        assert contrast(colours["ink"], colours[ground]) >= 7
        assert contrast(colours["soft"], colours[ground]) >= 4.5
    for stage in (*STAGE_NAMES, "other"):
        assert contrast(colours[stage], colours["lane"]) >= 3, stage
    assert contrast(colours["accent"], colours["card"]) >= 3


def test_rows_of_many_kinds(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n[2]\n')
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "three.png").write_bytes(b"PNG")
    rows = of_input(str(tmp_path / "rows.jsonl"))
    json_rows = [(b'{"a": 1}', "application/json"), (b"[2]", "application/json")]
    assert [(row.content, row.content_type) for row in rows] == json_rows
    (image,) = of_input(str(tmp_path / "images"))
    assert (image.content, image.content_type, image.fields) == (b"PNG", "image/png", {"data": b"PNG"})
    form = of_fields({"top": "3", "image": tmp_path / "images" / "three.png"})
    assert form.content_type.startswith("multipart/form-data; boundary=")
    assert b'filename="three.png"' in form.content
    assert form.fields == {"top": b"3", "image": b"PNG"}
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(HandlergenError, match="no row"):
        of_input(str(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exactly one of --data"),
        (["--data", "1", "--inputs", "x"], "exactly one of --data"),
        (["--data", "1", "--clients", "2", "--rate", "3"], "closed loop"),
        (["--data", "1", "--grpc", "--header", "a: b"], "no effect over gRPC"),
        (["--data", "1", "--duration", "0"], "0"),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "m", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_no_server(tmp_path: Path) -> None:
    config = tmp_path / "config.properties"
    addresses = "inference_address=http://127.0.0.1:1\nmanagement_address=http://127.0.0.1:1\n"
    config.write_text(f"{addresses}model_store=.\ndisable_token_authorization=true\n")
    result = CliRunner().invoke(cli, ["bench", "m", "--data", "1", "-c", str(config)])
    assert "no server answers" in str(result.exception)
