"""The pipeline on real modules, without TorchServe: stages, order, isolation, overlap, batch modes, async hooks."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlergen.runtime.contract import Bundle, Contract, Hook, Parameter, RuntimeSettings
from handlergen.runtime.device import Device
from handlergen.runtime.device_lock import DeviceLock
from handlergen.runtime.worker import Worker

SOURCES = {
    "setup": ("context",),
    "load": ("context",),
    "preprocess": ("data", "files"),
    "predict": ("inputs",),
    "postprocess": ("outputs", "input_data", "files"),
    "explain": ("data",),
}
NAMED = ("context", "model", "device", "request")


class FakeContext:
    """TorchServe's context, as far as the runtime uses it (ts/context.py)."""

    class Processor:
        def __init__(self, properties: dict[str, Any]) -> None:
            self.properties = properties

        def get_request_properties(self) -> dict[str, Any]:
            return self.properties

    def __init__(self, properties: list[dict[str, Any]]) -> None:
        self.request_ids = {index: f"r{index}" for index in range(len(properties))}
        self.request_processor = [self.Processor(item) for item in properties]
        self.statuses = [200] * len(properties)
        self.headers: list[dict[str, str]] = [{} for _ in properties]

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers[index]["content-type"] = value

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        assert phrase.isascii()
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[index][name] = value


class Served:
    """A worker on a module, and its answers as (status, value) pairs."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.context: FakeContext

    def __call__(self, *values: Any) -> list[tuple[int, Any]]:
        data = [{"body": value} for value in values]
        kind = {"body": {"content-type": "application/json"}, "content-type": "application/json", "host": "h"}
        self.context = FakeContext([dict(kind) for _ in values])
        bodies = self.worker.handle(data, self.context)
        return [
            (status, json.loads(body)) for status, body in zip(self.context.statuses, bodies, strict=True)
        ]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Write a module, guess its contract from its signatures (the tests' own way), load it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HANDLERGEN_TRACE_DIR", str(tmp_path / "spans"))
    opened = []

    def make(source: str, batch_size: int = 8, **settings: Any) -> Served:
        name = f"user_module_{len(opened)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        import ast

        hooks = {}
        for node in ast.parse(textwrap.dedent(source)).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in SOURCES:
                sources = iter(SOURCES[node.name])
                parameters = tuple(
                    Parameter(arg.arg, arg.arg if arg.arg in NAMED else next(sources))
                    for arg in node.args.args
                )
                kind = "async" if isinstance(node, ast.AsyncFunctionDef) else "sync"
                hooks[node.name] = Hook(node.name, node.lineno, kind, parameters)
        values: dict[str, Any] = {
            "name": "m", "version": "1.0", "batch": "each", "lock": "device", "lock_timeout_s": 30.0,
            "nan": "null", "max_response_bytes": 6_553_500, "weights": None, "weights_format": None,
            "config": {}, "secrets": (), "model_args": (), "model_kwargs": {}, **settings,
        }  # fmt: skip
        bundle = Bundle("0", Contract("functions", name, hooks), RuntimeSettings(**values))
        worker = Worker(Bundle.from_json(bundle.to_json()), tmp_path, gpu_id=None, batch_size=batch_size)
        opened.append(worker)
        return Served(worker)

    yield make
    for worker in opened:
        worker.close()
    for name in [name for name in sys.modules if name.startswith("user_module_")]:
        del sys.modules[name]


def spans(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [line for path in (tmp_path / "spans").glob("*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_the_three_stages(serve: Serve) -> None:
    model = serve("""
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


def test_only_predict_passes_values_through(serve: Serve) -> None:
    assert serve("def predict(inputs):\n    return inputs[::-1]")([1, 2, 3]) == [(200, [3, 2, 1])]


def test_stage_methods_answer_as_handle_does(serve: Serve) -> None:
    model = serve("def predict(inputs):\n    return inputs + 1")
    context = FakeContext([{"host": "h"}, {"host": "h"}])
    data = [{"body": 1}, {"body": 2}]
    worker = model.worker
    bodies = worker.postprocess(worker.predict(worker.preprocess(data, context)), context)
    assert bodies == worker.handle(data, FakeContext([{"host": "h"}, {"host": "h"}])) == [b"2", b"3"]


@pytest.mark.parametrize("stage", ["preprocess", "predict", "postprocess"])
@pytest.mark.parametrize("count", [1, 8])
def test_one_failure_harms_nobody_else(
    serve: Serve, stage: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    functions = {
        "preprocess": "def preprocess(data):\n    return data",
        "predict": "def predict(inputs):\n    return inputs",
        "postprocess": "def postprocess(outputs):\n    return outputs",
    }
    head, body = functions[stage].split("\n")
    name = head.split("(")[1].split(")")[0]
    functions[stage] = f"{head}\n    if {name} == 0: raise KeyError('secret detail')\n{body}"
    model = serve("\n".join(functions.values()))
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


def test_sys_exit_in_a_hook_is_that_requests_failure(serve: Serve) -> None:
    model = serve("import sys\ndef predict(inputs):\n    return sys.exit(3) if inputs == 0 else inputs")
    assert [status for status, _ in model(0, 1)] == [500, 200]


def test_value_error_in_preprocess_is_a_400(serve: Serve) -> None:
    model = serve("def preprocess(data):\n    return int(data)\ndef predict(inputs):\n    return inputs")
    status, error = model("seven")[0]
    assert (status, "seven" in error["message"]) == (400, True)


def test_order_is_kept_when_requests_take_different_times(serve: Serve) -> None:
    model = serve("""
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


def test_a_ready_request_does_not_wait_for_its_batch(serve: Serve, tmp_path: Path) -> None:
    """`each`: r1 is predicted and answered while r0 still preprocesses; r0's wait is not the device's."""
    model = serve("""
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
    starts = {(s["stage"], s["request_id"]): s["start_ns"] for s in spans(tmp_path)}
    assert starts["predict", "r1"] < starts["postprocess", "r1"] < starts["predict", "r0"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_preprocessing_and_postprocessing_of_a_batch_overlap(serve: Serve, kind: str) -> None:
    """All eight must be inside the stage at once, or the barrier breaks."""
    wait = "barrier.wait(20)" if kind == "def" else "await barrier.wait()"
    make = "threading.Barrier(8)" if kind == "def" else "Barrier(8)"
    model = serve(f"""
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


def test_async_hooks_do_not_run_on_the_predicting_thread(serve: Serve) -> None:
    model = serve("""
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
            assert before == after != during


def test_an_async_failure_is_a_failure(serve: Serve) -> None:
    model = serve("async def preprocess(data):\n    return 1 / data\ndef predict(inputs):\n    return inputs")
    assert [status for status, _ in model(0, 1)] == [500, 200]
    assert [status for status, _ in model(0)] == [500]


def test_predict_runs_in_inference_mode(serve: Serve) -> None:
    model = serve("""
        import torch
        weight = torch.ones(2, requires_grad=True)
        def predict(inputs):
            y = torch.tensor(inputs) * weight
            return [y.requires_grad, torch.is_inference_mode_enabled()]
        """)
    assert model([1.0, 2.0]) == [(200, [False, True])]


def test_postprocess_may_change_outputs_in_place(serve: Serve) -> None:
    model = serve("""
        import torch
        def predict(inputs):
            return torch.tensor(inputs)
        def postprocess(outputs):
            outputs += 1
            return outputs
        """)
    assert model([1.0, 2.0]) == [(200, [2.0, 3.0])]


def test_postprocess_may_be_async_and_change_outputs_in_place(serve: Serve) -> None:
    model = serve("""
        import torch
        def predict(inputs):
            return torch.tensor(inputs)
        async def postprocess(outputs):
            outputs += 1
            return outputs
        """)
    assert model([1.0], [2.0]) == [(200, [2.0]), (200, [3.0])]


def test_collate_makes_one_batch(serve: Serve) -> None:
    model = serve("""
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
    assert answers == [
        (200, {"sum": 3.0, "n": 3}),
        (200, {"sum": 14.0, "n": 3}),
        (200, {"sum": 33.0, "n": 3}),
    ]
    assert model({"x": [1.0, 2.0], "k": 1}) == [(200, {"sum": 3.0, "n": 1})]


def test_list_mode_gives_a_list(serve: Serve) -> None:
    model = serve("def predict(inputs):\n    return [x * len(inputs) for x in inputs]", batch="list")
    assert model(1, 2, 3) == [(200, 3), (200, 6), (200, 9)]


@pytest.mark.parametrize("batch", ["each", "list", "collate"])
def test_inputs_are_laid_out_for_the_device_before_the_lock(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, batch: str
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

    model = serve("def predict(inputs):\n    return inputs", batch=batch)
    monkeypatch.setattr(Device, "stage", stage)
    monkeypatch.setattr(DeviceLock, "acquire", acquired)
    monkeypatch.setattr(DeviceLock, "release", released)
    assert model(21) == [(200, 42)]
    assert events == ["stage", "acquire", "release"]


def test_inputs_that_cannot_be_laid_out_are_the_request_s_failure(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(_device: Device, value: Any) -> Any:
        if value == 0:
            raise TypeError("a container of the user's own cannot be made anew")
        return value

    model = serve("def predict(inputs):\n    return inputs")
    monkeypatch.setattr(Device, "stage", stage)
    assert model(0)[0][0] == 500
    assert model(7) == [(200, 7)]


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_only_the_culprit_of_a_failed_batch_fails(serve: Serve, batch: str) -> None:
    model = serve("""
        def predict(inputs):
            values = [int(x) for x in inputs]
            if 0 in values: raise RuntimeError("zero")
            return values
        """, batch=batch)  # fmt: skip
    assert [answer if answer[0] == 200 else answer[0] for answer in model(1, 0, 3)] == [
        (200, 1),
        500,
        (200, 3),
    ]


@pytest.mark.parametrize(("batch", "source"), [("list", "inputs[:2]"), ("collate", "inputs[:2]")])
def test_a_wrong_length_is_named(
    serve: Serve, batch: str, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = serve(f"def predict(inputs):\n    return {source}", batch=batch)
    assert [status for status, _ in model(1, 2, 3)] == [500] * 3
    assert "predict returned 2 outputs for a batch of 3 inputs" in caplog.text


def test_ragged_samples_are_named(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    model = serve("""
        import torch
        def preprocess(data):
            return torch.zeros(data)
        def predict(inputs):
            return inputs
        """, batch="collate")  # fmt: skip
    assert [status for status, _ in model(2, 2, 3)] == [500] * 3
    assert "sample 0 is tensor(2), but sample 2: tensor(3)" in caplog.text


def test_a_busy_device_is_a_503_with_retry_after(serve: Serve, tmp_path: Path) -> None:
    import threading

    from handlergen.runtime.device_lock import DeviceLock, lock_directory

    model = serve("def predict(inputs):\n    return inputs", lock_timeout_s=0.1)
    lock = DeviceLock("cpu", lock_directory({"HANDLERGEN_STATE_DIR": str(tmp_path / "state")}))
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        lock.acquire(10)
        held.set()
        release.wait(20)
        lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    try:
        assert [status for status, _ in model(1, 2)] == [503, 503]
        assert int(model.context.headers[0]["Retry-After"]) >= 1
    finally:
        release.set()
        holder.join()
    assert model(1, 2) == [(200, 1), (200, 2)]


def test_spans_of_one_request(serve: Serve, tmp_path: Path) -> None:
    model = serve("""
        def preprocess(data):
            return data
        def predict(inputs):
            return inputs
        def postprocess(outputs):
            return outputs
        """)
    model(1)
    found = spans(tmp_path)
    assert [span["stage"] for span in found] == [
        "decode",
        "preprocess",
        "lock_wait",
        "predict",
        "postprocess",
        "encode",
    ]
    assert all(span["start_ns"] <= span["end_ns"] for span in found)
    assert all(a["end_ns"] <= b["end_ns"] for a, b in itertools.pairwise(found))
    assert {span["request_id"] for span in found} == {"r0"}
    assert {(span["model"], span["device"]) for span in found} == {("m", "cpu")}


def test_describe_and_explain(serve: Serve) -> None:
    model = serve("def predict(inputs, model):\n    return inputs")
    context = FakeContext([{"describe": "True"}])
    described = json.loads(model.worker.handle([{}], context)[0])
    assert described["hooks"]["predict"] == {"line": 1, "kind": "sync", "parameters": ["inputs", "model"]}
    assert described["predictor"]["device"] == "cpu"
    context = FakeContext([{"explain": "True", "host": "h"}])
    model.worker.handle([{"body": 1}], context)
    assert context.statuses == [501]


def test_missing_secrets_stop_the_start(serve: Serve) -> None:
    with pytest.raises(LookupError, match="API_KEY_OF_TEST"):
        serve("def predict(inputs):\n    return inputs", secrets=("API_KEY_OF_TEST",))


@pytest.mark.parametrize("count", [1, 5])
def test_a_model_of_two_stages_visits_the_device_twice(serve: Serve, tmp_path: Path, count: int) -> None:
    """What a flow needs: between its models' predictions the device is free, and a failure ends only its own."""
    from handlergen.runtime.hooks import BoundHook, Stage

    def second(item: Any) -> Any:
        if item.data == 3:
            raise RuntimeError("no threes")
        return item.inputs * 10

    model = serve("def predict(inputs):\n    return inputs")
    stages = (
        Stage(
            None,
            BoundHook("one", lambda item: item.inputs + 1),
            BoundHook("post", lambda item: [item.outputs]),
        ),
        Stage(BoundHook("pre", lambda item: item.inputs[0]), BoundHook("two", second)),
    )
    predictor = model.worker.local.model.predictor
    predictor.use(stages)
    model.worker.local.model.failing.name_stages(stages)
    model.worker.pipeline.start(stages, predictor)
    answers = [value if status == 200 else status for status, value in model(*range(count))]
    assert answers == [10, 20, 30, 500, 50][:count]
    found = [span for span in spans(tmp_path) if span["stage"] == "predict"]
    assert len(found) == 2 * count
    found.sort(key=lambda span: span["start_ns"])
    assert all(a["end_ns"] <= b["start_ns"] for a, b in itertools.pairwise(found))


def test_an_answered_request_leaves_nothing_behind(serve: Serve) -> None:
    """Its tensors, those on the device too, go when it is answered: a cycle would keep them until a collection."""
    from handlergen.runtime.hooks import Item

    model = serve("""
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
