"""The parts of `benchmarks/peers` that need no peer: what is counted, compared and drawn."""

import json
import struct
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def module(name: str) -> ModuleType:
        return import_module(f"peers.{name}")

    return module


def test_spans_of_all_processes_within_the_window_without_the_half_written_one(peers, tmp_path):
    (tmp_path / "predict-1").write_bytes(struct.pack("=4q", 5, 9, 30, 45) + b"\0\0\0")
    (tmp_path / "predict-2").write_bytes(struct.pack("=4q", 12, 18, 50, 60))
    assert peers("figures").read_spans(tmp_path, (10, 40)) == [(12, 18), (30, 45)]


@pytest.mark.parametrize(
    ("spans", "busy", "overlaps"),
    [
        ([(0, 10), (10, 20)], 0.2, 0),
        ([(0, 10), (5, 20)], 0.2, 1),
        ([(0, 50), (5, 20), (30, 40)], 0.5, 2),
        ([(-10, 10), (90, 130)], 0.2, 0),
        ([], 0.0, 0),
    ],
)
def test_time_in_which_a_predict_ran_counts_once(peers, spans, busy, overlaps):
    assert peers("figures").occupation(spans, (0, 100)) == (pytest.approx(busy), overlaps)


def turn(peers, subject: str, clients: int, rate: float, **others):
    times = {"p50_ms": 1.0, "p99_ms": 2.0, "busy": 0.5, "overlaps": 1, "predictions": 10, "copies": 4, "others": 0.1}
    named = {"subject": subject, "clients": clients, "requests_per_s": rate, "errors": {}}
    return peers("figures").Turn(**{**times, **named, **others})


def test_medians_of_turns_and_sums_of_what_must_not_happen(peers):
    turns = [turn(peers, "truss", 16, rate, errors={"wrong": 1}) for rate in (3.0, 100.0, 5.0)]
    [(key, figures)] = peers("figures").medians(turns).items()
    assert key == ("truss", 16)
    assert figures["requests_per_s"] == 5.0
    assert figures["overlaps"] == figures["errors"] == figures["turns"] == 3


def test_an_answer_is_found_in_the_wrapping_of_the_response(peers):
    mlserver = peers("mlserver")
    asked = peers("workloads").Asked("/", {}, {"answer": 7}, mlserver._unwrap)
    output = {"name": "answer", "shape": [1, 1], "datatype": "INT64", "data": [7]}
    assert asked.is_right(json.dumps({"id": "a", "outputs": [output]}).encode())
    assert asked.is_right(json.dumps({"id": "b", "outputs": [output]}).encode())
    assert not asked.is_right(json.dumps({"id": "c", "outputs": [output | {"data": [8]}]}).encode())
    assert not asked.is_right(b'{"error": "overloaded"}')
    assert not asked.is_right(b"not JSON")


def test_floats_are_compared_within_rounding_and_other_values_exactly(peers):
    close = peers("workloads").close
    assert close({"best": [1.0, 2.0]}, {"best": [1.001, 1.999]})
    assert not close({"best": [1.0, 2.0]}, {"best": [1.0, 2.1]})
    assert not close([1.0], [1.0, 1.0])
    assert not close({"answer": 3}, {"answer": 4})


def test_each_workload_has_its_module_and_each_subject_its_own_key(peers, monkeypatch):
    for workload in peers("workloads").WORKLOADS:
        assert (BENCHMARKS / "peers" / "models" / f"{workload.module}.py").is_file()
    names = ("handlergen", "truss", "litserve", "mlserver", "bentoml", "ray", "torchserve")
    keys = [subject.key for name in names for subject in peers(name).SUBJECTS]
    assert len(set(keys)) == len(keys) == 10


def test_table_and_plot_show_every_subject_the_fastest_first(peers):
    turns = [turn(peers, "truss", 16, 99.0), turn(peers, "litserve-4", 16, 133.0), turn(peers, "truss", 1, 30.0)]
    workload = {
        "name": "waits",
        "title": "waits & predicts",
        "missing": {"litserve": "not installed: no wheel\nat all"},
        "turns": [asdict(each) for each in turns],
    }
    subjects = {each.key: each for name in ("truss", "litserve") for each in peers(name).SUBJECTS}
    lines = list(peers("report").markdown(workload, subjects))
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["LitServe, four copies", "Truss"]
    assert "Without LitServe, one copy: not installed: no wheel" in lines
    drawing = ElementTree.fromstring(peers("plot").svg([workload], subjects, clients=16))
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    title = "waits & predicts: requests/s with 16 clients"
    assert texts == [title, "LitServe, four copies", "133", "Truss", "99"]
