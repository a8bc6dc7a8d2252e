"""Predicting in another process, as the pipeline sees it: the predictor's interface, over a link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..arrivals import Ready
from ..hooks import Item, http_request
from ..needs import Needs
from ..wire import STREAM_WISH
from .calls import Call, call_for, settle
from .link import Link
from .protocol import Predicted, Prepared


class RemotePredictor:
    """A `Predictor` whose predictions are made by the predictor process.

    Args:
        link: To it.
        kind: `PREDICT` or `EXPLAIN`.
        needs: What of a request crosses.
        fail: Called with an item, what was raised and the hook's name; sets the item's failure.
        describe: What it says of itself.
    """

    def __init__(
        self,
        link: Link,
        kind: int,
        needs: Needs,
        *,
        fail: Callable[[Item, BaseException, str], None],
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._link = link
        self._kind = kind
        self._needs = needs
        self._fail = fail
        self.describe = describe

    def load(self) -> None:
        """Nothing: the predictor process loads the model."""

    def predict(self, arrivals: Ready) -> None:
        """Send each request when it is ready; answers come in any order."""
        item = arrivals.next()
        if item is not None and not arrivals.more:
            call = self._call(item, None)
            self._link.run(call)
            self._settle(item, call)
            arrivals.done(item)
            return
        outstanding = _Outstanding()
        receiver: threading.Thread | None = None
        while item is not None:

            def settled(call: Call, item: Item = item) -> None:
                self._settle(item, call)
                arrivals.done(item)
                outstanding.less()

            outstanding.more()
            self._link.send(self._call(item, settled))
            if receiver is None:
                receiver = threading.Thread(
                    target=self._receive, args=(outstanding,), name="handlergen-answers", daemon=True
                )
                receiver.start()
            item = arrivals.next()
        outstanding.no_more()
        if receiver is not None:
            receiver.join()

    def close(self) -> None:
        self._link.close()

    def _receive(self, outstanding: _Outstanding) -> None:
        while outstanding.wait():
            self._link.receive()

    def _call(self, item: Item, on_done: Callable[[Call], None] | None) -> Call:
        request = item.request
        prepared = Prepared(
            item.stage,
            item.inputs,
            item.ready_ns,
            request.id,
            item.properties,
            request._metadata,
            *self._needs.brought(item),
            item.outlet is not None,
            item.entry.get(STREAM_WISH),
        )
        return call_for(item, self._kind, tuple(prepared), ready_ns=item.ready_ns, on_done=on_done)

    def _settle(self, item: Item, call: Call) -> None:
        answer = settle(item, call, Predicted, self._fail)
        if answer is not None:
            item.outputs = answer.outputs
            if answer.metadata is not None:
                item.request._metadata = answer.metadata
            if answer.state is not None:
                http_request(item).state = answer.state


class _Outstanding:
    """How many answers of a batch are still to come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._last = False

    def more(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify()

    def less(self) -> None:
        with self._changed:
            self._count -= 1

    def no_more(self) -> None:
        with self._changed:
            self._last = True
            self._changed.notify()

    def wait(self) -> bool:
        """Wait until an answer is to come; False when none will."""
        with self._changed:
            self._changed.wait_for(lambda: self._count or self._last)
            return self._count > 0
