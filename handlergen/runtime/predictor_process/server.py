"""The predictor process at work: it takes requests of all workers, and predicts one batch at a time."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..codec.content import STREAM_WISH
from ..codec.errors import Failure, is_out_of_memory
from ..contract import Bundle
from ..pipeline.backend import Dispatcher
from ..pipeline.batching import RequestSource
from ..pipeline.hooks import Item, ModelHooks
from ..pipeline.model import LoadedModel
from ..pipeline.pipeline import open_items
from ..pipeline.predictor import Lock, Predictor
from ..request import Request
from ..telemetry.recording import memory_of
from ..torchserve.streaming import ConsumerGone
from .batch_queue import Batch, BatchQueue, InUserCode, QueuedRequest
from .connections import Connections, WorkerConnection
from .serialization import pack
from .status import IDLE, PREDICTING, StatusFile
from .transport import (
    ANSWER,
    CHUNK,
    DESCRIBE,
    EXPLAIN,
    HEALTH,
    PREDICT,
    REQUEST,
    UNSENDABLE,
    Message,
    Predicted,
    Prepared,
    RawAnswer,
    RawRequest,
    Unreadable,
    describe_error,
)

_THREADS = 256
"""The most requests that are preprocessed and postprocessed at once, with `stages: predictor`."""
_logger = logging.getLogger("handlergen")


class _WorkerOutlet:
    """Sends chunks to the worker, which sends them to the client. Waits for neither."""

    def __init__(self, worker: WorkerConnection, number: int, status: StatusFile | None = None) -> None:
        self._worker = worker
        self._number = number
        self._status = status

    def send(self, _item: Item, body: bytes, content_type: str) -> None:
        if self._worker.gave_up(self._number):
            raise ConsumerGone
        self._worker.send(CHUNK, self._number, (body, content_type))
        if self._status is not None:
            self._status.enter(PREDICTING)  # the limit is from one chunk to the next

    def break_off(self, failure: Failure) -> None:
        """Do nothing: the worker breaks the answer off."""


class _QueuedModel:
    """The model for the pipelines of this process: predictions pass through the batch queue. See `Model`."""

    def __init__(self, model: LoadedModel, batch_queue: BatchQueue, current: threading.local) -> None:
        self.context, self.failures = model.context, model.failures
        self.streaming, self.recording = model.streaming, model.recording
        self.hooks = model.hooks
        self.is_healthy = model.is_healthy
        queued = partial(_QueuedPredictor, batch_queue, current, model.own_outputs)
        self.predictor = queued(explains=False)
        self.explainer: Predictor | None = queued(explains=True) if model.explainer is not None else None

    def close(self) -> None:
        """Do nothing: the model belongs to the process."""


class _QueuedPredictor:
    """A `Predictor` that puts requests into the batch queue and waits.

    Args:
        batch_queue: The queue.
        current: `current.in_user_code` is of the request that this thread works on.
        own_outputs: Gives a request's outputs memory of their own.
        explains: The requests want explanations.
    """

    def __init__(
        self,
        batch_queue: BatchQueue,
        current: threading.local,
        own_outputs: Callable[[Item], None],
        *,
        explains: bool,
    ) -> None:
        self._queue = batch_queue
        self._current = current
        self._own_outputs = own_outputs
        self._explains = explains

    def predict(self, requests: RequestSource) -> None:
        in_user_code: InUserCode = self._current.in_user_code
        finished = threading.Semaphore(0)
        count = 0
        item = requests.next()
        while item is not None:

            def answer(item: Item = item) -> None:
                self._own_outputs(item)
                requests.done(item)
                finished.release()

            count += 1
            if count == 1 and not requests.more:
                in_user_code.leave()  # it waits for the device
            self._queue.put(QueuedRequest(item, in_user_code, answer, explains=self._explains))
            item = requests.next()
        for _ in range(count):
            finished.acquire()
        in_user_code.enter()

    def describe(self) -> dict[str, Any]:
        return {}


class StatusLock:
    """The device lock of the predictor process: the status file says when it is held, and for which requests.

    Args:
        lock: The lock itself.
        status: This process's.

    Attributes:
        requests: For which it is acquired next.
        loaded: The model is; the lock is held while the model is being loaded too, which is no prediction.
    """

    def __init__(self, lock: Lock, status: StatusFile) -> None:
        self._lock = lock
        self._status = status
        self.key = lock.key
        self.requests: Sequence[QueuedRequest] = ()
        self.loaded = False

    def acquire(self, timeout_s: float) -> None:
        """As the lock's."""
        self._lock.acquire(timeout_s)
        for request in self.requests:
            if request.item.failure is None:  # else it could not wait any longer, and the others could
                request.in_user_code.enter()
        if self.loaded:
            self._status.enter(PREDICTING)

    def release(self) -> None:
        """As the lock's."""
        if self.loaded:
            self._status.enter(IDLE)
        self._lock.release()


class Server:
    """Answers workers.

    Args:
        bundle: Contract and settings.
        model: Loaded in this process.
        lock: That it was loaded with.
        status: This process's.
        connections: Of the workers.
        batch_size: The most requests that TorchServe hands a worker at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: LoadedModel,
        lock: StatusLock,
        *,
        status: StatusFile,
        connections: Connections,
        batch_size: int,
    ) -> None:
        settings = self._settings = bundle.settings
        self._model = model
        self._lock = lock
        lock.loaded = True
        self._status = status
        self._connections = connections
        together = settings.batch != "each"
        self.queue = BatchQueue(
            max_batch=settings.max_batch if together else 1,
            linger_s=settings.linger_ms / 1000 if together else 0.0,
        )
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="handlergen")
        self._answers: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._answering_thread = threading.Thread(target=self._send_answers, name="handlergen-answers", daemon=True)
        self._answering_thread.start()
        # Also with `stages: worker`: a worker sends whole requests once a value could not be sent.
        queued = _QueuedModel(model, self.queue, connections.current)
        self._dispatcher = Dispatcher(bundle, queued, batch_size=max(8, batch_size), describe=dict)
        model.predictor.hooks = tuple(self._with_status(hooks) for hooks in model.hooks)

    def take(self, worker: WorkerConnection, message: Message) -> None:
        """Take what a worker sends; never wait."""
        kind, number, value = message
        if isinstance(value, Unreadable):
            reason = "what preprocess returned cannot be read in the predictor process"
            worker.send(UNSENDABLE, number, f"{reason} ({describe_error(value.error)})")
        elif kind in (PREDICT, EXPLAIN):
            self._queue_prepared(worker, number, Prepared(*value), explains=kind == EXPLAIN)
        elif kind == REQUEST:
            self._threads.submit(self._answer, worker, number, RawRequest(*value))
        elif kind == DESCRIBE:
            self._threads.submit(self._tell, worker, number, self._describe)
        elif kind == HEALTH:
            self._threads.submit(self._tell, worker, number, self._health)

    def predict_until_ended(self) -> bool:
        """Predict, on this thread, the one that loaded the model.

        Returns:
            Whether it was ended; False when the device is broken, so that only a new process can go on.
        """
        # Inference mode is entered once, not between two predictions, while the device has nothing to do.
        with torch.inference_mode():
            while requests := self.queue.take():
                self._lock.requests = requests
                self._connections.current.connection = requests[0].in_user_code.worker
                self._predict(requests)
                self._lock.requests = ()
                self._status.count(len(requests))
                for request in requests:
                    request.answer()
                if self._model.device.broken:
                    break
        self._answers.put(None)
        self._answering_thread.join()
        return not self._model.device.broken

    def _predict(self, requests: list[QueuedRequest]) -> None:
        explainer = self._model.explainer if requests[0].explains else None
        if explainer is None:
            self._model.predictor.predict(Batch(requests))
        else:
            with torch.inference_mode(mode=False):
                explainer.predict(Batch(requests))

    def _queue_prepared(self, worker: WorkerConnection, number: int, sent: Prepared, *, explains: bool) -> None:
        """Put a request that a worker has preprocessed into the batch queue."""
        entry = sent.entry or ({STREAM_WISH: sent.wish} if sent.wish is not None else {})
        item = Item(0, entry, sent.properties, Request(sent.properties, sent.request_id))
        item.model_index, item.inputs, item.ready_ns = sent.model_index, sent.inputs, sent.ready_ns
        item.request._metadata = sent.metadata
        item.data, item.files, item.http = sent.data, sent.files, sent.http
        if sent.outlet:
            item.outlet = _WorkerOutlet(worker, number, self._status)
        answer = partial(self._answer_prepared, worker, number, item)
        self.queue.put(QueuedRequest(item, InUserCode(self._status, worker, number), answer, explains=explains))

    def _answer_prepared(self, worker: WorkerConnection, number: int, item: Item) -> None:
        """Send an answer beside the next predict; if the device has nothing to do, on this thread, which is faster."""
        if len(self.queue):
            self._model.own_outputs(item)
            self._answers.put(partial(self._send_prepared, worker, number, item))
        else:
            self._send_prepared(worker, number, item)

    def _send_answers(self) -> None:
        with torch.inference_mode():  # as on the predict thread, which made the outputs
            for send in iter(self._answers.get, None):
                try:
                    send()
                except BaseException as error:  # the answers behind it are sent all the same
                    _logger.exception("an answer could not be sent", exc_info=error)

    def _send_prepared(self, worker: WorkerConnection, number: int, item: Item) -> None:
        state = item.http.state if item.http is not None else None
        answer = Predicted(item.outputs, item.failure, item.request._metadata, item.sent, state)
        try:
            worker.send(ANSWER, number, tuple(answer))
        except Exception as error:
            if is_out_of_memory(error) or item.sent:
                self._model.failures.fail(item, error, "predict")
                worker.send(ANSWER, number, tuple(Predicted(None, item.failure, None, item.sent, None)))
            else:
                reason = f"what predict returned cannot be sent to the worker ({type(error).__name__}: {error})"
                worker.send(UNSENDABLE, number, reason)

    def flush(self) -> None:
        """Write recorded spans."""
        self._model.recording.flush()

    def _describe(self) -> dict[str, Any]:
        """Return what the workers pass on as theirs."""
        seen = self._status.look()
        about = {
            **self._model.predictor.describe(),
            "placement": "process",
            "stages": self._settings.stages,
            "pid": seen.pid,
            "state": seen.state,
            "workers": len(self._connections.workers()),
            "waiting": len(self.queue),
            "predictions": seen.predictions,
            "mean_batch": seen.mean_batch,
            "largest_batch": seen.largest_batch,
            "memory_bytes": memory_of(self._model.device),
        }
        return {"predictor": about, "types": self._dispatcher.types()}

    def _health(self) -> Any:
        ask = self._model.is_healthy
        answer = ask({}) if ask is not None else None
        try:
            pack(answer)
        except Exception:  # no JSON either: only whether such an answer is true is sent
            return bool(answer)
        return answer

    def _tell(self, worker: WorkerConnection, number: int, ask: Callable[[], Any]) -> None:
        try:
            worker.send(ANSWER, number, ask())
        except BaseException as error:  # whatever it is: somebody waits for the answer
            _logger.exception("a question of worker %d has no answer", worker.pid, exc_info=error)
            worker.send(ANSWER, number, {})

    def _answer(self, worker: WorkerConnection, number: int, raw: RawRequest) -> None:
        """Run all stages of one request, on a thread of its own."""
        (item,) = open_items([raw.entry], [raw.properties], [raw.request_id])
        if raw.outlet:
            item.outlet = _WorkerOutlet(worker, number)
        current = self._connections.current
        current.connection = worker
        in_user_code = current.in_user_code = InUserCode(self._status, worker, number)
        in_user_code.enter()
        try:
            self._dispatcher.answer([item])
            worker.send(ANSWER, number, tuple(RawAnswer(item.reply, item.failure, item.sent)))
        except BaseException as error:  # whatever it is: somebody waits for the answer
            self._model.failures.fail(item, error, "handle")
            worker.send(ANSWER, number, tuple(RawAnswer(None, item.failure, item.sent)))
        finally:
            in_user_code.leave()

    def _with_status(self, hooks: ModelHooks) -> ModelHooks:
        """Return hooks whose predict notes when it begins: a limit on its time counts from there."""
        status, call = self._status, hooks.predict.call

        def predict(item: Item) -> Any:
            status.enter(PREDICTING)
            return call(item)

        # Which requests come together is chance: those that do not fit into one batch are predicted alone.
        return replace(hooks, predict=replace(hooks.predict, call=predict), one_by_one=True)
