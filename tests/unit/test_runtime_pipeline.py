"""The pipeline on real modules, without TorchServe: stages, order, isolation, overlap, batch modes, async hooks."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.performance.recordings import read_spans
from handlergen.runtime.device.device import Device
from handlergen.runtime.device.lock import DeviceLock, lock_directory
from tests.serving import ServerContext

Serve = Callable[..., Any]


def test_the_three_stages(serve_project: Serve) -> None:
    model = serve_project("""
        def load(context):
            return {"factor": context.config["factor"]}
        def preprocess(data, request):
            request.metadata["seen"] = data["x"]
            return data["x"] + 1
        def predict(inputs, model, device):
            assert device.type == "cpu"
            return inputs * model["factor"]
        def postprocess(outputs, input_data, request):
            return {"y": outputs, "x": input_data["x"], "seen": request.metadata["seen"]}
        """, config={"factor": 10})  # fmt: skip
    assert model({"x": 4}) == [(200, {"y": 50, "x": 4, "seen": 4})]
    assert model.context.headers[0]["content-type"] == "application/json"


def test_stage_methods_answer_as_handle_does(serve_project: Serve) -> None:
    model = serve_project("def predict(inputs):\n    return inputs + 1")
    context = ServerContext([{"host": "h"}, {"host": "h"}])
    data = [{"body": 1}, {"body": 2}]
    worker = model.worker
    bodies = worker.postprocess(worker.predict(worker.preprocess(data, context)), context)
    assert bodies == worker.handle(data, ServerContext([{"host": "h"}, {"host": "h"}])) == [b"2", b"3"]


@pytest.mark.parametrize("stage", ["preprocess", "predict", "postprocess"])
@pytest.mark.parametrize("count", [1, 8])
def test_one_failure_harms_nobody_else(
    serve_project: Serve, stage: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    functions = {
        "preprocess": "def preprocess(data):\n    return data",
        "predict": "def predict(inputs):\n    return inputs",
        "postprocess": "def postprocess(outputs):\n    return outputs",
    }
    head, body = functions[stage].split("\n")
    name = head.split("(")[1].split(")")[0]
    functions[stage] = f"{head}\n    if {name} == 0: raise KeyError('secret detail')\n{body}"
    model = serve_project("\n".join(functions.values()))
    answers = model(*range(count))
    assert answers[1:] == [(200, index) for index in range(1, count)]
    status, error = answers[0]
    assert status == 500
    assert sorted(error) == ["code", "message", "request_id", "type"]
    assert error["request_id"] == "r0"
    assert "secret" not in json.dumps(error)
    assert caplog.text.count("Traceback") == 1
    assert "secret detail" in caplog.text
    assert "in _call" not in caplog.text  # no frame of handlergen's own


def test_order_is_kept_when_requests_take_different_times(serve_project: Serve) -> None:
    model = serve_project("""
        import time
        def preprocess(data):
            time.sleep(0.02 * (7 - data))
            return data
        def predict(inputs):
            return inputs * 10
        def postprocess(outputs):
            time.sleep(0.003 * (outputs % 30))
            return outputs
        """)
    assert model(*range(8)) == [(200, index * 10) for index in range(8)]


def test_a_ready_request_does_not_wait_for_its_batch(serve_project: Serve, tmp_path: Path) -> None:
    """`each`: r1 is predicted and answered while r0 still preprocesses; r0's wait is not the device's."""
    model = serve_project("""
        import threading
        answered = threading.Event()
        def preprocess(data):
            assert data != 0 or answered.wait(20)
            return data
        def predict(inputs):
            return inputs
        def postprocess(outputs):
            if outputs == 1:
                answered.set()
            return outputs
        """)
    assert model(0, 1) == [(200, 0), (200, 1)]
    starts = {(s.stage, s.request_id): s.start_ns for s in read_spans(tmp_path / "spans")}
    assert starts["predict", "r1"] < starts["postprocess", "r1"] < starts["predict", "r0"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_preprocessing_and_postprocessing_of_a_batch_overlap(serve_project: Serve, kind: str) -> None:
    """All eight must be inside the stage at once, or the barrier breaks."""
    wait = "barrier.wait(20)" if kind == "def" else "await barrier.wait()"
    make = "threading.Barrier(8)" if kind == "def" else "Barrier(8)"
    model = serve_project(f"""
        import asyncio, threading
        class Barrier:
            def __init__(self, count): self.left, self.event = count, None
            async def wait(self):
                self.event = self.event or asyncio.Event()
                self.left -= 1
                if not self.left: self.event.set()
                await asyncio.wait_for(self.event.wait(), 20)
        before, after = {make}, {make}
        {kind} preprocess(data):
            barrier = before
            {wait}
            return data
        def predict(inputs):
            return inputs
        {kind} postprocess(outputs):
            barrier = after
            {wait}
            return outputs
        """)
    assert model(*range(8)) == [(200, index) for index in range(8)]


def test_async_hooks_share_one_event_loop_beside_the_predicting_thread(serve_project: Serve) -> None:
    model = serve_project("""
        import threading
        async def preprocess(data):
            return threading.get_ident()
        async def predict(inputs):
            return [inputs, threading.get_ident()]
        async def postprocess(outputs):
            return [*outputs, threading.get_ident()]
        """)
    for batch in ([1], [1, 2]):
        for status, (before, during, after) in model(*batch):
            assert status == 200
            assert before == during == after != threading.get_ident()


def test_predict_runs_in_inference_mode(serve_project: Serve) -> None:
    model = serve_project("""
        import torch
        weight = torch.ones(2, requires_grad=True)
        def predict(inputs):
            y = torch.tensor(inputs) * weight
            return [y.requires_grad, torch.is_inference_mode_enabled()]
        """)
    assert model([1.0, 2.0]) == [(200, [False, True])]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_postprocess_may_change_outputs_in_place(serve_project: Serve, kind: str) -> None:
    model = serve_project(f"""
        import torch
        def predict(inputs):
            return torch.tensor(inputs)
        {kind} postprocess(outputs):
            outputs += 1
            return outputs
        """)
    assert model([1.0, 2.0]) == [(200, [2.0, 3.0])]
    assert model([1.0], [2.0]) == [(200, [2.0]), (200, [3.0])]


def test_collate_makes_one_batch(serve_project: Serve) -> None:
    model = serve_project("""
        import torch
        def preprocess(data):
            return {"x": torch.tensor(data["x"]), "k": data["k"]}
        def predict(inputs):
            assert inputs["x"].shape[1:] == (2,)
            return {"sum": inputs["x"].sum(1) * inputs["k"], "n": torch.full((len(inputs["k"]),), len(inputs["k"]))}
        def postprocess(outputs):
            return {name: value.item() for name, value in outputs.items()}
        """, batch="collate")  # fmt: skip
    answers = model({"x": [1.0, 2.0], "k": 1}, {"x": [3.0, 4.0], "k": 2}, {"x": [5.0, 6.0], "k": 3})
    assert answers == [(200, {"sum": total, "n": 3}) for total in (3.0, 14.0, 33.0)]
    assert model({"x": [1.0, 2.0], "k": 1}) == [(200, {"sum": 3.0, "n": 1})]


def test_list_mode_gives_a_list(serve_project: Serve) -> None:
    model = serve_project("def predict(inputs):\n    return [x * len(inputs) for x in inputs]", batch="list")
    assert model(1, 2, 3) == [(200, 3), (200, 6), (200, 9)]


@pytest.mark.parametrize("batch", ["each", "list", "collate"])
def test_inputs_are_laid_out_for_the_device_before_the_lock(
    serve_project: Serve, monkeypatch: pytest.MonkeyPatch, batch: str
) -> None:
    events: list[str] = []
    acquire, release = DeviceLock.acquire, DeviceLock.release

    def stage(_device: Device, value: Any) -> Any:
        events.append("stage")
        return value * 2 if batch == "each" else [value[0] * 2]

    def acquired(lock: DeviceLock, timeout_s: float) -> None:
        acquire(lock, timeout_s)
        events.append("acquire")

    def released(lock: DeviceLock) -> None:
        events.append("release")
        release(lock)

    model = serve_project("def predict(inputs):\n    return inputs", batch=batch)
    monkeypatch.setattr(Device, "pin", stage)
    monkeypatch.setattr(DeviceLock, "acquire", acquired)
    monkeypatch.setattr(DeviceLock, "release", released)
    assert model(21) == [(200, 42)]
    assert events == ["stage", "acquire", "release"]


def test_inputs_that_cannot_be_laid_out_are_the_request_s_failure(
    serve_project: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(_device: Device, value: Any) -> Any:
        if value == 0:
            raise TypeError("a container of the user's own cannot be made anew")
        return value

    model = serve_project("def predict(inputs):\n    return inputs")
    monkeypatch.setattr(Device, "pin", stage)
    assert model(0)[0][0] == 500
    assert model(7) == [(200, 7)]


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_only_the_culprit_of_a_failed_batch_fails(serve_project: Serve, batch: str) -> None:
    model = serve_project("""
        def predict(inputs):
            values = [int(x) for x in inputs]
            if 0 in values: raise RuntimeError("zero")
            return values
        """, batch=batch)  # fmt: skip
    first, culprit, last = model(1, 0, 3)
    assert (first, culprit[0], last) == ((200, 1), 500, (200, 3))


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_a_wrong_length_is_named(serve_project: Serve, batch: str, caplog: pytest.LogCaptureFixture) -> None:
    model = serve_project("def predict(inputs):\n    return inputs[:2]", batch=batch)
    assert [status for status, _ in model(1, 2, 3)] == [500] * 3
    assert "predict returned 2 outputs for a batch of 3 inputs" in caplog.text


def test_a_busy_device_is_a_503_with_retry_after(serve_project: Serve, tmp_path: Path) -> None:
    model = serve_project("def predict(inputs):\n    return inputs", lock_timeout_s=0.1)
    lock = DeviceLock("cpu", lock_directory({"HANDLERGEN_STATE_DIR": str(tmp_path / "state")}))
    lock.acquire(10)
    try:
        assert [status for status, _ in model(1, 2)] == [503, 503]
        assert int(model.context.headers[0]["Retry-After"]) >= 1
    finally:
        lock.release()
    assert model(1, 2) == [(200, 1), (200, 2)]


def test_spans_of_one_request(serve_project: Serve, tmp_path: Path) -> None:
    model = serve_project("""
        def preprocess(data):
            return data
        def predict(inputs):
            return inputs
        def postprocess(outputs):
            return outputs
        """)
    model(1)
    found = read_spans(tmp_path / "spans")
    stages = ["decode", "preprocess", "lock_wait", "predict", "postprocess", "encode"]
    assert [span.stage for span in found] == stages
    assert all(span.start_ns <= span.end_ns for span in found)
    assert all(a.end_ns <= b.end_ns for a, b in itertools.pairwise(found))
    assert {span.request_id for span in found} == {"r0"}
    assert {(span.model, span.device) for span in found} == {("m", "cpu")}


def test_an_answered_request_leaves_nothing_behind(serve_project: Serve) -> None:
    """Its tensors, those on the device too, go when it is answered: a cycle would keep them until a collection."""
    from handlergen.runtime.pipeline.hooks import Item

    model = serve_project("""
        async def preprocess(data):
            return data
        def predict(inputs):
            return inputs
        def postprocess(outputs):
            return outputs
        """)
    model(1, 2)
    gc.collect()
    gc.disable()
    try:
        model(1)
        model(1, 2)
        end = time.monotonic() + 10  # a thread of the pool may still be letting go
        while any(type(each) is Item for each in gc.get_objects()):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        gc.enable()
