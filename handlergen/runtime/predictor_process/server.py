"""The predictor process at work: it takes requests of all workers, and predicts one batch at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..codec.content import STREAM_WISH
from ..codec.errors import Failure, is_out_of_memory
from ..contract import Bundle
from ..diagnostics import logger
from ..pipeline.backend import Dispatcher
from ..pipeline.batching import RequestSource
from ..pipeline.hooks import Item, ModelHooks
from ..pipeline.model import LoadedModel
from ..pipeline.pipeline import open_items
from ..pipeline.predictor import Lock, Predictor
from ..request import Request
from ..telemetry.recording import memory_of
from ..torchserve.streaming import ConsumerGone
from .connections import Connections, WorkerConnection, WorkerRequest
from .run_directory import IDLE, PREDICTING, StatusFile
from .transport import Kind, Message, Predicted, Prepared, RawAnswer, RawRequest, Unreadable, describe_error, pack

_THREADS = 256
"""The most requests that are preprocessed and postprocessed at once, with `stages: predictor`."""
_IN_VAIN = 8
"""After so many waits in a row during which no other request came, requests come one at a time: none is to wait."""
_TRY_EVERY = 128
"""One request in so many then waits all the same, in case others come by now."""
_ABANDONED = Failure(499, "ClientGone", "The worker that asked has gone")
_logger = logger()


class QueuedRequest(NamedTuple):
    """A request that waits for the device.

    Attributes:
        item: What is predicted.
        request: What is answered.
        answer: Hands the item's outputs on; called before the next prediction, and outside the device lock.
        explains: It wants an explanation, not a prediction.
    """

    item: Item
    request: WorkerRequest
    answer: Callable[[], None]
    explains: bool = False


class BatchQueue:
    """The queue between those who prepare requests and the one thread that predicts.

    Args:
        max_batch: How many requests one predict takes.
        linger_s: How long a request waits for others while the device is idle, in seconds; not while requests come
            one at a time.
    """

    def __init__(self, *, max_batch: int, linger_s: float) -> None:
        self._max_batch = max_batch
        self._linger_s = linger_s
        self._queue: queue.SimpleQueue[QueuedRequest | None] = queue.SimpleQueue()
        self._next: QueuedRequest | None = None
        self._ended = False
        self._in_vain = 0

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, request: QueuedRequest) -> None:
        """Add a request; from any thread."""
        self._queue.put(request)

    def end(self) -> None:
        """Let `take` return nothing from now on."""
        self._ended = True
        self._queue.put(None)

    def take(self) -> list[QueuedRequest]:
        """Wait for the first request, and return it with those behind it that fit into one predict, oldest first.

        Requests that nobody waits for any more are left out. An explanation comes alone. After `end`, nothing.
        """
        first, self._next = self._next, None
        while first is None and not self._ended:
            first = self._wanted(self._queue.get())
        if first is None or self._ended:
            return []
        batch = [first]
        if first.explains or self._max_batch == 1:
            return batch
        worth_a_wait = self._in_vain < _IN_VAIN or self._in_vain % _TRY_EVERY == 0
        until = time.monotonic() + self._linger_s if self._linger_s and worth_a_wait else 0.0
        while len(batch) < self._max_batch:
            left = until - time.monotonic() if until else 0.0
            try:
                request = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if request is None:  # the end
                break
            wanted = self._wanted(request)
            if wanted is not None and wanted.explains:
                self._next = wanted
                break
            if wanted is not None:
                batch.append(wanted)
        self._in_vain = 0 if len(batch) > 1 else self._in_vain + 1
        return batch

    @staticmethod
    def _wanted(request: QueuedRequest | None) -> QueuedRequest | None:
        if request is None or not request.request.abandoned():
            return request
        request.item.failure = _ABANDONED
        request.answer()
        return None


class Batch:
    """What `BatchQueue.take` returned, as a `RequestSource` for the predictor: complete, nothing follows."""

    def __init__(self, requests: Sequence[QueuedRequest]) -> None:
        self._requests = {queued.item: queued.request for queued in requests}
        self._left = deque(self._requests)

    @property
    def more(self) -> bool:
        return bool(self._left)

    def next(self) -> Item | None:
        return self._left.popleft() if self._left else None

    def next_ready(self) -> Item | None:
        """Return None: the device is released after each prediction, since others may wait for it."""
        return None

    def done(self, item: Item) -> None:
        """Note that a request was predicted, or failed in it; still under the device lock."""
        self._requests[item].leave()


class _WorkerOutlet:
    """Sends chunks to the worker, which sends them to the client. Waits for neither."""

    def __init__(self, request: WorkerRequest, status: StatusFile | None = None) -> None:
        self._request = request
        self._status = status

    def send(self, _item: Item, body: bytes, content_type: str, *head: Any) -> None:
        if self._request.abandoned():
            raise ConsumerGone
        self._request.send(Kind.CHUNK, (body, content_type, *head))
        if self._status is not None:
            self._status.enter(PREDICTING)  # the limit is from one chunk to the next

    def break_off(self, failure: Failure) -> None:
        """Do nothing: the worker breaks the answer off."""


class _QueuedModel:
    """The model for the pipelines of this process: predictions pass through the batch queue. See `Model`."""

    def __init__(self, model: LoadedModel, batch_queue: BatchQueue, current: threading.local) -> None:
        self.context, self.failures = model.context, model.failures
        self.streaming, self.recording = model.streaming, model.recording
        self.contexts, self.loop = model.contexts, model.loop
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
        current: `current.request` is the one that this thread works on.
        own_outputs: Gives a request's outputs memory of their own.
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
        request: WorkerRequest = self._current.request
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
                request.leave()  # it waits for the device
            self._queue.put(QueuedRequest(item, request, answer, self._explains))
            item = requests.next()
        for _ in range(count):
            finished.acquire()
        request.enter()

    def describe(self) -> dict[str, Any]:
        return {}


class _StatusLock:
    """The device lock of the predictor process: the status file says when it is held, and for which requests.

    Attributes:
        requests: For which it is acquired next.
        loaded: The model is; the lock is held while the model is being loaded too, which is no prediction.
    """

    def __init__(self, status: StatusFile) -> None:
        self._status = status
        self.requests: Sequence[QueuedRequest] = ()
        self.loaded = False

    def wrap(self, lock: Lock) -> _StatusLock:
        self._lock = lock
        self.key = lock.key
        return self

    def acquire(self, timeout_s: float) -> None:
        self._lock.acquire(timeout_s)
        for queued in self.requests:
            if queued.item.failure is None:  # else it could not wait any longer, and the others could
                queued.request.enter()
        if self.loaded:
            self._status.enter(PREDICTING)

    def release(self) -> None:
        if self.loaded:
            self._status.enter(IDLE)
        self._lock.release()


class Server:
    """Loads the model, and answers workers.

    Args:
        bundle: Contract and settings.
        arguments: What the worker that started this process has passed on (`PredictorClient`).
        server: TorchServe's process.

    Raises:
        Exception: What the user's module raises while it is imported, set up and loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        arguments: Mapping[str, Any],
        *,
        server: int,
        status: StatusFile,
        connections: Connections,
    ) -> None:
        settings = self._settings = bundle.settings
        self._status = status
        self._connections = connections
        self._lock = _StatusLock(status)
        model = self._model = LoadedModel(
            bundle,
            Path(arguments["model_dir"]),
            gpu_id=arguments["gpu_id"],
            server=server,
            guard=self._lock.wrap,
            write_metrics=connections.print_metrics,
        )
        self._lock.loaded = True
        self.device_key = model.device.key
        self.flush = model.recording.flush
        self.close = model.close
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
        batch_size = max(8, arguments["batch_size"])
        self._dispatcher = Dispatcher(bundle, queued, batch_size=batch_size, describe=dict)
        model.predictor.hooks = tuple(self._with_status(hooks) for hooks in model.hooks)

    def take(self, worker: WorkerConnection, message: Message) -> None:
        """Take what a worker sends; never wait."""
        kind, number, value = message
        request = WorkerRequest(self._status, worker, number)
        if isinstance(value, Unreadable):
            reason = "what preprocess returned cannot be read in the predictor process"
            request.send(Kind.UNSENDABLE, f"{reason} ({describe_error(value.error)})")
        elif kind in (Kind.PREDICT, Kind.EXPLAIN):
            self._queue_prepared(request, Prepared(*value), explains=kind == Kind.EXPLAIN)
        elif kind == Kind.REQUEST:
            self._threads.submit(self._answer, request, RawRequest(*value))
        elif kind == Kind.DESCRIBE:
            self._threads.submit(self._tell, request, self._describe)
        elif kind == Kind.HEALTH:
            self._threads.submit(self._tell, request, self._health)

    def predict_until_ended(self) -> bool:
        """Predict, on the thread that loaded the model; return False if the device broke: only a restart helps."""
        # Inference mode is entered once, not between two predictions, while the device has nothing to do.
        with torch.inference_mode():
            while requests := self.queue.take():
                self._lock.requests = requests
                self._connections.current.request = requests[0].request
                self._predict(requests)
                self._lock.requests = ()
                self._status.count(len(requests))
                for queued in requests:
                    queued.answer()
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

    def _queue_prepared(self, request: WorkerRequest, sent: Prepared, *, explains: bool) -> None:
        """Put a request that a worker has preprocessed into the batch queue."""
        entry = sent.entry or ({STREAM_WISH: sent.wish} if sent.wish is not None else {})
        item = Item(0, entry, sent.properties, Request(sent.properties, sent.torchserve_id))
        item.model_index, item.inputs, item.ready_ns = sent.model_index, sent.inputs, sent.ready_ns
        item.request._metadata = sent.metadata
        item.data, item.files, item.http = sent.data, sent.files, sent.http
        try:
            item.context = self._model.contexts.new(sent.changes)
        except Exception as error:
            reason = "a context variable that preprocess has set is not there in the predictor process"
            request.send(Kind.UNSENDABLE, f"{reason} ({describe_error(error)})")
            return
        if sent.outlet:
            item.outlet = _WorkerOutlet(request, self._status)
        self.queue.put(QueuedRequest(item, request, partial(self._answer_prepared, request, item), explains))

    def _answer_prepared(self, request: WorkerRequest, item: Item) -> None:
        """Send an answer beside the next predict; if the device has nothing to do, on this thread, which is faster."""
        if len(self.queue):
            self._model.own_outputs(item)
            self._answers.put(partial(self._send_prepared, request, item))
        else:
            self._send_prepared(request, item)

    def _send_answers(self) -> None:
        with torch.inference_mode():  # as on the predict thread, which made the outputs
            for send in iter(self._answers.get, None):
                try:
                    send()
                except BaseException as error:  # the answers behind it are sent all the same
                    _logger.exception("an answer could not be sent", exc_info=error)

    def _send_prepared(self, request: WorkerRequest, item: Item) -> None:
        state = item.http.state if item.http is not None else None
        try:
            changes = self._model.contexts.changes(item.context)
            answer = Predicted(item.outputs, item.failure, item.request._metadata, item.sent, state, changes)
            request.send(Kind.ANSWER, tuple(answer))
        except Exception as error:
            if is_out_of_memory(error) or item.sent:
                self._model.failures.fail(item, error, "predict")
                request.send(Kind.ANSWER, tuple(Predicted(None, item.failure, None, item.sent, None, None)))
            else:
                reason = f"what predict returned cannot be sent to the worker ({describe_error(error)})"
                request.send(Kind.UNSENDABLE, reason)

    def _describe(self) -> dict[str, Any]:
        """Return what the workers pass on as theirs."""
        seen = self._status.look()
        about = {
            **self._model.predictor.describe(),
            "placement": "process",
            "stages": self._settings.stages,
            "pid": seen.pid,
            "state": seen.state,
            "workers": self._connections.workers(),
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

    def _tell(self, request: WorkerRequest, ask: Callable[[], Any]) -> None:
        try:
            request.send(Kind.ANSWER, ask())
        except BaseException as error:  # whatever it is: somebody waits for the answer
            _logger.exception("a question of worker %d has no answer", request.worker.pid, exc_info=error)
            request.send(Kind.ANSWER, {})

    def _answer(self, request: WorkerRequest, raw: RawRequest) -> None:
        """Run all stages of one request, on a thread of its own."""
        (item,) = open_items([raw.entry], [raw.properties], [raw.torchserve_id])
        if raw.outlet:
            item.outlet = _WorkerOutlet(request)
        self._connections.current.request = request
        request.enter()
        try:
            self._dispatcher.answer([item])
            request.send(Kind.ANSWER, tuple(RawAnswer(item.reply, item.failure, item.sent)))
        except BaseException as error:  # whatever it is: somebody waits for the answer
            self._model.failures.fail(item, error, "handle")
            request.send(Kind.ANSWER, tuple(RawAnswer(None, item.failure, item.sent)))
        finally:
            request.leave()

    def _with_status(self, hooks: ModelHooks) -> ModelHooks:
        """Return hooks whose predict notes when it begins: a limit on its time counts from there."""
        status, call = self._status, hooks.predict.call

        def predict(item: Item) -> Any:
            status.enter(PREDICTING)
            return call(item)

        # Which requests come together is chance: those that do not fit into one batch are predicted alone.
        return replace(hooks, predict=replace(hooks.predict, call=predict), one_by_one=True)
