"""One TorchServe worker: what the generated handler delegates to."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .context import Context
from .contract import CONTRACT_FILE, Bundle
from .device import Device
from .device_lock import DeviceLock, NoLock, lock_directory
from .encode import encode
from .failures import Failure, user_traceback
from .hooks import Item
from .pipeline import Pipeline, open_items
from .predictor import HOOK_ERRORS, WorkerPredictor
from .spans import spans_from_environment
from .streaming import Outlet, Streaming, TorchServeOutlet, raise_to_torchserve
from .user_module import UserModule, open_user_module
from .wire import NO_HEADERS, STREAM_WISH, reason_phrase


class Worker:
    """A model that is loaded in this process and answers batches of requests.

    `Worker.start` is what TorchServe's `initialize` calls.
    """

    def __init__(self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, batch_size: int) -> None:
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
        self._pipeline = Pipeline(
            bundle.contract,
            settings,
            user_root=str(model_dir),
            streaming=streaming,
            spans=spans,
            batch_size=batch_size,
            logger=context.logger,
        )
        self._module: UserModule = open_user_module(bundle.contract, settings, context)
        self._module.setup()
        self._predictor = WorkerPredictor(
            self._module,
            self.device,
            _lock(settings.lock, settings.name, self.device.key),
            batch=settings.batch,
            lock_timeout_s=settings.lock_timeout_s,
            fail=self._pipeline.fail,
            streaming=streaming,
            spans=spans,
        )
        self._predictor.load()
        self._pipeline.start(self._predictor.hooks, self._predictor)

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
        # Bodies arrive as they were sent, and `decode` reads them: TorchServe's own reading logs a traceback for
        # every broken JSON text and loses its bytes (ts/protocol/otf_message_handler.py, _retrieve_input_data).
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        try:
            bundle = Bundle.from_json((model_dir / CONTRACT_FILE).read_text(encoding="utf-8"))
            return cls(
                bundle,
                model_dir,
                gpu_id=properties.get("gpu_id"),
                batch_size=int(properties.get("batch_size") or 1),
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
        items = self._receive(data, context)
        outlet: Outlet = getattr(context, "outlet", None) or TorchServeOutlet(context)
        for item in items:
            item.outlet = outlet
        special = self._special(items)
        try:
            self._pipeline.run(special if special is not None else items)
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
        contract, settings = self.bundle.contract, self.bundle.settings
        return {
            "handlergen": self.bundle.handlergen,
            "form": contract.form,
            "module": contract.module,
            "hooks": {
                role: {"line": hook.line, "kind": hook.kind, "parameters": [p.name for p in hook.parameters]}
                for role, hook in contract.hooks.items()
            },
            "settings": {
                "batch": settings.batch,
                "lock": settings.lock,
                "lock_timeout_s": settings.lock_timeout_s,
                "nan": settings.nan,
                "weights": settings.weights,
            },
            "predictor": self._predictor.describe(),
        }

    def close(self) -> None:
        """Let go of threads and of the model."""
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

    def _special(self, items: list[Item]) -> list[Item] | None:
        """Answer what is no prediction: TorchServe sends `describe` and `explain` as headers of a request."""
        ordinary = []
        for item in items:
            properties = item.properties
            if properties.get("describe") == "True":
                item.reply = encode(self.describe())
            elif properties.get("explain") == "True" and "explain" not in self.bundle.contract.hooks:
                item.failure = Failure(501, "NotSupported", "this model has no explain hook", {})
            else:
                ordinary.append(item)
        return None if len(ordinary) == len(items) else ordinary

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
                    context.set_response_status(reply.status, reason_phrase(reply.status), index)
                headers = reply.headers
                bodies.append(reply.body)
            elif item.sent:
                if len(items) == 1:
                    item.outlet.break_off(failure)
                headers = NO_HEADERS  # of a batch no single response can be broken off: the stream just ends
                bodies.append(b"")
            else:
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
