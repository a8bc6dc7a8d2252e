"""The event loop of a process: every async hook runs on it, so that clients, locks and sessions work in all of them."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import Context
from types import coroutine
from typing import Any

import torch

THREAD_NAME = "handlergen-async"
_CLOSES_WITHIN_S = 5.0
_TAKES_CONTEXT = sys.version_info >= (3, 11)


class EventLoop:
    """An event loop in a thread of its own, which starts with the first async hook and lasts.

    The thread that predicts only waits for an async predict, so that the caller of this process may have a running
    event loop of its own (Jupyter, FastAPI).

    Attributes:
        prepare_thread: Called first on the loop's thread.
    """

    # Inference mode belongs to a thread. This one alternates between requests: it enters the mode once, for all of them
    # and for the tasks that they start.

    def __init__(self) -> None:
        self.prepare_thread: Callable[[], None] = lambda: None
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._mode: torch.inference_mode | None = None

    def submit(
        self,
        hook: Coroutine[Any, Any, Any],
        context: Context,
        done: Callable[[Any, BaseException | None], None],
        *,
        gradients: bool = False,
    ) -> None:
        """Run a coroutine; `done(value, error)` is called on the loop's thread when it ends.

        Args:
            context: In which it runs, and whose variables it may set.
            gradients: Leave inference mode while it runs.
        """

        async def outcome() -> tuple[Any, BaseException | None]:
            try:
                return await (_with_gradients(hook) if gradients else hook), None
            except BaseException as error:  # SystemExit would end the loop
                return None, error
            finally:
                _keep(context)

        def start() -> None:
            if _TAKES_CONTEXT:
                task = loop.create_task(outcome(), context=context)
            else:
                task = context.run(loop.create_task, outcome())
            # Outside of the context, which the request's next hook enters, perhaps on this thread.
            task.add_done_callback(lambda ended: done(*ended.result()))

        loop = self._running()
        loop.call_soon_threadsafe(start)

    def run(self, hook: Coroutine[Any, Any, Any], context: Context, *, gradients: bool = False) -> Any:
        """Run a coroutine as `submit` does, and wait for it.

        Raises:
            BaseException: What the coroutine raises.
        """
        ended: Future[Any] = Future()

        def done(value: Any, error: BaseException | None) -> None:
            if error is None:
                ended.set_result(value)
            else:
                ended.set_exception(error)

        self.submit(hook, context, done, gradients=gradients)
        return ended.result()

    def enter_inference_mode(self) -> None:
        """Run everything in inference mode from now on: the model is loaded."""
        self._mode = torch.inference_mode()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._mode.__enter__)

    def close(self) -> None:
        """Stop the loop; pending coroutines are abandoned."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(timeout=_CLOSES_WITHIN_S)
        if not self._thread.is_alive():
            loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name=THREAD_NAME, daemon=True)
                self._thread.start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self.prepare_thread()
        if self._mode is not None:
            self._mode.__enter__()
        asyncio.set_event_loop(loop)
        loop.run_forever()
        self._mode = None  # whose end is this thread's


@coroutine
def _with_gradients(hook: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine outside of inference mode, whatever the thread does between its steps."""
    resume: Callable[[Any], Any] = hook.send
    value: Any = None
    while True:
        try:
            with torch.inference_mode(mode=False):
                waits_for = resume(value)
        except StopIteration as end:
            return end.value
        try:
            value, resume = (yield waits_for), hook.send
        except BaseException as error:
            value, resume = error, hook.throw


def _keep(context: Context) -> None:
    """Set what a task has set in its copy of the context, where Python cannot run it in the context itself (3.10)."""
    if _TAKES_CONTEXT:
        return
    for variable, value in contextvars.copy_context().items():
        if context.get(variable) is not value:
            context.run(variable.set, value)


def run_here(loop: EventLoop, hook: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the loop and wait for it; what it sets in its context is set in this thread's too.

    Raises:
        BaseException: What the coroutine raises.
    """
    context = contextvars.copy_context()
    try:
        return loop.run(hook, context)
    finally:
        here = contextvars.copy_context()
        for variable, value in context.items():
            if here.get(variable) is not value:
                variable.set(value)
