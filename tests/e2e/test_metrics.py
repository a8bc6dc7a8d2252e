"""TorchServe's /metrics as Prometheus reads it, of models with copies and with a predictor process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlergen.runtime.telemetry.stages import STAGE_NAMES
from tests.archives import make_archive
from tests.histories import until

pytestmark = pytest.mark.e2e

SOURCE = """
import time

def preprocess(data):
    if data == "bad":
        raise ValueError("no")
    return data

def predict(inputs):
    time.sleep(inputs.get("sleep", 0.001))
    if inputs.get("fails"):
        raise RuntimeError("no")
    return inputs

def explain(inputs):
    return ["because"]

def postprocess(outputs):
    return outputs
"""

BATCHED = """
import torch

def preprocess(data):
    return torch.tensor(float(data))

def predict(inputs):
    return inputs * 2
"""

#: Model: its settings. `relayed` has all of its stages in the predictor process.
MODELS: dict[str, dict[str, Any]] = {
    "copies": {"workers_per_device": 4, "lock_timeout_s": 0.5},
    "process": {"workers_per_device": 2, "predictor": "process", "lock_timeout_s": 0.5},
    "relayed": {"workers_per_device": 1, "predictor": "process", "stages": "predictor"},
}

Labels = frozenset[tuple[str, str]]


class Metrics:
    """What /metrics says at one moment: name and labels (but `Hostname`) of every sample."""

    def __init__(self, server: Any) -> None:
        # Without a token, unlike all else: docs/metrics.md says so.
        text = httpx.get(f"{server.settings.metrics_address}/metrics", trust_env=False).text
        self.types: dict[str, str] = {}
        self.samples: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {name: value for name, value in sample.labels.items() if name != "Hostname"}
                # This parser calls every counter ..._total, as OpenMetrics does; Prometheus itself does not.
                name = sample.name if f"\n# TYPE {sample.name} " in text else family.name
                self.types[name] = family.type
                self.samples[name, frozenset(labels.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    def grown(self, before: Metrics, name: str, **labels: str) -> float:
        return self(name, **labels) - before(name, **labels)

    def by(self, label: str, name: str, before: Metrics | None = None, **labels: str) -> dict[str, float]:
        """What it is, or has grown by since, for each value of a label; without zeros."""
        found: dict[str, float] = defaultdict(float)
        wanted = set(labels.items())
        for (has_name, has), value in self.samples.items():
            if has_name == name and wanted <= has:
                old = before.samples.get((has_name, has), 0.0) if before is not None else 0.0
                found[dict(has)[label]] += value - old
        return {key: value for key, value in found.items() if value}


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("metrics")
    return shared(
        *[make_archive(home, name, SOURCE, **settings) for name, settings in MODELS.items()],
        make_archive(home, "gathered", BATCHED, batch="collate", batch_size=4, max_batch_delay_ms=3000),
    )


def post(server: Any, path: str, body: Any) -> httpx.Response:
    return httpx.post(
        server.settings.inference_address + path,
        json=body,
        headers=server.client.authorization(),
        trust_env=False,
        timeout=60,
    )


def when(server: Any, holds: Callable[[Metrics], bool]) -> Metrics:
    """The metrics, once that is so."""

    def found() -> Metrics | None:
        return now if holds(now := Metrics(server)) else None

    return until(found)


@pytest.mark.parametrize("model", MODELS)
def test_every_request_is_counted_once(server: Any, model: str) -> None:
    before = Metrics(server)
    bodies = [{"x": 1}] * 20 + ["bad"] * 3 + [{"fails": True}] * 2
    with ThreadPoolExecutor(2) as pool:
        statuses = Counter(pool.map(lambda body: post(server, f"/predictions/{model}", body).status_code, bodies))
    assert statuses == {200: 20, 400: 3, 500: 2}
    count = "handlergen_stage_seconds_count"
    expected = {
        "decode": 25, "preprocess": 25, "lock_wait": 22, "predict": 22, "postprocess": 20, "encode": 20,
    }  # fmt: skip
    # Workers and the predictor process tell what they did each in its own time.
    when(server, lambda now: now.grown(before, count, model=model) >= sum(expected.values()))
    when(server, lambda now: now.grown(before, "handlergen_batch_size_count", model=model) >= 22)
    after = when(server, lambda now: now.grown(before, "handlergen_answers_total", model=model) >= 25)
    answers = after.by("status", "handlergen_answers_total", before, model=model)
    assert answers == {"200": 20, "400": 3, "500": 2}
    stages = after.by("stage", count, before, model=model)
    assert stages == expected
    assert after.grown(before, "handlergen_batch_size_count", model=model) == 22
    assert after.grown(before, "handlergen_lock_timeouts_total", model=model) == 0
    assert 0.022 < after.grown(before, "handlergen_stage_seconds_sum", model=model, stage="predict") < 22


def test_histograms_are_as_prometheus_wants_them(server: Any) -> None:
    found = Metrics(server)
    parts = ("bucket", "sum", "count")
    counters = [
        *(f"handlergen_stage_seconds_{part}" for part in parts),
        *(f"handlergen_batch_size_{part}" for part in parts),
        "handlergen_answers_total",
        "handlergen_lock_timeouts_total",
    ]
    gauges = ["handlergen_model_copies", "handlergen_model_memory_bytes"]
    types = {name: kind for name, kind in found.types.items() if name.startswith("handlergen_")}
    types.pop("handlergen_examples_right", None)  # of another module's archives on this server
    assert types == {**dict.fromkeys(counters, "counter"), **dict.fromkeys(gauges, "gauge")}
    for stage in set(STAGE_NAMES) - {"explain"}:
        labels = {"model": "copies", "stage": stage}
        buckets = found.by("le", "handlergen_stage_seconds_bucket", **labels)
        values = [buckets[name] for name in sorted(buckets, key=float)]
        assert values == sorted(values)
        assert values[-1] == buckets["+Inf"] == found("handlergen_stage_seconds_count", **labels) > 0
    assert {dict(labels)["device"] for name, labels in found.samples if name.startswith("handlergen_")} == {"cpu"}


def test_a_batch_is_one_predict(server: Any) -> None:
    before = Metrics(server)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda x: post(server, "/predictions/gathered", x).json(), range(4)))
    assert answers == [0, 2, 4, 6]
    size = "handlergen_batch_size"
    after = when(server, lambda now: now.grown(before, f"{size}_sum", model="gathered") >= 4)
    assert after.grown(before, f"{size}_sum", model="gathered") == 4
    predicts = after.grown(before, f"{size}_count", model="gathered")
    assert predicts < 4
    stages = after.by("stage", "handlergen_stage_seconds_count", before, model="gathered")
    each = dict.fromkeys(("decode", "preprocess", "lock_wait", "encode"), 4)
    assert stages == {**each, "predict": predicts}
    assert after.grown(before, f"{size}_bucket", model="gathered", le="+Inf") == predicts
    assert after.grown(before, f"{size}_bucket", model="gathered", le="1") < predicts


def test_explanations_kserve_and_descriptions(server: Any) -> None:
    """An explanation is an answer; so is a KServe request, whose instances pass the stages; a description is none."""
    before = Metrics(server)
    assert post(server, "/explanations/copies", {"x": 1}).json() == ["because"]
    assert post(server, "/explanations/process", {"x": 1}).json() == ["because"]
    body = {"instances": [{"x": 1}, {"x": 2}, {"x": 3}]}
    assert post(server, "/v1/models/copies:predict", body).status_code == 200
    assert server.client.predict("copies", {"x": 1}).status == 200
    assert server.describe("copies")
    after = when(server, lambda now: now.grown(before, "handlergen_answers_total", model="copies") >= 3)
    explained = {"model": "process", "stage": "explain"}
    count = "handlergen_stage_seconds_count"
    after = when(server, lambda now: now.grown(before, count, **explained) >= 1)
    assert after.grown(before, count, **explained) == 1
    time.sleep(1.5)  # a description that counts would be written within a second
    after = Metrics(server)
    assert after.by("status", "handlergen_answers_total", before, model="copies") == {"200": 3}
    stages = after.by("stage", "handlergen_stage_seconds_count", before, model="copies")
    assert (stages["preprocess"], stages["predict"], stages["explain"], stages["lock_wait"]) == (5, 4, 1, 5)


@pytest.mark.parametrize("model", ["copies", "process"])
def test_a_lock_timeout_is_counted(server: Any, model: str) -> None:
    before = Metrics(server)
    long: list[int] = []
    first = threading.Thread(
        target=lambda: long.append(post(server, f"/predictions/{model}", {"sleep": 3}).status_code)
    )
    first.start()
    time.sleep(1)  # it has the device
    assert post(server, f"/predictions/{model}", {"x": 1}).status_code == 503
    first.join()
    assert long == [200]
    timeouts = "handlergen_lock_timeouts_total"
    after = when(server, lambda now: now.grown(before, timeouts, model=model) >= 1)
    assert after.by("model", timeouts, before) == {model: 1}
    after = when(server, lambda now: now.grown(before, "handlergen_answers_total", model=model) >= 2)
    assert after.by("status", "handlergen_answers_total", before, model=model) == {"200": 1, "503": 1}


def test_memory_is_that_of_a_process_with_torch(server: Any) -> None:
    found = Metrics(server).by("model", "handlergen_model_memory_bytes")
    assert set(found) >= set(server.models)
    assert all(50 << 20 < size < 50 << 30 for size in found.values())


def test_copies_are_counted_through_scaling_and_kills(server: Any) -> None:
    copies = "handlergen_model_copies"

    def become(number: int) -> None:
        when(server, lambda now: now(copies, model="copies") == number)

    found = Metrics(server).by("model", copies)
    expected = {"copies": 4, "process": 1, "relayed": 1, "gathered": 1}
    assert {name: found.get(name) for name in server.models} == expected
    server.client.scale("copies", 2)
    become(2)
    server.client.scale("process", 1)
    os.kill(server.worker_pids("copies")[0], signal.SIGKILL)
    become(1)
    become(2)  # TorchServe starts another one
    assert Metrics(server)(copies, model="process") == 1


def test_metrics_leave_no_line_in_the_log(server: Any) -> None:
    text = server.log_text()
    assert "predictor process" in text
    assert not [line for line in text.splitlines() if "METRICS" in line or "handlergen_stage" in line]
