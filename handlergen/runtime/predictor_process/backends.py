"""What answers a worker's requests when a predictor process has the model.

`PreparedBackend`: preprocess and postprocess run in the worker. `RelayBackend`: the predictor process runs them too, in
threads. The former becomes the latter when a value cannot be sent between the two processes.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

import torch

from ..codec.content import STREAM_WISH
from ..codec.encode import encode
from ..codec.errors import Failure, in_the_log
from ..context import Context
from ..diagnostics import logger
from ..forms.loading import open_user_module
from ..pipeline.backend import BackendOptions, PipelineBackend, is_describe
from ..pipeline.batching import RequestSource
from ..pipeline.hooks import HookInputs, Hooks, Item, http_request
from ..pipeline.model import FailureHandler, streaming_of
from ..pipeline.pipeline import Pipeline
from ..pipeline.predictor import Predictor
from ..pipeline.request_context import CannotCross, RequestContexts
from ..telemetry.recording import Recording
from .client import Call, PredictorClient, UnsendableValue
from .launcher import Unavailable
from .transport import Kind, Predicted, Prepared, RawAnswer, RawRequest

_Answer = TypeVar("_Answer", Predicted, RawAnswer)
_UNSENDABLE = "UnsendableValue"


class PreparedBackend(PipelineBackend):
    """Preprocess and postprocess in the worker, predict in the predictor process. See `Backend` for the methods.

    The first value that cannot be sent to the predictor process, or from it, changes that: this worker sends whole
    requests from then on, that request included. So does an example that is answered wrongly for that reason alone.
    """

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._client = PredictorClient(options)
        super().__init__(options, _PreparedModel(options, self._client, unsendable=self._note))
        self._why = ""
        self._relay: RelayBackend | None = None

    def answer(self, items: Sequence[Item]) -> int:
        if self._relay is not None:
            return self._relay.answer(items)
        count = super().answer(items)
        if self._why:
            relay = self._relay = RelayBackend(self._options, self._client, self._model.recording)
            # Answered once more, by the process; but a client that has a part of its answer cannot get another one.
            failed = [item for item in items if item.failure is not None and item.failure.type == _UNSENDABLE]
            again = [item for item in failed if not item.sent]
            for item in again:
                item.reply = item.failure = None
            relay.answer(again)
        return count

    def relayed(self) -> tuple[RelayBackend, Callable[[str], None]] | None:
        if self._relay is not None:
            return None
        relay = RelayBackend(self._options, self._client, self._model.recording)

        def change(why: str) -> None:
            self._note(why)
            self._relay = relay

        return relay, change

    def _note(self, why: str) -> None:
        if not self._why:
            self._why = why
            self._client.note_unsendable(why)
            logger().warning(
                "handlergen: model %s: %s. From now on, this worker sends whole requests to the predictor process, "
                "which runs preprocess and postprocess too. Set `stages: predictor` in handlergen.yaml, or let "
                "the hooks pass values that pickle can copy, and share no other state.",
                self._options.bundle.settings.name,
                why,
            )


class _PreparedModel:
    """The model as a worker has it: the module without what `load` makes, and a connection. See `Model`."""

    def __init__(self, options: BackendOptions, client: PredictorClient, *, unsendable: Callable[[str], None]) -> None:
        contract, settings = options.bundle.contract, options.bundle.settings
        gpu_id, model_dir = options.gpu_id, options.model_dir
        device = torch.device("cpu") if gpu_id is None else torch.device("cuda", gpu_id)
        self.client = client
        self.unsendable = unsendable
        self.inputs = HookInputs.of(contract, ("predict", "explain"))
        self.context = Context.open(settings, device=device, model_dir=model_dir)
        self.failures = FailureHandler(contract.form, user_root=str(model_dir))
        self.streaming = streaming_of(options.bundle)
        module = open_user_module(contract, settings, self.context)
        module.setup()
        module.load_without_model()
        client.open()
        self.recording = Recording(settings, client.device_key, metrics=True)
        self.failures.metrics = self.recording.metrics
        self.recording.start()
        self.hooks: Hooks = module.hooks()
        self.contexts = RequestContexts(copy_context())
        self.loop = module.loop
        self.loop.enter_inference_mode()
        self.failures.hooks = self.hooks
        self.predictor = _RemotePredictor(self, Kind.PREDICT)
        self.explainer: Predictor | None = None
        if self.hooks[0].explain is not None:
            self.explainer = _RemotePredictor(self, Kind.EXPLAIN)
        self.is_healthy = client.is_healthy

    def close(self) -> None:
        self.loop.close()
        self.client.close()
        self.recording.close()


class _RemotePredictor:
    """A `Predictor` whose predictions are made by the predictor process.

    Args:
        model: Whose requests are sent.
        kind: `PREDICT` or `EXPLAIN`.
    """

    def __init__(self, model: _PreparedModel, kind: int) -> None:
        self._model = model
        self._kind = kind

    def predict(self, requests: RequestSource) -> None:
        """Send each request when it is ready; answers come in any order."""
        item = requests.next()
        if item is not None and not requests.more:
            answer: queue.SimpleQueue[Call] = queue.SimpleQueue()
            self._send(item, answer.put)
            self._settle(item, answer.get())
            requests.done(item)
            return
        finished = threading.Semaphore(0)
        count = 0
        while item is not None:

            def settled(call: Call, item: Item = item) -> None:
                self._settle(item, call)
                requests.done(item)
                finished.release()

            count += 1
            self._send(item, settled)
            item = requests.next()
        for _ in range(count):
            finished.acquire()

    def describe(self) -> dict[str, Any]:
        return dict(self._model.client.describe()["predictor"])

    def _send(self, item: Item, settled: Callable[[Call], None]) -> None:
        try:
            changes = self._model.contexts.changes(item.context)
        except CannotCross as error:
            call = _call_for(item, self._kind, None, ready_ns=item.ready_ns, settled=settled)
            call.fail(UnsendableValue(str(error)))
            return
        request = item.request
        prepared = Prepared(
            item.model_index,
            item.inputs,
            item.ready_ns,
            request.torchserve_id,
            item.properties,
            request._metadata,
            *self._model.inputs.of_item(item),
            item.outlet is not None,
            item.entry.get(STREAM_WISH),
            changes,
        )
        self._model.client.send(_call_for(item, self._kind, tuple(prepared), ready_ns=item.ready_ns, settled=settled))

    def _settle(self, item: Item, call: Call) -> None:
        error = call.error
        if isinstance(error, UnsendableValue) and not item.sent:
            self._model.unsendable(str(error))
            reason = "A value of this request cannot be sent between its worker and the predictor process"
            item.failure = Failure(500, _UNSENDABLE, reason + in_the_log(item.request.id))
            return
        answer = _settle(item, call, Predicted, self._model.failures.fail)
        if answer is not None:
            item.outputs = answer.outputs
            if answer.metadata is not None:
                item.request._metadata = answer.metadata
            if answer.state is not None:
                http_request(item).state = answer.state
            if answer.changes is not None:
                item.context = self._model.contexts.new(answer.changes)


class RelayBackend:
    """All stages in the predictor process; the worker passes requests and answers on. See `Backend` for the methods.

    Args:
        client: The connection, if there is one already.
        recording: What the worker's answers are counted in, likewise.
    """

    def __init__(
        self,
        options: BackendOptions,
        client: PredictorClient | None = None,
        recording: Recording | None = None,
    ) -> None:
        bundle = options.bundle
        self._describe = options.describe
        self._failures = FailureHandler(bundle.contract.form, user_root=str(options.model_dir))
        if client is None:
            client = PredictorClient(options)
            client.open()
        if recording is None:
            recording = Recording(bundle.settings, client.device_key, metrics=True)
            recording.start()
        self._client, self._recording = client, recording
        self.metrics = self._failures.metrics = recording.metrics
        self.is_healthy = client.is_healthy

    @property
    def pipeline(self) -> Pipeline:
        raise RuntimeError(
            "the stages of this model run in its predictor process (stages: predictor); a handler that calls them "
            "one by one needs predictor: worker"
        )

    def answer(self, items: Sequence[Item]) -> int:
        described = 0
        answers: queue.SimpleQueue[tuple[Item, Call]] = queue.SimpleQueue()
        for item in items:
            if is_describe(item):
                described += 1
                try:
                    item.reply = encode(self._describe())
                except BaseException as error:
                    self._failures.fail(item, error, "describe")
                continue
            raw = RawRequest(item.entry, item.properties, item.request.torchserve_id, item.outlet is not None)

            def settled(call: Call, item: Item = item) -> None:
                answers.put((item, call))

            self._client.send(_call_for(item, Kind.REQUEST, tuple(raw), ready_ns=time.monotonic_ns(), settled=settled))
        for _ in range(len(items) - described):
            item, call = answers.get()
            answer = _settle(item, call, RawAnswer, self._failures.fail)
            if answer is not None:
                item.reply = answer.reply
        return len(items) - described

    def describe(self) -> dict[str, Any]:
        return {"types": {}, **self._client.describe()}

    def relayed(self) -> None:
        return None

    def flush(self) -> None:
        """Do nothing: the predictor process records all."""

    def close(self) -> None:
        self._client.close()
        self._recording.close()


def _call_for(item: Item, kind: int, value: Any, *, ready_ns: int, settled: Callable[[Call], None]) -> Call:
    """Return the call of a client's request: chunks of its answer go out at once."""

    def chunk(value: tuple[Any, ...]) -> None:
        item.outlet.send(item, *value)
        item.sent = True

    return Call(kind, value, settled=settled, on_chunk=chunk, ready_ns=ready_ns)


def _settle(
    item: Item, call: Call, kind: type[_Answer], fail: Callable[[Item, BaseException, str], None]
) -> _Answer | None:
    """Give a settled call's item its failure if there is one; return the answer, for what else is in it."""
    error = call.error
    if error is None:
        answer = kind(*call.result)
        item.failure = answer.failure
        item.sent = item.sent or answer.sent
        return answer
    if isinstance(error, Unavailable):
        retry_after_s = str(max(1, math.ceil(error.retry_after_s)))
        reason = f"The model is not available: {error}"
        item.failure = Failure(503, "ModelUnavailable", reason, {"Retry-After": retry_after_s})
    else:
        fail(item, error, "predict")
    return None
