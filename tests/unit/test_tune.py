"""Tuning: the candidates, halving the field, the choice and its reasons, and how settings are written down."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from handlergen.cli import cli
from handlergen.errors import ContractError, HandlergenError
from handlergen.performance.tune import measuring
from handlergen.performance.tune.apply import apply, with_settings
from handlergen.performance.tune.search import (
    BATCH_SIZES,
    WORKERS,
    Candidate,
    Recommendation,
    Turn,
    candidates,
    most_turns,
    reasons,
    search,
)
from handlergen.project.starter import starter_yaml


class FakeServer:
    """A server that answers `capacity(candidate)` requests a second, and is slow when more are due.

    With a rate, p99 is `base_ms` divided by what is left of the capacity, as of a queue.
    """

    def __init__(
        self,
        capacity: Callable[[Candidate], float],
        *,
        base_ms: Callable[[Candidate], float] = lambda _: 10.0,
        errors: Callable[[Candidate], float] = lambda _: 0.0,
        worker_bytes: int = 1,
        other_cores: float = 0.0,
    ) -> None:
        self._capacity, self._base_ms, self._errors = capacity, base_ms, errors
        self._worker_bytes = worker_bytes
        self._other_cores = other_cores
        self.loads: list[tuple[Candidate, float | None]] = []

    def __call__(self, candidate: Candidate, rate: float | None) -> Turn:
        self.loads.append((candidate, rate))
        capacity = self._capacity(candidate)
        idle = 1 - rate / capacity if rate is not None else 1.0
        p99 = self._base_ms(candidate) / idle if idle > 0 else math.inf
        return Turn(
            rate,
            capacity if rate is None else min(rate, capacity),
            self._errors(candidate),
            p99 / 2,
            p99,
            device_busy=min(1.0, capacity / 100),
            worker_bytes=self._worker_bytes,
            other_cores=self._other_cores,
            bottleneck="device",
            why="A predict runs on it 98% of the time.",
        )

    def turns(self, candidate: Candidate) -> int:
        return sum(one == candidate for one, _ in self.loads)


def up_to_100(candidate: Candidate) -> float:
    """Workers of 30 requests a second each, and a device of 100."""
    return min(100.0, 30.0 * candidate.workers)


def text_of(found: Recommendation, *, batch: str = "each") -> str:
    return "\n".join(reasons(found, batch=batch, cores=2))


def test_a_predict_of_one_request_at_a_time_is_tried_with_workers_only() -> None:
    assert {one.batch_size for one in candidates("each")} == {1}
    for batch in ("collate", "list"):
        field = candidates(batch)
        assert {one.batch_size for one in field} == set(BATCH_SIZES)
        assert {one.workers for one in field} == set(WORKERS)
        assert len(field) == len(set(field))


def test_the_fewest_workers_that_do_as_well_as_any() -> None:
    server = FakeServer(up_to_100)
    found = search(candidates("each"), server)
    assert found.settings == {"workers_per_device": 4, "batch_size": 1, "max_batch_delay_ms": 1}
    assert found.chosen.capacity == 100.0
    assert found.limits == ()


@pytest.mark.parametrize("noise", [0.99, 1.0, 1.01])
def test_within_the_noise_of_measurements_fewer_workers_win(noise: float) -> None:
    server = FakeServer(lambda one: up_to_100(one) * (noise if one.workers > 4 else 1.0))
    assert search(candidates("each"), server).chosen.candidate.workers == 4


def test_the_field_is_halved_and_the_best_are_measured_most_often() -> None:
    server = FakeServer(lambda one: 10.0 * one.workers)  # each step gains: nothing is left out early
    found = search(candidates("each"), server)
    assert found.chosen.candidate.workers == WORKERS[-1]
    assert [server.turns(Candidate(1, workers)) for workers in WORKERS] == [1, 1, 1, 1, 2, 2, 3, 3]
    assert len(server.loads) == most_turns(len(WORKERS), None) == 8 + 4 + 2
    assert all(rate is None for _, rate in server.loads)


def test_figures_are_the_mean_of_all_turns() -> None:
    rates = iter([50.0, 100.0, 90.0, 110.0])
    field = [Candidate(1, 1), Candidate(1, 2), Candidate(1, 3)]
    found = search(field, FakeServer(lambda one: 10.0 if one.workers == 1 else next(rates)))
    # Round 1: 50 for two workers and 100 for three; round 2, both again: 90 and 110.
    assert [one.capacity for one in found.measured] == [10.0, 70.0, 105.0]


def test_more_workers_are_not_tried_when_two_steps_gained_nothing() -> None:
    server = FakeServer(up_to_100)
    search(candidates("each"), server)
    assert {one.workers for one, _ in server.loads} == {1, 2, 3, 4, 6, 8}


def test_larger_batches_are_tried_as_long_as_they_pay() -> None:
    pays = FakeServer(lambda one: up_to_100(one) * min(one.batch_size, 4))
    assert search(candidates("list"), pays).settings["batch_size"] == 4
    assert {one.batch_size for one, _ in pays.loads} == {1, 4, 16}
    pays_not = FakeServer(up_to_100)
    assert search(candidates("list"), pays_not).settings["batch_size"] == 1
    assert {one.batch_size for one, _ in pays_not.loads} == {1, 4}


def test_copies_of_the_model_must_fit() -> None:
    server = FakeServer(up_to_100, worker_bytes=300 << 20)

    found = search(candidates("list"), server, copies_bytes=800 << 20)
    assert {one.workers for one, _ in server.loads} == {1, 2}
    assert found.chosen.candidate.workers == 2
    assert found.limits == ("At most 2 workers fit into memory: each takes 300 MiB of 800 MiB.",)
    assert found.limits[0] in text_of(found)
    tiny = search(candidates("each"), FakeServer(up_to_100), copies_bytes=0)
    assert tiny.chosen.candidate.workers == 1


def test_a_candidate_whose_requests_fail_does_not_win() -> None:
    server = FakeServer(lambda one: 10.0 * one.workers, errors=lambda one: 0.2 if one.workers > 3 else 0.0)
    assert search(candidates("each"), server).chosen.candidate.workers == 3
    with pytest.raises(HandlergenError, match=r"no setting answers .*: 20% of the requests failed"):
        search(candidates("each"), FakeServer(up_to_100, errors=lambda _: 0.2))


def test_a_latency_goal_takes_the_highest_rate_that_keeps_it() -> None:
    chosen = {}
    for target in (12.0, 20.0, 80.0):
        server = FakeServer(up_to_100)
        found = search(candidates("each"), server, target_p99_ms=target)
        kept = found.chosen.kept
        assert kept is not None
        assert kept.p99_ms <= target
        assert kept.rate is not None
        chosen[target] = kept.rate
        # The server keeps p99 <= target up to capacity x (1 - 10 ms / target): found to an eighth of the capacity.
        assert 100 * (1 - 10 / target) - 100 / 8 <= kept.rate <= 100 * (1 - 10 / target)
        assert found.settings["workers_per_device"] == 4
        assert len(server.loads) <= most_turns(len(WORKERS), target)
    assert chosen[12.0] < chosen[20.0] < chosen[80.0]


def test_a_latency_goal_prefers_the_setting_that_keeps_it_to_the_one_with_more_requests() -> None:
    server = FakeServer(lambda one: 100.0 * one.batch_size, base_ms=lambda one: 10.0 if one.batch_size == 1 else 500.0)
    assert search(candidates("list"), server).settings["batch_size"] == BATCH_SIZES[-1]
    assert search(candidates("list"), server, target_p99_ms=40).settings["batch_size"] == 1


def test_a_goal_that_no_setting_keeps() -> None:
    with pytest.raises(
        HandlergenError, match=r"no setting reaches 5 ms: the lowest p99 .* is 11\.4 ms, at [\d.]+ requests/s"
    ):
        search(candidates("each"), FakeServer(up_to_100), target_p99_ms=5)


def test_the_reasons_have_the_measured_figures() -> None:
    said = text_of(search(candidates("each"), FakeServer(up_to_100)))
    assert "4 workers with batch size 1 answered 100.0 requests/s, the mean of 3 loads: the most of the last" in said
    assert "With fewer workers, 3: 90.0 requests/s." in said
    assert "With more workers, 6 at best: 100.0 requests/s." in said
    assert "the device is busy 100% of the time, on 2 cores" in said
    assert "Bottleneck: device. A predict runs on it" in said
    assert "batch: each" in said
    assert "Other programs" not in said
    busy = text_of(search(candidates("each"), FakeServer(up_to_100, other_cores=1.2)))
    assert "Other programs used up to 1.2 of 2 cores: measure again when the machine is idle." in busy
    goal = text_of(search(candidates("each"), FakeServer(up_to_100), target_p99_ms=40))
    assert "Goal: 99 of 100 requests within 40 ms. 4 workers kept it up to 75.0 requests/s (p99 40.0 ms)" in goal
    batches = search(candidates("list"), FakeServer(lambda one: up_to_100(one) * min(one.batch_size, 4)))
    assert "With another batch size, 16 and 4 workers at best: 400.0 requests/s." in text_of(batches, batch="list")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a module, for a settings file beside it."""
    (tmp_path / "model.py").write_text(MODULE)
    return tmp_path


MODULE = "def predict(x):\n    return x\n"
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
    with pytest.raises(HandlergenError, match="batch_size is written in"):
        with_settings("batch_size:\n  8\n", SETTINGS)


def test_the_starter_file_keeps_every_line(project: Path) -> None:
    before = starter_yaml({"name": "m", "source": "model.py"})
    (project / "handlergen.yaml").write_text(before)
    file = apply(project, SETTINGS)
    after = file.read_text().splitlines()
    changed = [pair for pair in zip(before.splitlines(), after, strict=True) if pair[0] != pair[1]]
    assert changed == [
        ("# batch_size: 1", "batch_size: 8"),
        ("# max_batch_delay_ms: 1", "max_batch_delay_ms: 1"),
        ("# workers_per_device: 4", "workers_per_device: 3"),
    ]


def test_a_file_is_made_for_a_module_and_taken_back_where_it_would_not_count(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = project / "model.py"
    file = apply(module, SETTINGS)
    assert file.read_text().startswith("source: model.py\nworkers_per_device: 3\n")
    before = file.read_text()
    monkeypatch.setenv("HANDLERGEN_BATCH_SIZE", "2")
    with pytest.raises(HandlergenError, match="does not determine batch_size"):
        apply(module, {**SETTINGS, "batch_size": 4})
    assert file.read_text() == before
    file.unlink()
    with pytest.raises(HandlergenError, match="does not determine"):
        apply(module, SETTINGS)
    assert not file.exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The configurations with which a server was started; none is."""
    found: list[Path] = []

    def serve(config: Path, **_: object) -> None:
        found.append(config)
        assert config.is_file()
        assert (config.parent / "model-store" / "m.mar").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "serve", serve)
    return found


def test_what_is_wrong_with_the_source_is_told_before_a_server_is_started(tmp_path: Path, started: list[Path]) -> None:
    module, sample = tmp_path / "m.py", tmp_path / "sample.json"
    module.write_text("x = 1\n")
    sample.write_text("1")
    with pytest.raises(ContractError):
        CliRunner().invoke(cli, ["tune", str(module), "--sample", str(sample)], catch_exceptions=False)
    assert started == []


@pytest.mark.parametrize("arguments", [(), ("--sample", "missing.json"), ("--sample", ".")])
def test_without_a_sample(tmp_path: Path, arguments: tuple[str, ...], started: list[Path]) -> None:
    (tmp_path / "m.py").write_text(MODULE)
    result = CliRunner().invoke(cli, ["tune", str(tmp_path / "m.py"), *arguments])
    assert result.exit_code == 2
    assert "--sample" in result.output
    assert started == []


def test_ctrl_c_leaves_nothing_in_the_temp_directory(tmp_path: Path, started: list[Path]) -> None:
    module, sample = tmp_path / "m.py", tmp_path / "sample.json"
    module.write_text(MODULE)
    sample.write_text("1")
    progress: list[str] = []
    subject = measuring.Subject(module, sample, None, {}, 3.0)
    with pytest.raises(KeyboardInterrupt):
        measuring.tune(subject, progress=progress.append)
    (config,) = started
    assert not config.parent.exists()
    assert progress == ["measuring up to 8 candidates in 14 loads, about 2 minutes at most ..."]


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
def test_the_file_keeps_its_line_ends_and_its_mark(project: Path, before: bytes) -> None:
    (project / "handlergen.yaml").write_bytes(before)
    (project / "handlergen.yaml").chmod(0o640)
    after = apply(project, {"batch_size": 4, "max_batch_delay_ms": 7}).read_bytes()
    assert after.startswith(codecs.BOM_UTF8) is before.startswith(codecs.BOM_UTF8)
    added = after.count(b"\n") - before.count(b"\n")
    assert after.count(b"\r\n") == before.count(b"\r\n") + (added if b"\r\n" in before else 0)
    assert b"batch_size: 4" in after
    assert b"max_batch_delay_ms: 7" in after
    assert [path.name for path in sorted(project.iterdir())] == ["handlergen.yaml", "model.py"]
    assert (project / "handlergen.yaml").stat().st_mode & 0o777 == 0o640


def test_the_file_is_never_half_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "handlergen.yaml").write_text("batch_size: 1\n")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HandlergenError, match="cannot be written: No space left"):
        apply(project, SETTINGS)
    assert (project / "handlergen.yaml").read_text() == "batch_size: 1\n"
    assert len(list(project.iterdir())) == 2


def test_a_settings_file_that_is_not_utf8_is_told_so(project: Path) -> None:
    (project / "handlergen.yaml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(HandlergenError, match=r"handlergen\.yaml is not UTF-8"):
        apply(project, SETTINGS)
