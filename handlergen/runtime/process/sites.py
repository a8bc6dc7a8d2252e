"""What a worker holds when a predictor process has the model.

`Prepared`: preprocess and postprocess run in the worker. `Relayed`: the predictor process runs them too, in threads.
`Checked`: the former, until a predictor process says that it must be the latter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..context import Context
from ..contract import Bundle
from ..dispatch import is_describe
from ..encode import encode
from ..failing import Failing
from ..hooks import Hooks, Item
from ..metrics import Metrics
from ..model import streaming_of
from ..needs import Needs
from ..pipeline import Pipeline
from ..predictor import Predictor
from ..recording import Recording
from ..site import OwnStages, Site
from ..user_module import open_user_module
from .calls import Call, call_for, settle
from .protocol import EXPLAIN, PREDICT, REQUEST, Answered, Raw
from .remote import RemotePredictor
from .shared import Shared


class Prepared(OwnStages):
    """Preprocess and postprocess here, predict in the predictor process. See `Site` for the methods.

    Args:
        shared: The connection, if there is one already.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
        shared: Shared | None = None,
    ) -> None:
        self._shared = shared or _shared(bundle, model_dir, gpu_id, batch_size)
        model = _Prepared(bundle, model_dir, gpu_id=gpu_id, shared=self._shared)
        self.recording = model.recording
        super().__init__(bundle, model, batch_size=batch_size, describe=describe)

    def describe(self) -> dict[str, Any]:
        return {"types": self._answering.types(), "predictor": self._shared.describe()["predictor"]}


class _Prepared:
    """The model as a worker has it: the module without what `load` makes, and a connection. See `Model`."""

    def __init__(self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, shared: Shared) -> None:
        contract, settings = bundle.contract, bundle.settings
        device = torch.device("cpu") if gpu_id is None else torch.device("cuda", gpu_id)
        self.context = Context.open(settings, device=device, model_dir=model_dir)
        self.failing = Failing(contract.form, user_root=str(model_dir), logger=self.context.logger)
        self.streaming = streaming_of(bundle)
        module = open_user_module(contract, settings, self.context)
        module.setup()
        module.stand_in()
        shared.open()
        self.recording = Recording(settings, shared.device_key, metrics=True)
        self.failing.count_lock_timeouts(self.recording.metrics)
        self.recording.start()
        self.hooks: Hooks = module.hooks()
        self.failing.name_stages(self.hooks)
        needs = Needs.of(contract, ("predict", "explain"))

        def remote(kind: int) -> RemotePredictor:
            return RemotePredictor(
                shared.link,
                kind,
                needs,
                fail=self.failing.fail,
                describe=lambda: dict(shared.describe()["predictor"]),
            )

        self.predictor = remote(PREDICT)
        self.explainer: Predictor | None = remote(EXPLAIN) if self.hooks[0].explain is not None else None
        self.is_healthy: Callable[[Mapping[str, Any]], Any] | None = (
            shared.is_healthy if "is_healthy" in contract.hooks else None
        )
        self._shared = shared

    def close(self) -> None:
        self._shared.close()
        self.recording.close()


class Relayed:
    """All of it in the predictor process; the worker passes requests and answers on. See `Site` for the methods.

    Args:
        shared: The connection, if there is one already.
        recording: What the worker's answers are counted in, likewise.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
        shared: Shared | None = None,
        recording: Recording | None = None,
    ) -> None:
        settings = self._settings = bundle.settings
        logger = logging.getLogger(f"handlergen.{settings.name}")
        self._describe = describe
        self._failing = Failing(bundle.contract.form, user_root=str(model_dir), logger=logger)
        self._shared = shared or _shared(bundle, model_dir, gpu_id, batch_size)
        self._shared.open()
        self._recording = recording or Recording(settings, self._shared.device_key, metrics=True)
        self._failing.count_lock_timeouts(self._recording.metrics)
        if recording is None:
            self._recording.start()
        self.is_healthy: Callable[[Mapping[str, Any]], Any] | None = (
            self._shared.is_healthy if "is_healthy" in bundle.contract.hooks else None
        )

    @property
    def metrics(self) -> Metrics | None:
        return self._recording.metrics

    @property
    def pipeline(self) -> Pipeline:
        raise RuntimeError(
            "the stages of this model run in its predictor process (stages: predictor); a handler that calls them "
            "one by one needs predictor: worker"
        )

    def answer(self, items: Sequence[Item]) -> int:
        link, described = self._shared.link, 0
        calls: list[tuple[Item, Call]] = []
        for item in items:
            if is_describe(item):
                described += 1
                self._answer_describe(item)
                continue
            call = self._call(item)
            calls.append((item, call))
            link.send(call)
        for item, call in calls:
            while not call.done:
                link.receive()
            self._settle(item, call)
        return len(items) - described

    def describe(self) -> dict[str, Any]:
        return {"types": {}, **self._shared.describe()}

    def flush(self) -> None:
        """Nothing: the predictor process records all."""

    def close(self) -> None:
        self._shared.close()
        self._recording.close()

    def _call(self, item: Item) -> Call:
        raw = Raw(item.entry, item.properties, item.request.id, item.outlet is not None)
        return call_for(item, REQUEST, tuple(raw), ready_ns=time.monotonic_ns())

    def _settle(self, item: Item, call: Call) -> None:
        answer = settle(item, call, Answered, self._failing.fail)
        if answer is not None:
            item.reply = answer.reply

    def _answer_describe(self, item: Item) -> None:
        try:
            item.reply = encode(self._describe())
        except BaseException as error:
            self._failing.fail(item, error, "describe")


class Checked:
    """`stages: auto`, where the source says that preprocess and postprocess can run here.

    A predictor process that has seen `load` change what they read says otherwise (`load_watch`), the first one or one
    that follows it: then whole requests go there, from now on. See `Site` for the methods.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
    ) -> None:
        shared = self._shared = _shared(bundle, model_dir, gpu_id, batch_size)
        shared.open()
        arguments: dict[str, Any] = {
            "gpu_id": gpu_id,
            "batch_size": batch_size,
            "describe": describe,
            "shared": shared,
        }
        self._relayed = partial(Relayed, bundle, model_dir, **arguments)
        self._prepared = None if shared.relay() else Prepared(bundle, model_dir, **arguments)
        self._site: Site = self._prepared or self._relayed()
        self.is_healthy = self._site.is_healthy

    @property
    def metrics(self) -> Metrics | None:
        return self._site.metrics

    @property
    def pipeline(self) -> Pipeline:
        return self._site.pipeline

    def answer(self, items: Sequence[Item]) -> int:
        if self._prepared is None:
            return self._site.answer(items)
        if self._shared.relay():
            self._relay(self._prepared)
            return self._site.answer(items)
        count = self._prepared.answer(items)
        if self._shared.relay():
            # The process has died, and another one has taken over what was prepared here for the first.
            self._relay(self._prepared)
            again = [item for item in items if not item.sent]
            for item in again:
                item.reply = item.failure = None
            self._site.answer(again)
        return count

    def describe(self) -> dict[str, Any]:
        return self._site.describe()

    def flush(self) -> None:
        self._site.flush()

    def close(self) -> None:
        self._site.close()

    def _relay(self, prepared: Prepared) -> None:
        self._prepared = None
        self._site = self._relayed(recording=prepared.recording)


def _shared(bundle: Bundle, model_dir: Path, gpu_id: int | None, batch_size: int) -> Shared:
    logger = logging.getLogger(f"handlergen.{bundle.settings.name}")
    return Shared(bundle, model_dir, gpu_id=gpu_id, batch_size=batch_size, logger=logger)
