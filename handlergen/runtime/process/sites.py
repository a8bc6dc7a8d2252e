"""What a worker holds when a predictor process has the model.

`Prepared`: preprocess and postprocess run in the worker. `Relayed`: the predictor process runs them too, in threads.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..answering import Answering
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
from ..predictor import HOOK_ERRORS, Predictor
from ..recording import Recording
from ..server_process import server_of_this_process
from ..streaming import wants_chunks
from ..user_module import open_user_module
from .calls import Call, call_for, settle
from .home import Home, Identity
from .link import Link
from .output import Forwarder
from .protocol import DESCRIBE, EXPLAIN, HEALTH, PREDICT, REQUEST, Answered, Raw
from .remote import RemotePredictor
from .start import Starter, Unavailable

_FORWARD_EVERY_S = 0.1
_MEND_EVERY = 10
_TELL_EVERY = 100


class CannotLoad(Exception):
    """The predictor process could not load the model. Its own traceback is in the log already."""

    told_by_handlergen = True


class _Shared:
    """The connection to the predictor process, and the thread that looks after it.

    Args:
        bundle: Contract and settings.
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        logger: Goes to TorchServe's model log.
    """

    def __init__(
        self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, batch_size: int, logger: logging.Logger
    ) -> None:
        settings = bundle.settings
        server, started = server_of_this_process()
        identity = Identity(
            server,
            started,
            settings.name,
            settings.version,
            f"{model_dir}:{model_dir.stat().st_ino}",
            "cpu" if gpu_id is None else f"gpu {gpu_id}",
        )
        starter = Starter(
            Home(identity),
            model_dir=model_dir,
            arguments={"model_dir": str(model_dir), "gpu_id": gpu_id, "batch_size": batch_size},
            environ=dict(os.environ),
            logger=logger,
        )
        # From here on this process sees no GPU: it could only waste its memory with a context of its own.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        self._starter = starter
        self._settings = settings
        self._logger = logger
        self.link = self._link()
        self._side = self._link()
        self._asking = threading.Lock()
        self._forwarder = Forwarder(starter.home.output)
        self._ended = threading.Event()

    def open(self) -> None:
        """Connect, and look after the connection from then on.

        Raises:
            CannotLoad: The model cannot be loaded.
        """
        threading.Thread(target=self._look_after, name="handlergen-link", daemon=True).start()
        try:
            welcome = self.link.open()
        except Unavailable as error:
            self._forwarder.forward()
            raise CannotLoad(f"the module could not be loaded: {error}") from None
        self.device_key = welcome.device_key

    def ask(self, kind: int) -> Any:
        """Ask the predictor process something besides requests: beside them, over a connection of its own.

        Raises:
            Exception: It does not answer.
        """
        with self._asking:
            call = Call(kind)
            self._side.run(call)
        if call.error is not None:
            raise call.error
        return call.answer

    def describe(self) -> dict[str, Any]:
        """What the predictor process says of itself: `predictor`, and `types` if it has the stages."""
        try:
            answer: dict[str, Any] = self.ask(DESCRIBE)
        except Exception as error:
            return {
                "predictor": {
                    "placement": "process",
                    "stages": self._settings.stages,
                    "unavailable": str(error),
                }
            }
        answer["predictor"]["restarts"] = self._starter.home.starts().restarts
        return answer

    def is_healthy(self, _values: Mapping[str, Any]) -> Any:
        """What the module's `is_healthy` says, in the predictor process."""
        return self.ask(HEALTH)

    def close(self) -> None:
        """Let go of the process; it ends when nobody holds it any more."""
        self._ended.set()
        self.link.close()
        self._side.close()
        self._forwarder.close()

    def _link(self) -> Link:
        settings = self._settings
        return Link(
            self._starter,
            lock_timeout_s=settings.lock_timeout_s,
            predict_timeout_s=settings.predict_timeout_s,
            logger=self._logger,
        )

    def _look_after(self) -> None:
        turn = 0
        while not self._ended.wait(_FORWARD_EVERY_S):
            turn += 1
            try:
                self._forwarder.forward()
                if turn % _MEND_EVERY == 0 and self.link.opened:
                    self.link.mend()
            except Exception as error:  # a full disk, say: it may pass
                if turn % _TELL_EVERY == 0:
                    self._logger.warning("looking after the predictor process failed: %s", error)


class Prepared:
    """Preprocess and postprocess here, predict in the predictor process. See `Site` for the methods."""

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
    ) -> None:
        logger = logging.getLogger(f"handlergen.{bundle.settings.name}")
        self._shared = _Shared(bundle, model_dir, gpu_id=gpu_id, batch_size=batch_size, logger=logger)
        self._model = _Prepared(bundle, model_dir, gpu_id=gpu_id, shared=self._shared)
        self._answering = Answering(bundle, self._model, batch_size=batch_size, describe=describe)
        self.is_healthy = self._model.is_healthy

    @property
    def metrics(self) -> Metrics | None:
        return self._model.recording.metrics

    @property
    def pipeline(self) -> Pipeline:
        return self._answering.pipeline

    def answer(self, items: Sequence[Item]) -> int:
        return self._answering.answer(items)

    def describe(self) -> dict[str, Any]:
        return {"types": self._answering.types(), "predictor": self._shared.describe()["predictor"]}

    def flush(self) -> None:
        self._model.recording.flush()

    def close(self) -> None:
        self._answering.close()
        self._model.close()


class _Prepared:
    """The model as a worker has it: the module without what `load` makes, and a connection. See `Model`."""

    def __init__(self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, shared: _Shared) -> None:
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
    """All of it in the predictor process; the worker passes requests and answers on. See `Site` for the methods."""

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        describe: Callable[[], Any],
    ) -> None:
        settings = self._settings = bundle.settings
        logger = logging.getLogger(f"handlergen.{settings.name}")
        self._describe = describe
        self._failing = Failing(bundle.contract.form, user_root=str(model_dir), logger=logger)
        self._shared = _Shared(bundle, model_dir, gpu_id=gpu_id, batch_size=batch_size, logger=logger)
        self._shared.open()
        self._recording = Recording(settings, self._shared.device_key, metrics=True)
        self._failing.count_lock_timeouts(self._recording.metrics)
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
            if is_describe(item.properties):
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
        raw = Raw(item.entry, item.properties, item.request.id, wants_chunks(item))
        return call_for(item, REQUEST, raw, ready_ns=time.monotonic_ns())

    def _settle(self, item: Item, call: Call) -> None:
        answer: Answered | None = settle(item, call, self._failing.fail)
        if answer is not None:
            item.reply = answer.reply

    def _answer_describe(self, item: Item) -> None:
        try:
            item.reply = encode(self._describe())
        except HOOK_ERRORS as error:
            self._failing.fail(item, error, "describe")
