"""Explanations, health, and what describe answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.performance.recordings import of_stage, overlapping, read_spans
from handlergen.runtime.telemetry.stages import ON_DEVICE

EXPLAINED = """
import torch

def load(context):
    return torch.nn.Linear(2, 1, bias=False)

{asynchronous}def preprocess(data):
    if data == "bad":
        raise ValueError("no list")
    return torch.tensor(data)

def predict(inputs, model):
    assert torch.is_inference_mode_enabled()
    return model(inputs)

def postprocess(outputs):
    return "a prediction"

def explain(inputs, data, model, request):
    if data == [0.0, 0.0]:
        raise RuntimeError("secret")
    inputs.requires_grad_()
    model(inputs).sum().backward()
    return {{"gradient": inputs.grad, "of": data, "at": request.path}}
"""


def explain(served: Any, *values: Any) -> list[tuple[int, Any]]:
    requests = [(json.dumps(value).encode(), {"explain": "True", "url_path": "here"}) for value in values]
    return [(status, json.loads(body)) for status, body in served.raw(*requests)]


@pytest.mark.parametrize("asynchronous", ["", "async "])
def test_explain_gets_gradients_what_preprocess_returned_and_no_postprocess(
    serve_project: Callable[..., Any], asynchronous: str
) -> None:
    served = serve_project(EXPLAINED.format(asynchronous=asynchronous))
    for answers in (explain(served, [1.0, 2.0]), explain(served, [1.0, 2.0], [3.0, 4.0])):
        for (status, answer), data in zip(answers, ([1.0, 2.0], [3.0, 4.0]), strict=False):
            assert status == 200
            assert answer["of"] == data
            assert answer["at"] == "here"
            assert len(answer["gradient"]) == 2
            assert any(answer["gradient"])


def test_an_explanations_time_on_the_device_is_recorded(serve_project: Callable[..., Any], tmp_path: Path) -> None:
    """Also that of one that fails: it had the device."""
    served = serve_project(EXPLAINED.format(asynchronous=""))
    assert [status for status, _ in explain(served, [1.0, 2.0], [0.0, 0.0])] == [200, 500]
    served.raw((b"[1.0, 2.0]", {}))
    spans = read_spans(tmp_path / "spans")
    counts = {stage: len(of_stage(spans, stage)) for stage in ("preprocess", "lock_wait", "explain", "predict")}
    assert counts == {"preprocess": 3, "lock_wait": 3, "explain": 2, "predict": 1}
    assert overlapping(of_stage(spans, *ON_DEVICE)) == []
    for explained in of_stage(spans, "explain"):
        (waited,) = [s for s in of_stage(spans, "lock_wait") if s.end_ns == explained.start_ns]
        assert waited.request_id == explained.request_id


def test_explanations_and_predictions_of_one_batch(serve_project: Callable[..., Any]) -> None:
    served = serve_project(EXPLAINED.format(asynchronous=""))
    answers = served.raw(
        (b"[1.0, 2.0]", {"explain": "False", "url_path": ""}),
        (b"[1.5, 2]", {"explain": "True", "url_path": ""}),
        (b'"bad"', {"explain": "True", "url_path": ""}),
        (b"[0.0, 0.0]", {"explain": "True", "url_path": ""}),
    )
    assert [status for status, _ in answers] == [200, 200, 400, 500]
    assert json.loads(answers[0][1]) == "a prediction"
    assert json.loads(answers[2][1])["message"] == "no list"
    assert b"The model's explain failed" in answers[3][1]
    assert b"secret" not in answers[3][1]


def test_explain_waits_for_the_device_as_predict_does(serve_project: Callable[..., Any]) -> None:
    served = serve_project(EXPLAINED.format(asynchronous=""), lock_timeout_s=0.05)
    lock = served.worker.local.model.predictor._lock
    lock.acquire(1)
    try:
        ((status, answer),) = explain(served, [1.0, 2.0])
    finally:
        lock.release()
    assert (status, answer["type"]) == (503, "DeviceBusy")
    assert explain(served, [1.0, 2.0])[0][0] == 200


HEALTH = """
def load(context):
    return {{"healthy": True}}

def predict(inputs, model):
    model["healthy"] = inputs
    return inputs

{asynchronous}def is_healthy(context, model):
    if model["healthy"] == "broken":
        raise RuntimeError("secret")
    return model["healthy"]
"""


@pytest.mark.parametrize("asynchronous", ["", "async "])
def test_health_in_describe(
    serve_project: Callable[..., Any], asynchronous: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve_project(HEALTH.format(asynchronous=asynchronous))
    assert served.worker.describe()["health"] == {"healthy": True}
    for value, expected in (
        (False, {"healthy": False}),
        ({"queue": 3}, {"healthy": True, "answer": {"queue": 3}}),
        ("broken", {"healthy": False, "error": "RuntimeError"}),
        (None, {"healthy": False}),
    ):
        served(value)
        assert served.worker.describe()["health"] == expected
    served("broken")
    served.worker.describe()
    served.worker.describe()
    assert caplog.text.count("RuntimeError: secret") == 2  # once until it was well again, and once more


def test_no_hook_no_health(serve_project: Callable[..., Any]) -> None:
    assert serve_project("def predict(inputs): return 1").worker.describe()["health"] is None


def test_describe_counts_requests_and_failures_by_status(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        def preprocess(data):
            if data == 1:
                raise ValueError("one")
            return data
        def predict(inputs):
            if inputs == 2:
                raise RuntimeError("two")
            if inputs == 3:
                return type("Response", (), {"status_code": 418, "body": b"short and stout"})()
            return inputs
        """
    )
    requests = [(str(n).encode(), {"explain": "False", "url_path": ""}) for n in (0, 1, 2, 3, 1)]
    served.raw(*requests)
    described = served.describe()
    assert described["worker"]["requests"] == 5
    assert described["worker"]["failures"] == {"400": 2, "418": 1, "500": 1}
    assert described["predictor"]["predictions"] == 3


def test_a_client_cannot_describe_by_a_header_of_its_own(serve_project: Callable[..., Any]) -> None:
    """Describing is the management address's; under /predictions TorchServe passes a client's headers on."""
    served = serve_project("def predict(inputs): return inputs")
    sent = {"describe": "True", "explain": "False", "url_path": ""}
    assert served.raw((b"1", sent)) == [(200, b"1")]
    assert served.raw((b"1", {"describe": "True"})) == [(200, b"1")]  # as at /invocations


def test_an_nn_module_explains_itself(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        import torch
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 1, bias=False)
                torch.nn.init.constant_(self.layer.weight, 3.0)
            def preprocess(self, x):
                return torch.tensor(x)
            def forward(self, batch):
                return self.layer(batch)
            def explain(self, inputs, data):
                (gradient,) = torch.autograd.grad(self(inputs[None].requires_grad_()).sum(), inputs)
                return gradient

        def is_healthy(model):
            return bool(model.layer.weight.isfinite().all())
        """.replace("inputs[None].requires_grad_()", "inputs.requires_grad_()[None]")
    )
    assert explain(served, [1.0, 2.0], [0.0, 0.0]) == [(200, [3.0, 3.0]), (200, [3.0, 3.0])]
    assert served.worker.describe()["health"] == {"healthy": True}
