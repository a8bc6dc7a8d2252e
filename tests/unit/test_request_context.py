"""The context of a request (`contextvars`), and the event loop of async hooks, in this process."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from handlergen.local.model import LocalModel, load
from handlergen.runtime.pipeline import event_loop
from handlergen.runtime.pipeline.event_loop import EventLoop
from tests.contexts import MODULE, answer, requests

Models = Callable[..., LocalModel]


@pytest.mark.parametrize("batch", ["each", "list"])
def test_each_request_has_its_own_context_in_all_of_its_hooks(model: Models, batch: str) -> None:
    source = MODULE
    if batch == "list":  # predict sees no single request's context
        source = MODULE.replace("def predict(inputs):", "def alone(inputs):").replace(
            "def postprocess", "def predict(inputs):\n    return [alone(each) for each in inputs]\n\n\ndef postprocess"
        )
    loaded = model(source, batch=batch)
    for turn in range(8):
        wanted = requests(turn, 1 + turn % 5)
        if batch == "list":
            wanted = [{**request, "predict": {}} for request in wanted]
        answers = [each.value for each in loaded.batch(wanted)]
        if batch == "list":
            expected = [answer(request) for request in wanted]
            assert [[one, three] for one, _, three in answers] == [[one, three] for one, _, three in expected]
            assert {tuple(seen) for _, seen, _ in answers} == {("load", "0.333333", "ignore")}
        else:
            assert answers == [answer(request) for request in wanted]
    assert decimal.getcontext().prec == 28  # the caller's own
    assert [loaded.predict({"preprocess": {}})[0] for _ in range(2)] == [["load", "0.333333", "ignore"]] * 2


def test_rows_of_a_map_have_their_own_contexts(model: Models) -> None:
    loaded = model(MODULE)
    wanted = requests(1, 24)
    for options in ({"workers": 0}, {"workers": 2}, {"workers": 2, "threads": True}):
        results = loaded.map(wanted, batch_size=4, **options)
        assert [each.value for each in results] == [answer(request) for request in wanted]


ASYNC = """
import asyncio
import contextvars

USER = contextvars.ContextVar("user", default="nobody")


async def setup(context):
    global LOCK, LOOP
    USER.set("setup")
    LOCK = asyncio.Lock()
    async with LOCK:
        LOOP = asyncio.get_running_loop()


async def load(context):
    assert asyncio.get_running_loop() is LOOP
    return asyncio.Queue()


async def preprocess(data, model):
    async with LOCK:
        before = USER.get()
        USER.set(data)
        await model.put(data)
        await asyncio.sleep(0)
        return [before, asyncio.get_running_loop() is LOOP]


async def predict(inputs, model):
    async with LOCK:
        await model.get()
        return [*inputs, USER.get(), asyncio.get_running_loop() is LOOP]


async def postprocess(outputs):
    async with LOCK:
        await asyncio.sleep(0)
        return [*outputs, USER.get()]
"""


@pytest.mark.parametrize("takes_context", [event_loop._TAKES_CONTEXT, False])
def test_setup_load_and_all_async_hooks_share_one_loop(
    model: Models, takes_context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loop, "_TAKES_CONTEXT", takes_context)  # Python 3.10 does not
    loaded = model(ASYNC)
    expected = [["setup", True, name, True, name] for name in ("ann", "bob", "eve")]
    assert [loaded.predict(name) for name in ("ann", "bob", "eve")] == expected
    assert [each.value for each in loaded.batch(["ann", "bob", "eve"])] == expected


def test_a_caller_may_have_a_running_loop(model: Models, tmp_path: Any) -> None:
    model(ASYNC).close()

    async def call() -> tuple[Any, list[Any]]:
        with load(tmp_path / "mymodel.py") as loaded:
            return loaded.predict("ann"), [each.value for each in loaded.batch(["bob", "eve"])]

    alone, together = asyncio.run(call())
    assert [alone, *together] == [["setup", True, name, True, name] for name in ("ann", "bob", "eve")]


def test_a_stream_of_an_async_generator_runs_in_the_context_of_its_request(model: Models) -> None:
    loaded = model("""
        import contextvars
        USER = contextvars.ContextVar("user", default="nobody")

        def preprocess(data):
            USER.set(data)
            return data

        async def predict(inputs):
            for _ in range(2):
                yield USER.get()
        """)
    assert list(loaded.stream("ann")) == [b"ann", b"ann"]


def test_the_loop_is_in_inference_mode_once_the_model_is_loaded() -> None:
    loop, modes = EventLoop(), []

    async def nested() -> bool:
        return torch.is_inference_mode_enabled()

    async def hook() -> list[bool]:
        return [torch.is_inference_mode_enabled(), await asyncio.create_task(nested())]

    context = contextvars.copy_context()
    modes.append(loop.run(hook(), context))
    loop.enter_inference_mode()
    modes.append(loop.run(hook(), context))
    modes.append(loop.run(hook(), context, gradients=True))
    loop.close()
    assert modes[:2] == [[False, False], [True, True]]
    assert modes[2][0] is False


def test_what_ends_a_hook_does_not_end_the_loop() -> None:
    loop, context = EventLoop(), contextvars.copy_context()

    async def ends(error: BaseException) -> None:
        raise error

    async def cancels() -> None:
        task = asyncio.ensure_future(asyncio.sleep(10))
        task.cancel()
        await task

    for coroutine, raised in ((ends(SystemExit(3)), SystemExit), (cancels(), asyncio.CancelledError)):
        with pytest.raises(raised):
            loop.run(coroutine, context)

    async def here() -> int:
        return threading.get_ident()

    assert loop.run(here(), context) != threading.get_ident()
    loop.close()
