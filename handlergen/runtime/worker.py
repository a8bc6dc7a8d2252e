"""One TorchServe worker: what the generated handler delegates to."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .context import Context
from .contract import CONTRACT_FILE, Bundle
from .describe import Counts, description
from .device import Device, share_the_cores
from .device_lock import DeviceLock, NoLock, lock_directory
from .dispatch import Dispatch
from .explain import Explainer
from .failures import user_traceback
from .health import Health
from .hooks import BoundHook, Item, Stage
from .kserve import refuse_envelope
from .pipeline import Pipeline, open_items
from .predictor import HOOK_ERRORS, WorkerPredictor
from .spans import spans_from_environment
from .streaming import Streaming, outlet_of, raise_to_torchserve
from .torchserve_log import leave_out_batch_lines
from .typed_hooks import TypedHooks
from .user_module import UserModule, open_user_module
from .wire import NO_HEADERS, STREAM_WISH, reason_phrase


class Worker:
    """A model that is loaded in this process and answers batches of requests.

    `Worker.start` is what TorchServe's `initialize` calls.

    Args:
        gpu_id: A logical index, or None for the CPU.
        batch_size: The most requests that come at once.
        metrics: TorchServe's `context.metrics`, if there is a TorchServe.
    """

    def __init__(
        self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, batch_size: int, metrics: Any = None
    ) -> None:
        self.bundle = bundle
        settings = bundle.settings
        self.device = Device(gpu_id)
        self._model_dir = model_dir
        context = Context.open(settings, device=self.device.torch, model_dir=model_dir)
        self._logger = context.logger
        streaming = Streaming(
            nan=settings.nan, limit=settings.max_response_bytes, limit_s=settings.predict_timeout_s
        )
        spans = self._spans = spans_from_environment(settings.name, self.device.key)

        def pipeline() -> Pipeline:
            return Pipeline(
                bundle.contract,
                settings,
                user_root=str(model_dir),
                streaming=streaming,
                spans=spans,
                batch_size=batch_size,
                logger=context.logger,
            )

        self._pipeline = pipeline()
        lock = _lock(settings.lock, settings.name, self.device.key)
        self._module: UserModule = open_user_module(bundle.contract, settings, context)
        self._module.setup()
        self._predictor = WorkerPredictor(
            self._module,
            self.device,
            lock,
            batch=settings.batch,
            lock_timeout_s=settings.lock_timeout_s,
            fail=self._pipeline.fail,
            streaming=streaming,
            spans=spans,
        )
        self._predictor.load()
        hooks = self._predictor.hooks
        self._types = TypedHooks(bundle.contract.form, hooks, settings.batch, context.logger)
        convert = self._types.converter()
        self._pipeline.start(hooks, self._predictor, convert)
        self._explanations: Pipeline | None = None
        if hooks[0].explain is not None:
            self._explanations = pipeline()
            explainer = Explainer(
                hooks[0].explain,
                self.device,
                lock,
                lock_timeout_s=settings.lock_timeout_s,
                fail=self._pipeline.fail,
            )
            self._explanations.start((Stage(hooks[0].preprocess, hooks[0].explain),), explainer, convert)
        self._counts = Counts()
        is_healthy = self._module.optional("is_healthy")
        self._health: Health | None = None
        if is_healthy is not None:
            self._health = Health(
                is_healthy,
                metrics=metrics,
                model=getattr(metrics, "model_name", None) or settings.name,
                version=settings.version,
                logger=context.logger,
                user_root=str(model_dir),
            )
        self._dispatch = Dispatch(bundle, self._pipeline, self._explanations, self.describe, batch_size)
        self._asked_before = False

    @property
    def pipeline(self) -> Pipeline:
        """The stages one by one, for whoever places them himself (`handlergen map`)."""
        return self._pipeline

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """Call something in place of each hook of the stages, which calls the hook and sees what comes and goes.

        Args:
            observed: Gets the stage's number, `preprocess`, `predict` or `postprocess`, and the hook.
        """

        def optional(number: int, role: str, hook: BoundHook | None) -> BoundHook | None:
            return observed(number, role, hook) if hook is not None else None

        hooks = tuple(
            replace(
                stage,
                preprocess=optional(number, "preprocess", stage.preprocess),
                predict=observed(number, "predict", stage.predict),
                postprocess=optional(number, "postprocess", stage.postprocess),
            )
            for number, stage in enumerate(self._predictor.hooks)
        )
        self._predictor.use(hooks)
        self._pipeline.use(hooks)

    def wait_for_ever(self) -> None:
        """Let no request fail because the device is not free in time."""
        self._predictor.wait_for_ever()

    @classmethod
    def start(cls, context: Any) -> Worker:
        """Load the model that TorchServe unpacked.

        Args:
            context: TorchServe's context: `system_properties` has `model_dir`, `gpu_id` and `batch_size`
                (ts/context.py:35-42).

        Raises:
            RuntimeError: Loading failed. TorchServe answers the frontend only for this type and MemoryError; any
                other would end the worker with the cause lost (ts/model_service_worker.py:141-163). The log has
                the user's own traceback before it is raised.
        """
        properties = context.system_properties
        model_dir = Path(properties["model_dir"]).resolve()
        logging.getLogger("ts.service").addFilter(_not_told_yet)
        leave_out_batch_lines()
        # Bodies arrive as they were sent, and `decode` reads them: TorchServe's own reading logs a traceback for
        # every broken JSON text and loses its bytes (ts/protocol/otf_message_handler.py, _retrieve_input_data).
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        share_the_cores()
        try:
            bundle = Bundle.from_json((model_dir / CONTRACT_FILE).read_text(encoding="utf-8"))
            return cls(
                bundle,
                model_dir,
                gpu_id=properties.get("gpu_id"),
                batch_size=int(properties.get("batch_size") or 1),
                metrics=getattr(context, "metrics", None),
            )
        except MemoryError:
            raise
        except HOOK_ERRORS as error:
            traceback = user_traceback(error, user_root=str(model_dir))
            logging.getLogger("handlergen").error(
                "handlergen: model %s could not be loaded\n%s", context.model_name, traceback
            )
            # Without the cause: TorchServe would print the whole chain once more, handlergen's frames included.
            raise RuntimeError(f"the module could not be loaded: {type(error).__name__}: {error}") from None

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; the three stages of its requests overlap.

        Args:
            data: TorchServe's batch, a mapping a request.
            context: TorchServe's context; gets each request's status, content type and headers.

        Returns:
            One body a request, in the order of `data`; empty for one whose chunks have been sent. Nothing is
            raised, but for a failed single gRPC request, whose status TorchServe takes from an exception only,
            and for a single stream that failed midway.
        """
        if not self._asked_before:
            refuse_envelope(sys._getframe(1))
            self._asked_before = True
        items = self._receive(data, context)
        outlet = outlet_of(context)
        for item in items:
            item.outlet = outlet
        try:
            self._counts.requests += self._dispatch.run(items)
        except HOOK_ERRORS as error:
            for item in items:
                if item.reply is None and item.failure is None:
                    self._pipeline.fail(item, error, "handle")
        self._flush()
        return self._answer(items, context)

    def preprocess(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Item]:
        """The first stage alone, for subclasses of the generated handler: decode and preprocess."""
        items = self._receive(data, context)
        self._pipeline.preprocess(items)
        self._flush()
        return items

    def predict(self, items: list[Item]) -> list[Item]:
        """The second stage alone: under the device lock."""
        self._pipeline.predict(items)
        self._flush()
        return items

    def postprocess(self, items: list[Item], context: Any) -> list[bytes]:
        """The third stage alone: postprocess and encode."""
        self._pipeline.postprocess(items)
        self._flush()
        return self._answer(items, context)

    def describe(self) -> dict[str, Any]:
        """What `GET /models/NAME?customized=true` answers: contract, settings, device, counts. No secrets."""
        return description(
            self.bundle,
            predictor=self._predictor.describe(),
            counts=self._counts,
            types=self._types.describe(),
            health=self._health.check() if self._health is not None else None,
        )

    def close(self) -> None:
        """Let go of threads and of the model."""
        if self._health is not None:
            self._health.close()
        if self._explanations is not None:
            self._explanations.close()
        self._pipeline.close()
        self._predictor.close()

    def _flush(self) -> None:
        if self._spans is not None:
            self._spans.flush()

    def _receive(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Item]:
        ids = context.request_ids
        return open_items(
            data,
            [processor.get_request_properties() for processor in context.request_processor],
            [ids[index] for index in range(len(data))],
        )

    def _answer(self, items: Sequence[Item], context: Any) -> list[bytes]:
        bodies = []
        for index, item in enumerate(items):
            failure = item.failure
            if item.request.is_grpc:
                # StreamPredictions ends only with this; without it the frontend throws and ends the worker.
                context.set_response_header(index, STREAM_WISH, "false")
            if failure is None:
                reply = item.reply
                context.set_response_content_type(index, reply.content_type)
                if reply.status != 200:
                    if reply.status >= 400:
                        self._counts.failures[reply.status] += 1
                    context.set_response_status(reply.status, reason_phrase(reply.status), index)
                headers = reply.headers
                bodies.append(reply.body)
            elif item.sent:
                self._counts.failures[failure.status] += 1
                if len(items) == 1:
                    item.outlet.break_off(failure)
                headers = NO_HEADERS  # of a batch no single response can be broken off: the stream just ends
                bodies.append(b"")
            else:
                self._counts.failures[failure.status] += 1
                if len(items) == 1 and item.request.is_grpc:
                    raise_to_torchserve(failure)
                context.set_response_content_type(index, "application/json")
                context.set_response_status(failure.status, failure.phrase, index)
                headers = failure.headers
                bodies.append(failure.body(item.request.id))
            for name, value in headers.items():
                context.set_response_header(index, name, value)
        return bodies


def _not_told_yet(record: logging.LogRecord) -> bool:
    """TorchServe logs a traceback of its own for what `raise_to_torchserve` raises; the user's stands there already."""
    return not (record.exc_info and getattr(record.exc_info[1], "told_by_handlergen", False))


def _lock(kind: str, model: str, device_key: str) -> DeviceLock | NoLock:
    if kind == "none":
        return NoLock()
    key = device_key if kind == "device" else f"model-{model}-{device_key}"
    return DeviceLock(key, lock_directory())
