"""One call of the user's `predict`, with its inputs brought to the device, and back only when the device is done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import CoroutineType
from typing import Any

from .device import Device
from .hooks import Hooks, Item
from .streaming import STREAMS, StreamAnswerError, Streaming, drain, drain_async


class DeviceCall:
    """Calls `predict`, whatever it is: a function, a coroutine, a generator. The caller has the lock.

    Args:
        device: Where the model is.
        streaming: Where the chunks go of a predict that is a generator.
        streams: Whether it may be one: not when several requests are predicted together.

    Attributes:
        count: Calls so far.
    """

    def __init__(self, device: Device, streaming: Streaming, *, streams: bool) -> None:
        self._device = device
        self._streaming = streaming
        self._streams = streams
        self._loop: asyncio.AbstractEventLoop | None = None
        self.count = 0

    def __call__(self, hooks: Hooks, item: Item) -> Any:
        """Inputs to the device, `predict` of the item's stage, wait, outputs to the CPU; in inference mode."""
        self.count += 1
        device = self._device
        item.inputs = device.put(item.inputs)
        outputs = hooks[item.stage].predict.call(item)
        if type(outputs) is CoroutineType:
            outputs = self._await(outputs)
        if type(outputs) in STREAMS:
            outputs = self._streamed(hooks, item, outputs)
        device.wait()
        return device.fetch(outputs)

    def close(self) -> None:
        """Let go of what it holds."""
        if self._loop is not None:
            self._loop.close()

    def _streamed(self, hooks: Hooks, item: Item, stream: Any) -> Any:
        """Iterate what `predict` returned, here, and send its chunks; what is left to be answered."""
        if not self._streams or item.stage != len(hooks) - 1:
            raise StreamAnswerError("predict returned a generator, which only one request at a time can have")
        if hooks[item.stage].postprocess is not None:
            raise StreamAnswerError(
                "predict returned a generator, whose chunks go out as they are made, and there is a postprocess: "
                "do its work inside predict, and remove it"
            )
        chunks = self._streaming.chunks(item)
        device = self._device

        def put(chunk: Any) -> None:
            device.wait()
            chunks.put(device.fetch(chunk))

        if isinstance(stream, Generator):
            drain(stream, put, self._streaming.limit_s)
        else:
            self._await(drain_async(stream, put, self._streaming.limit_s))
        return chunks.answer()

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(coroutine)
