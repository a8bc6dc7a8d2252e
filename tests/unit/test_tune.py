"""Tuning: the simulated server, what is recommended from it, and how it is written down."""

from __future__ import annotations

import codecs
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from handlergen.cli import cli
from handlergen.errors import HandlergenError, RequestFailed
from handlergen.starter import starter_yaml
from handlergen.tuning.apply import apply, with_settings
from handlergen.tuning.probe import Alone, Beside
from handlergen.tuning.queueing import (
    DISPATCH,
    HANDOVER_MS,
    Server,
    Stage,
    Work,
    closed_loop,
    open_loop,
)
from handlergen.tuning.recommend import recommend
from handlergen.tuning.summary import lines, plain

NOTHING = [Stage(0.0, 0.0)]


def work(before: Stage, predict: float, after: Stage, batch_ms: dict[int, float] | None = None) -> Work:
    return Work([before], [Stage(predict, 0.0)], [after], batch_ms or {1: predict})


WAITS = work(Stage(10, 0), 10, Stage(10, 0))
BURNS = work(Stage(0, 8), 10, Stage(0, 4))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_too_few_workers_answer_at_their_own_pace(workers: int) -> None:
    found = closed_loop(WAITS, Server(workers, 1, 8.0), clients=16)
    assert found.requests_per_s == pytest.approx(workers * 1e3 / (30 + DISPATCH.total_ms), rel=0.02)


def test_enough_workers_keep_the_device_busy() -> None:
    found = closed_loop(WAITS, Server(6, 1, 8.0), clients=16)
    assert found.requests_per_s == pytest.approx(1e3 / (10 + HANDOVER_MS), rel=0.01)
    assert found.device_busy == pytest.approx(10 / (10 + HANDOVER_MS), abs=0.01)
    assert found.p50_ms == pytest.approx(16 * (10 + HANDOVER_MS), rel=0.02)  # Little's law


def test_cores_are_shared_by_those_who_compute() -> None:
    computing_ms = 12 + DISPATCH.cpu_ms
    found = closed_loop(BURNS, Server(8, 1, 0.5), clients=16)
    assert found.requests_per_s == pytest.approx(0.5 * 1e3 / computing_ms, rel=0.03)
    assert closed_loop(BURNS, Server(8, 1, 8.0), clients=16).requests_per_s > 97


def test_a_lone_request_waits_for_nobody() -> None:
    found = open_loop(WAITS, Server(4, 1, 8.0), rate=0.5, requests=300)
    assert found.p50_ms == pytest.approx(30 + DISPATCH.total_ms, rel=0.01)
    assert found.requests_per_s == pytest.approx(0.5, rel=0.15)


def test_one_worker_without_other_stages_is_the_queue_of_the_textbook() -> None:
    # M/D/1 (Pollaczek and Khinchine): mean wait = load x service / 2 (1 - load); its median is below the mean.
    only = work(Stage(0, 0), 10 - DISPATCH.total_ms, Stage(0, 0))
    found = open_loop(only, Server(1, 1, 8.0), rate=50, requests=20_000)
    assert 10 <= found.p50_ms <= 15
    assert found.device_busy == pytest.approx(0.5 * (10 - DISPATCH.total_ms) / 10, abs=0.03)


def test_batches_share_a_predict() -> None:
    model = work(Stage(0, 0), 5, Stage(0, 0), {1: 5.0, 8: 12.0, 16: 20.0})
    assert [model.hold_factor(size) for size in (1, 8, 12, 16, 24)] == pytest.approx([1, 2.4, 3.2, 4, 5.6])
    found = closed_loop(model, Server(2, 8, 8.0), clients=64)
    assert found.requests_per_s == pytest.approx(8e3 / (12 + HANDOVER_MS), rel=0.05)


def test_the_way_to_another_process_takes_time_twice() -> None:
    way = Stage(1.0, 0.5)
    found = closed_loop(WAITS, Server(2, 1, 8.0, passage=way), clients=16)
    assert found.requests_per_s == pytest.approx(2e3 / (30 + DISPATCH.total_ms + 2 * way.total_ms), rel=0.02)
    # It is no time of the device's: enough workers keep that busy all the same.
    full = closed_loop(WAITS, Server(6, 1, 8.0, passage=way), clients=16)
    assert full.requests_per_s == pytest.approx(1e3 / (10 + HANDOVER_MS), rel=0.01)


def test_a_process_predicts_for_several_workers_at_once() -> None:
    model = work(Stage(10, 0), 10, Stage(10, 0), {1: 10.0, 8: 12.0})
    alone_, together = (closed_loop(model, Server(8, 1, 8.0, together=most), clients=32) for most in (1, 8))
    assert alone_.requests_per_s == pytest.approx(1e3 / (10 + HANDOVER_MS), rel=0.01)
    # No more than a predict of all eight, one after the other with what is before and after it, and not much less.
    assert 8e3 / 45 < together.requests_per_s <= 8e3 / 12
    at_most_two = closed_loop(model, Server(8, 1, 8.0, together=2), clients=32)
    assert at_most_two.requests_per_s == pytest.approx(2e3 / (10 + 2 / 7 + HANDOVER_MS), rel=0.02)


def alone(
    stages: Work,
    *,
    batch: str = "each",
    cores: int = 2,
    devices: int = 1,
    memory: int = 1,
    predictor: str = "worker",
    runs_in: str = "worker",
) -> Alone:
    computing = {"preprocess": 0.0, "predict": 0.0, "postprocess": 0.0}
    return Alone("m", "cpu", devices, cores, batch, memory, predictor, runs_in, 32, stages, computing)


@pytest.mark.parametrize(("stages", "workers"), [(WAITS, 4), (BURNS, 3)])
def test_the_least_workers_that_keep_the_device_busy(stages: Work, workers: int) -> None:
    found, measured = recommend(alone(stages), available_memory=1 << 40)
    assert measured is None
    assert found.settings == {"workers_per_device": workers, "batch_size": 1, "max_batch_delay_ms": 1}
    assert found.chosen.prediction.requests_per_s == pytest.approx(99, abs=1.5)
    assert found.limits == ()


def test_batches_are_recommended_where_they_pay() -> None:
    pays = replace(WAITS, batch_ms={1: 10.0, 2: 10.5, 4: 11.0, 8: 12.0})
    found, _ = recommend(alone(pays, batch="collate", cores=8), available_memory=1 << 40)
    assert found.chosen.batch_size == 8
    assert found.chosen.prediction.requests_per_s > 300
    pays_not = replace(WAITS, batch_ms={1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0})
    found, _ = recommend(alone(pays_not, batch="collate", cores=8), available_memory=1 << 40)
    assert found.chosen.batch_size == 1


def test_a_target_takes_the_highest_rate_that_keeps_it() -> None:
    tight, _ = recommend(alone(WAITS), available_memory=1 << 40, target_p99_ms=60)
    loose, _ = recommend(alone(WAITS), available_memory=1 << 40, target_p99_ms=200)
    assert tight.chosen.prediction.p99_ms <= 60
    assert loose.chosen.prediction.p99_ms <= 200
    assert 0 < tight.chosen.rate < loose.chosen.rate < 99
    with pytest.raises(HandlergenError, match=r"no setting reaches 20 ms: .* takes [34]"):
        recommend(alone(WAITS), available_memory=1 << 40, target_p99_ms=20)


def test_copies_must_fit() -> None:
    found, _ = recommend(alone(WAITS, memory=300), available_memory=1000)
    assert found.chosen.workers == 2
    assert "no more than 2 workers" in found.limits[0]


def test_one_copy_for_all_workers_fits_and_one_process_has_one_interpreter() -> None:
    shared, _ = recommend(alone(WAITS, memory=300, predictor="process"), available_memory=1000)
    assert shared.chosen.workers == 4
    near, _ = recommend(alone(WAITS, cores=8), available_memory=1 << 40, target_p99_ms=60)
    far, _ = recommend(alone(WAITS, cores=8, predictor="process"), available_memory=1 << 40, target_p99_ms=60)
    assert far.chosen.prediction.p50_ms > near.chosen.prediction.p50_ms or far.chosen.rate < near.chosen.rate
    computing = Work([Stage(0, 8)], [Stage(10, 0)], [Stage(0, 8)], {1: 10.0})
    inside, _ = recommend(
        alone(computing, cores=8, predictor="process", runs_in="predictor"), available_memory=1000
    )
    assert inside.chosen.prediction.requests_per_s == pytest.approx(1e3 / 16.7, rel=0.03)


def test_several_devices_share_the_cores() -> None:
    found, _ = recommend(alone(WAITS, devices=2, cores=8), available_memory=1 << 40)
    assert found.chosen.workers == 4
    assert found.chosen.prediction.requests_per_s == pytest.approx(198, abs=3)


def test_what_processes_do_together_corrects_the_prediction() -> None:
    def slow(processes: int) -> Beside:
        return Beside(processes, 49.5, {"preprocess": 20.0, "predict": 20.0, "postprocess": 20.0})

    found, measured = recommend(alone(WAITS), available_memory=1 << 40, beside=slow)
    assert measured is not None
    assert measured.processes == 4
    assert found.correction == pytest.approx(0.5, abs=0.01)
    assert found.chosen.prediction.requests_per_s == pytest.approx(49.5, abs=1)
    assert "lowered" in "\n".join(lines(alone(WAITS), measured, found))
    assert plain(alone(WAITS), measured, found)["correction"] == pytest.approx(0.5, abs=0.01)


SETTINGS = {"workers_per_device": 3, "batch_size": 8, "max_batch_delay_ms": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "workers_per_device: 3\nbatch_size: 8\nmax_batch_delay_ms: 1\n"),
        (
            "# mine\nbatch_size: 1   # why\nname: a\n",
            "# mine\nbatch_size: 8   # why\nname: a\nworkers_per_device: 3\nmax_batch_delay_ms: 1\n",
        ),
        (
            "config:\n  batch_size: 5\n# batch_size: 1\nworkers_per_device : 4\nmax_batch_delay_ms: 1",
            "config:\n  batch_size: 5\nbatch_size: 8\nworkers_per_device: 3\nmax_batch_delay_ms: 1",
        ),
    ],
)
def test_settings_are_written_and_comments_stay(before: str, after: str) -> None:
    assert with_settings(before, SETTINGS) == after
    assert with_settings(after, SETTINGS) == after


def test_a_value_that_is_no_single_line_is_left_alone() -> None:
    with pytest.raises(HandlergenError, match="batch_size stands in"):
        with_settings("batch_size:\n  8\n", SETTINGS)


def test_the_starter_file_keeps_every_line(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def predict(x):\n    return x\n")
    before = starter_yaml({"name": "m", "source": "model.py"})
    (tmp_path / "handlergen.yaml").write_text(before)
    file = apply(tmp_path, SETTINGS)
    after = file.read_text().splitlines()
    changed = [pair for pair in zip(before.splitlines(), after, strict=True) if pair[0] != pair[1]]
    assert changed == [
        ("# batch_size: 1", "batch_size: 8"),
        ("# max_batch_delay_ms: 1", "max_batch_delay_ms: 1"),
        ("# workers_per_device: 4", "workers_per_device: 3"),
    ]


def test_a_file_is_made_for_a_module_and_taken_back_where_it_would_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "model.py"
    module.write_text("def predict(x):\n    return x\n")
    file = apply(module, SETTINGS)
    assert file.read_text().startswith("source: model.py\nworkers_per_device: 3\n")
    before = file.read_text()
    monkeypatch.setenv("HANDLERGEN_BATCH_SIZE", "2")
    with pytest.raises(HandlergenError, match="does not decide on batch_size"):
        apply(module, {**SETTINGS, "batch_size": 4})
    assert file.read_text() == before
    file.unlink()
    with pytest.raises(HandlergenError, match="does not decide"):
        apply(module, SETTINGS)
    assert not file.exists()


MODULE = """
import time

def preprocess(data):
    if data["number"] < 0:
        raise ValueError("a negative number")
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        pass
    return data["number"]

def predict(numbers):
    time.sleep(0.003)
    return [number * 2 for number in numbers]
"""


def test_a_module_is_measured_and_the_settings_are_written(tmp_path: Path) -> None:
    module, sample = tmp_path / "double.py", tmp_path / "sample.json"
    module.write_text(MODULE)
    sample.write_text('{"number": 2}')
    arguments = ["tune", str(module), "--sample", str(sample), "--batch", "list", "--seconds", "0.3"]
    result = CliRunner().invoke(cli, [*arguments, "--json", "--apply"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    stages = found["stages"]
    assert stages["preprocess"]["alone_ms"] >= 2
    assert stages["predict"]["alone_ms"] >= 3
    assert stages["preprocess"]["computing"] > stages["predict"]["computing"]
    assert set(found["predict_ms_by_batch_size"]) >= {"1", "2", "4"}
    assert 0 < found["predicted"]["requests_per_s"] < 32_000 / 3
    assert found["predicted"]["device_busy"] <= 1
    assert found["applied"] == str(tmp_path / "handlergen.yaml")
    text = (tmp_path / "handlergen.yaml").read_text()
    assert f"batch_size: {found['settings']['batch_size']}\n" in text


def test_a_sample_that_is_refused(tmp_path: Path) -> None:
    module, sample = tmp_path / "double.py", tmp_path / "sample.json"
    module.write_text(MODULE)
    sample.write_text('{"number": -2}')
    with pytest.raises(HandlergenError, match=r"answered with 400: .*a negative number") as caught:
        CliRunner().invoke(
            cli, ["tune", str(module), "--sample", str(sample), "--batch", "list"], catch_exceptions=False
        )
    assert not isinstance(caught.value, RequestFailed)


@pytest.mark.parametrize(
    "before",
    [
        b"name: digits\r\nbatch_size: 1  # mine\r\n# max_batch_delay_ms: 0\r\n",
        codecs.BOM_UTF8 + b"batch_size: 1\n",
        b"# only this\r\n",
        b"# caf\xc3\xa9\nbatch_size: 1\nform: functions\r\n",
    ],
    ids=["CRLF", "BOM", "CRLF and nothing to change", "mixed"],
)
def test_the_file_keeps_its_line_ends_and_its_mark(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "model.py").write_text("def predict(x):\n    return x\n")
    (tmp_path / "handlergen.yaml").write_bytes(before)
    (tmp_path / "handlergen.yaml").chmod(0o640)
    after = apply(tmp_path, {"batch_size": 4, "max_batch_delay_ms": 7}).read_bytes()
    assert after.startswith(codecs.BOM_UTF8) is before.startswith(codecs.BOM_UTF8)
    added = after.count(b"\n") - before.count(b"\n")
    assert after.count(b"\r\n") == before.count(b"\r\n") + (added if b"\r\n" in before else 0)
    assert b"batch_size: 4" in after
    assert b"max_batch_delay_ms: 7" in after
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["handlergen.yaml", "model.py"]
    assert (tmp_path / "handlergen.yaml").stat().st_mode & 0o777 == 0o640


def test_the_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text("def predict(x):\n    return x\n")
    (tmp_path / "handlergen.yaml").write_text("batch_size: 1\n")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HandlergenError, match="cannot be written: No space left"):
        apply(tmp_path, SETTINGS)
    assert (tmp_path / "handlergen.yaml").read_text() == "batch_size: 1\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_settings_file_that_is_not_utf8_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def predict(x):\n    return x\n")
    (tmp_path / "handlergen.yaml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(HandlergenError, match=r"handlergen\.yaml is not UTF-8"):
        apply(tmp_path, SETTINGS)
