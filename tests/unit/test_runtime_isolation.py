"""What a hook raises, or does to memory that it was given or returned, stays with its own request."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from handlergen.runtime.codec.errors import Failure, LockTimeout, is_out_of_memory
from handlergen.runtime.pipeline.batching import RequestQueue, own_copy
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.request import Request

RAISES = """
import asyncio

class Panic(BaseException):
    '''As libraries written in Rust raise it.'''

class Odd(Exception):
    @property
    def status_code(self):
        raise RuntimeError("there is no response yet")

def fail(data, where):
    if data != [where]:
        return data
    kinds = {{"panic": Panic, "odd": Odd, "cancelled": asyncio.CancelledError, "interrupt": KeyboardInterrupt,
             "exit": SystemExit}}
    raise kinds[{kind!r}]()

{colour}def preprocess(data):
    return fail(data, "preprocess")

def predict(inputs):
    return fail(inputs, "predict")

{colour}def postprocess(outputs):
    return fail(outputs, "postprocess")
"""


@pytest.mark.parametrize("colour", ["", "async "])
@pytest.mark.parametrize("kind", ["panic", "odd", "cancelled", "exit"])
@pytest.mark.parametrize("where", ["preprocess", "predict", "postprocess"])
def test_whatever_a_hook_raises_is_its_own_request_s_failure(
    serve_project: Callable[..., Any], where: str, kind: str, colour: str
) -> None:
    model = serve_project(RAISES.format(kind=kind, colour=colour))
    assert [status for status, _ in model([where])] == [500]
    answers = model(["fine"], [where], ["too"])
    assert [answers[0], answers[1][0], answers[2]] == [(200, ["fine"]), 500, (200, ["too"])]


def test_ctrl_c_is_the_program_s(serve_project: Callable[..., Any]) -> None:
    model = serve_project(RAISES.format(kind="interrupt", colour=""))
    with pytest.raises(KeyboardInterrupt):
        model(["preprocess"])
    assert model(["fine"]) == [(200, ["fine"])]  # and the device is free again


def test_the_system_s_lack_of_memory_is_one() -> None:
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))


BUFFER = """
import numpy, torch
numbers = numpy.zeros(3)
tensor = torch.zeros(3)
told = {}

def predict(inputs):
    numbers[:] = inputs
    tensor.fill_(inputs)
    told["it"] = inputs
    return {"numbers": numbers, "tensor": tensor, "told": told}

def postprocess(outputs):
    return [outputs["numbers"].tolist(), outputs["tensor"].tolist(), outputs["told"]["it"]]
"""


def test_a_model_may_fill_the_same_memory_again_and_again(serve_project: Callable[..., Any]) -> None:
    """In a serial handler it may; here one request is answered while the next one is predicted."""
    model = serve_project(BUFFER)
    assert model(*range(1, 9)) == [(200, [[n] * 3, [n] * 3, n]) for n in range(1, 9)]


CHANGES_INPUTS = """
import torch

{collate}
def preprocess(data):
    return torch.tensor([float(data)])

def predict(inputs):
    for one in inputs:
        one.div_(10)
    if any(one.item() < 0 for one in inputs):
        raise RuntimeError("as asked")
    return [one.item() for one in inputs]
"""


def test_a_failed_batch_is_tried_again_with_the_inputs_as_they_were(
    serve_project: Callable[..., Any],
) -> None:
    model = serve_project(CHANGES_INPUTS.format(collate=""), batch="list")
    answers = model(10, 20, -30)
    assert answers[:2] == [(200, 1.0), (200, 2.0)]
    assert answers[2][0] == 500


def test_maximum_and_its_place_keep_their_names(serve_project: Callable[..., Any]) -> None:
    """torch.return_types are tuples with names, of a kind of their own."""
    model = serve_project("""
        import torch

        class Net(torch.nn.Module):
            def preprocess(self, x):
                return torch.tensor(x)
            def forward(self, batch):
                return batch.max(dim=1)
            def postprocess(self, output):
                return [output.values.item(), output.indices.item()]
        """)  # fmt: skip
    assert model([1, 5, 2], [9, 0, 0]) == [(200, [5, 1]), (200, [9, 0])]


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Boxed:
    value: Any


@pytest.mark.parametrize("wrap", [
    lambda leaf: leaf,
    lambda leaf: [leaf],
    lambda leaf: ("label", leaf),
    lambda leaf: {"a": {"b": leaf}},
    lambda leaf: Point(1, leaf),
    lambda leaf: Boxed([leaf]),
    lambda leaf: OrderedDict(a=leaf),
    lambda leaf: defaultdict(list, a=leaf),
])  # fmt: skip
@pytest.mark.parametrize("make", [lambda: torch.ones(3), lambda: numpy.ones(3), lambda: bytearray(b"\1" * 3)])
def test_an_own_copy_shares_no_memory(wrap: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    leaf = make()
    copied = own_copy(wrap(leaf))
    leaf[0] = 7
    assert type(copied) is type(wrap(leaf))
    assert "7" not in str(copied)
    if isinstance(copied, defaultdict):
        assert copied["new"] == []


def test_an_own_copy_of_containers_that_are_filled_again() -> None:
    once: dict[str, Any] = {"scores": [1.0] * 1000, "few": [1, [2]]}
    copied = own_copy(once)
    once["scores"][0], once["few"][1][0], once["new"] = 2.0, 3, 4
    assert copied == {"scores": [1.0] * 1000, "few": [1, [2]]}


def test_other_objects_are_not_copied() -> None:
    thing = object()
    assert own_copy([thing])[0] is thing
    assert own_copy(shown := torch.ones(2), tensors=False) is shown


def item(number: int) -> Item:
    return Item(number, {}, {}, Request({}, f"r{number}"))


def test_who_waits_for_a_request_that_failed_in_an_earlier_stage_is_woken() -> None:
    """The predictor process hands requests back on another thread than the one that waits for the next."""
    requests = RequestQueue(1, last_model=1, finished=lambda _item: None)
    first = item(0)
    requests.put(first)
    assert requests.next() is first
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(requests.next()), daemon=True)
    waiting.start()
    time.sleep(0.1)  # until it waits; if it does not yet, it sees that there is none left
    first.failure = Failure(500, "InternalError", "it failed in the first stage")
    requests.done(first)
    waiting.join(10)
    assert found == [None]
    assert requests.next_ready() is None


def test_only_those_give_up_that_cannot_wait_any_longer(serve_project: Callable[..., Any]) -> None:
    """A batch of several workers' requests has some that have waited for long, and some that have just come."""
    model = serve_project("def predict(inputs):\n    return inputs", batch="list", lock_timeout_s=5)
    predictor = model.worker.local.model.predictor
    old, new = item(0), item(1)
    old.inputs, new.inputs = "old", "new"
    old.ready_ns, new.ready_ns = time.monotonic_ns() - 10**10, time.monotonic_ns()
    waits: list[float] = []

    class Busy:
        key = "cpu"

        def acquire(self, timeout_s: float) -> None:
            waits.append(timeout_s)
            if len(waits) == 1:
                raise LockTimeout("somebody has it")

        def release(self) -> None:
            waits.append(-1)

    predictor._lock = Busy()
    done: list[Item] = []
    requests = RequestQueue(2, last_model=0, finished=done.append)
    requests.put(old)
    requests.put(new)
    predictor.predict(requests)
    assert done == [old, new]
    assert old.failure is not None
    assert old.failure.status == 503
    assert (new.failure, new.outputs) == (None, "new")
    assert waits[0] == 0
    assert 0 < waits[1] <= 5
    assert waits[2] == -1


def test_metrics_do_not_go_to_where_a_hook_has_sent_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    import contextlib
    import io

    from handlergen.runtime.telemetry.recording import printer

    write = printer()
    with contextlib.redirect_stdout(io.StringIO()) as captured:
        write("of the predictor process\n")
    assert captured.getvalue() == ""
    assert capsys.readouterr().out == "of the predictor process\n"
