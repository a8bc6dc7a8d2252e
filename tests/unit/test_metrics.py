"""The lines that become TorchServe's metrics: their format, what they add up to, who is counted as a copy."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

from handlergen.project.templates import template_dir
from handlergen.runtime.server_process import ProcessFiles, remove_left_behind
from handlergen.runtime.telemetry import recording
from handlergen.runtime.telemetry import recording as metrics
from handlergen.runtime.telemetry.recording import SECONDS, Metrics
from handlergen.runtime.telemetry.stages import STAGE_NAMES

#: The frontend's (org.pytorch.serve.metrics.Metric).
PATTERN = re.compile(
    r"\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)


class Line(NamedTuple):
    name: str
    unit: str
    value: float
    dimensions: tuple[tuple[str, str], ...]
    type: str


def parsed(text: str) -> list[Line]:
    """Lines as the frontend reads them: a dimension that is not NAME:VALUE is dropped."""
    lines = []
    for line in text.splitlines():
        assert line.startswith("[METRICS]"), line
        found = PATTERN.fullmatch(line.removeprefix("[METRICS]"))
        assert found, line
        pairs = [pair.split(":") for pair in found[4].split(",")]
        dimensions = tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)
        assert int(found[8]) <= time.time() < int(found[8]) + 60
        lines.append(Line(found[1], found[2], float(found[3]), dimensions, found[6]))
    return lines


class Written:
    """Metrics, and what became of them in a server: counters added up, gauges as told last."""

    def __init__(self, *, model: str = "digits", version: str = "1.0", device: str = "cpu") -> None:
        self.texts: list[str] = []
        self.metrics = Metrics(model=model, version=version, device=device, write=self.texts.append)

    def lines(self) -> list[Line]:
        return parsed("".join(self.texts))

    def emitted(self) -> list[Line]:
        self.texts.clear()
        self.metrics.emit()
        return self.lines()

    def sums(self) -> dict[tuple[str, ...], float]:
        """By name and the labels that are not the model's."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for line in self.lines():
            own = [value for name, value in line.dimensions if name not in ("model", "version", "device")]
            key = (line.name, *own)
            found[key] = line.value if line.type == "GAUGE" else found[key] + line.value
        return found


@pytest.fixture
def written() -> Written:
    return Written()


def test_every_line_is_declared_with_its_unit_type_and_dimensions(written: Written) -> None:
    """The frontend takes the values in the order they come, and drops names that are not declared."""
    written.metrics.watch(lambda: {metrics.COPIES: 2, metrics.MEMORY: 10**12, metrics.EXAMPLES: 3})
    for stage in STAGE_NAMES:
        written.metrics.record(stage, "a", 0, 1_234_567)
    written.metrics.answered(200)
    written.metrics.lock_timed_out()
    declared = {
        metric["name"]: (metric["unit"], kind.upper(), tuple(metric["dimensions"]))
        for kind, section in yaml.safe_load((template_dir() / "metrics.yaml").read_text())["model_metrics"].items()
        for metric in section
    }
    lines = written.emitted()
    for line in lines:
        assert (line.unit, line.type, tuple(name for name, _ in line.dimensions)) == declared[line.name]
    assert {line.name for line in lines} == {name for name in declared if name.startswith("handlergen_")}


@pytest.mark.parametrize("value", [0, 3e-10, 1e-9, 0.1, 12.5, 100.0, 10, 1e9, 2**53])
def test_numbers_have_no_exponent(written: Written, value: float) -> None:
    written.metrics.watch(lambda: {metrics.MEMORY: value})
    ((line),) = written.emitted()
    assert line.value == pytest.approx(value, abs=1e-9)


def test_a_label_cannot_break_a_line() -> None:
    """A dimension with a comma, a bar or a second colon would be lost, and the line refused."""
    written = Written(device="a,b|#type:x:y\n z", version="")
    written.metrics.answered(200)
    ((line),) = written.emitted()
    labels = {"status": "200", "model": "digits", "version": "_", "device": "a_b__type_x_y__z"}
    assert dict(line.dimensions) == labels
    written = Written(device="GPU-4a3c1d2e-0000-1111-2222-333344445555")  # a GPU's name stays
    written.metrics.answered(200)
    assert dict(written.emitted()[0].dimensions)["device"] == "GPU-4a3c1d2e-0000-1111-2222-333344445555"


def test_what_is_written_adds_up(written: Written) -> None:
    for _ in range(3):
        for _ in range(10):
            written.metrics.record("decode", "a", 5, 5 + 200_000)
            written.metrics.record("predict", "a,b,c", 0, 40_000_000)
            written.metrics.answered(200)
        written.metrics.answered(503)
        written.metrics.lock_timed_out()
        written.metrics.emit()
    sums = written.sums()
    assert sums[metrics.STAGE + "_count", "decode"] == sums[metrics.STAGE + "_count", "predict"] == 30
    assert sums[metrics.STAGE + "_sum", "decode"] == pytest.approx(30 * 0.0002)
    assert sums[metrics.STAGE + "_sum", "predict"] == pytest.approx(30 * 0.04)
    decode = [sums[metrics.STAGE + "_bucket", "decode", f"{bound:g}"] for bound in SECONDS]
    assert decode == [30 if bound >= 0.0002 else 0 for bound in SECONDS]
    assert sums[metrics.STAGE + "_bucket", "decode", "+Inf"] == 30
    assert (sums[metrics.BATCH + "_count",], sums[metrics.BATCH + "_sum",]) == (30, 90)
    assert (sums[metrics.BATCH + "_bucket", "2"], sums[metrics.BATCH + "_bucket", "4"]) == (0, 30)
    assert (sums[metrics.ANSWERS, "200"], sums[metrics.ANSWERS, "503"]) == (30, 3)
    assert sums[metrics.LOCK_TIMEOUTS,] == 3


def test_all_buckets_are_there_once_then_those_that_grow(written: Written) -> None:
    def names() -> list[str]:
        return [line.name for line in written.emitted()]

    written.metrics.record("encode", "a", 0, 20 * 10**9)
    assert names().count(metrics.STAGE + "_bucket") == len(SECONDS) + 1
    written.metrics.record("encode", "a", 0, 20 * 10**9)
    assert names().count(metrics.STAGE + "_bucket") == 3  # 30, 60, +Inf
    assert names() == []


def test_an_alert_sees_the_first_timeout(written: Written) -> None:
    """Prometheus sees no increase in a counter that first appears as 1."""
    written.metrics.start()
    assert written.sums() == {(metrics.ANSWERS, "200"): 0, (metrics.LOCK_TIMEOUTS,): 0}
    written.metrics.close()


def test_nothing_is_lost_while_it_is_written(written: Written) -> None:
    """Threads count while others write; in the end every count was written once."""

    def count() -> None:
        for _ in range(20_000):
            written.metrics.record("predict", "a", 0, 1000)
            written.metrics.answered(200)

    counting = [threading.Thread(target=count) for _ in range(3)]
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            written.metrics.emit()

    writing = [threading.Thread(target=write) for _ in range(2)]
    for thread in (*counting, *writing):
        thread.start()
    for thread in counting:
        thread.join()
    done.set()
    for thread in writing:
        thread.join()
    written.metrics.close()
    sums = written.sums()
    assert sums[metrics.STAGE + "_count", "predict"] == sums[metrics.ANSWERS, "200"] == 60_000
    assert sums[metrics.STAGE + "_bucket", "predict", "+Inf"] == sums[metrics.BATCH + "_count",] == 60_000


def test_a_gauge_that_cannot_be_read_stops_nothing(written: Written) -> None:
    def fails() -> dict[str, float]:
        raise PermissionError("no")

    written.metrics.watch(fails)
    written.metrics.answered(200)
    assert [line.name for line in written.emitted()] == [metrics.ANSWERS]
    # What a hook has half printed takes the first line with it: a gauge, which comes again.
    written.metrics.watch(lambda: {metrics.COPIES: 1})
    written.metrics.answered(200)
    assert [line.type for line in written.emitted()] == ["GAUGE", "COUNTER"]


def test_they_go_to_the_workers_output_wherever_a_hook_sends_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, hook = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", worker)
    written = Metrics(model="m", version="1.0", device="cpu")
    monkeypatch.setattr(sys, "stdout", hook)
    written.answered(200)
    written.emit()
    assert [line.name for line in parsed(worker.getvalue())] == [metrics.ANSWERS]
    assert hook.getvalue() == ""


def test_a_server_that_does_not_know_them_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.SWITCH_VARIABLE, raising=False)
    settings: Any = SimpleNamespace(name="m", version="1.0")
    knows = SimpleNamespace(cache={"counter": {metrics.ANSWERS: ""}, "gauge": {"HandlerTime": ""}})
    assert metrics.switched_on(knows)
    assert metrics.switched_on(None)  # no TorchServe
    assert recording.Recording(settings, "cpu", metrics=True).metrics is not None
    assert not metrics.switched_on(SimpleNamespace(cache={"gauge": {"HandlerTime": ""}}))
    assert os.environ.pop(metrics.SWITCH_VARIABLE) == "off"  # what the predictor process inherits
    monkeypatch.setenv(metrics.SWITCH_VARIABLE, "off")
    assert recording.Recording(settings, "cpu", metrics=True).recorder is None


@pytest.mark.parametrize(("version", "typed"), [("0.9.0", False), ("0.10.0", True), ("0.12.0", True)])
def test_torchserve_0_9_gets_lines_that_it_can_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, typed: bool
) -> None:
    monkeypatch.setenv(metrics.SWITCH_VARIABLE, "on")
    monkeypatch.setitem(sys.modules, "ts", SimpleNamespace(__version__=version))
    assert metrics.switched_on(SimpleNamespace(cache={"counter": {metrics.ANSWERS: ""}}))
    written = Metrics(model="m", version="1.0", device="cpu")
    written.answered(200)
    written.emit()
    (line,) = capsys.readouterr().out.splitlines()
    old = r"\[METRICS]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#hostname:([^,]+),([^,]+)(,(.*))?"  # Metric.java
    assert (re.fullmatch(old, line) is None) == typed


COPY = """
import os, sys, time
from pathlib import Path
from handlergen.runtime.server_process import ProcessFiles

copies = ProcessFiles(Path(sys.argv[1]), "copies", "1 2", sys.argv[2], "1.0", "cpu")
copies.add()
if len(sys.argv) > 3 and not os.fork():
    time.sleep(60)
print(copies.count(), flush=True)
sys.stdin.readline()
copies.close()
"""


TIDY = """
import sys
from pathlib import Path
from handlergen.runtime.server_process import remove_left_behind
print("on", flush=True)
while True:
    remove_left_behind(Path(sys.argv[1]))
"""


def the_copies(directory: Path, model: str = "digits") -> ProcessFiles:
    return ProcessFiles(directory, "copies", "1 2", model, "1.0", "cpu")


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """`start(model)` -> a process with a copy, and how many it saw."""
    started: list[subprocess.Popen[str]] = []

    def one(model: str = "digits", *more: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", COPY, str(tmp_path), model, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield one
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # a forked child, too
        process.communicate()


Start = Callable[..., tuple["subprocess.Popen[str]", int]]


def test_copies_are_the_living_processes_that_have_one(start: Start, tmp_path: Path) -> None:
    here = the_copies(tmp_path)
    assert here.count() == 0
    here.add()
    first, seen = start()
    assert seen == here.count() == 2
    second, seen = start()
    assert seen == 3
    _, seen = start("another")
    assert seen == 1
    first.kill()
    first.wait()
    assert here.count() == 2
    second.communicate("end\n")  # it closes
    assert here.count() == 1
    here.close()
    assert here.count() == 0


def test_a_forked_child_is_no_copy(start: Start, tmp_path: Path) -> None:
    """Of DataLoader's workers, say, which may outlive a killed parent."""
    process, seen = start("digits", "fork")
    assert seen == the_copies(tmp_path).count() == 1
    process.kill()
    process.wait()
    os.killpg(process.pid, 0)  # the child lives
    assert the_copies(tmp_path).count() == 0


def test_a_file_of_another_process_with_the_same_number_does_not_matter(tmp_path: Path) -> None:
    here = the_copies(tmp_path)
    here.add()
    (own,) = tmp_path.iterdir()
    start = own.name.rpartition("-")[0]
    (tmp_path / f"{start}-17").touch()
    (tmp_path / f"{start.rpartition('-')[0]}-4000000-17").touch()
    assert here.count() == 1
    remove_left_behind(tmp_path)
    assert list(tmp_path.iterdir()) == [own]


def test_what_killed_servers_left_behind_is_removed(start: Start, tmp_path: Path) -> None:
    dead, _ = start("dead")
    dead.kill()
    dead.wait()
    start("alive")
    assert len(list(tmp_path.iterdir())) == 1
    the_copies(tmp_path).add()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_copy_that_others_count_and_tidy_up_is_not_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TIDY, str(tmp_path)]
    looking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert looking.stdout is not None
        looking.stdout.readline()
        for _ in range(200):
            here = the_copies(tmp_path)
            here.add()
            assert here.count() == 1
            here.close()
    finally:
        looking.kill()
        looking.communicate()


def test_a_model_loads_though_its_copies_cannot_be_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from handlergen.runtime.device.device import Device

    monkeypatch.setattr(recording, "lock_directory", lambda: tmp_path / "is not there")
    monkeypatch.delenv(metrics.SWITCH_VARIABLE, raising=False)
    settings: Any = SimpleNamespace(name="m", version="1.0")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    records = recording.Recording(settings, "cpu", metrics=True)
    with caplog.at_level(logging.WARNING):
        records.has_copy(settings, Device(None), os.getpid())
    assert "copies of the model are not counted" in caplog.text
    assert records.metrics is not None
    records.metrics.emit()
    ((line),) = parsed(out.getvalue())
    assert line.name == metrics.MEMORY
    assert line.value > 1 << 20
