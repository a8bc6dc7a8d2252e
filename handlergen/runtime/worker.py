"""One TorchServe worker: what the generated handler delegates to."""

from __future__ import annotations

import faulthandler
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .codec.errors import pass_interrupt
from .codec.redaction import user_traceback, without_secrets
from .contract import CONTRACT_FILE, Bundle
from .device.device import keep_freed_memory
from .diagnostics import log_to_stdout, logger, reopen_streams, take_over_logging
from .environment import REPORT, Unsuitable, reason_of, require_gpu
from .examples import Example, from_files
from .pipeline.backend import Backend, BackendOptions, LocalBackend
from .pipeline.hooks import BoundHook, Item
from .pipeline.pipeline import Pipeline
from .telemetry.health import Health, description
from .telemetry.recording import EXAMPLES, Counts, is_declared, switched_on
from .torchserve.control import Commands
from .torchserve.duplicate_requests import DuplicateRequests
from .torchserve.frontend import (
    answered,
    bypass_envelope,
    keep_from_children,
    leave_out_batch_lines,
    outlet_of,
    received,
)
from .warm_up import ask_at_start


class Worker:
    """A model that answers batches of requests.

    `Worker.start` is what TorchServe's `initialize` calls. See `BackendOptions` for the other arguments.

    Args:
        metrics: TorchServe's `context.metrics`; None without a TorchServe.
        backend: Makes what answers requests; by default, in this process.
        duplicates: Detects requests that another worker has answered.
        commands: Those that the management API sends; none by default.
        enveloped: TorchServe has a service envelope: the body decides whether a request is KServe's.

    Raises:
        Exception: What the user's module raises while it is imported, set up and loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        model_dir: Path,
        *,
        gpu_id: int | None,
        batch_size: int,
        metrics: Any = None,
        backend: Callable[[BackendOptions], Backend] = LocalBackend,
        duplicates: DuplicateRequests | None = None,
        commands: Commands | None = None,
        enveloped: bool = False,
    ) -> None:
        self.bundle = bundle
        self._duplicates = duplicates or DuplicateRequests()
        self._commands = commands or Commands()
        self._enveloped = enveloped
        self._batch_size = batch_size
        self._backend = backend(BackendOptions(bundle, model_dir, gpu_id, batch_size, self.describe))
        self._counts = Counts(metrics=self._backend.metrics)
        self._examples: dict[str, Any] | None = None
        self._health: Health | None = None
        if self._backend.is_healthy is not None:
            self._health = Health(self._backend.is_healthy, bundle.settings, metrics=metrics, user_root=str(model_dir))

    @property
    def local(self) -> LocalBackend:
        """The pipeline and the model in this process.

        Raises:
            RuntimeError: The model is in its predictor process.
        """
        if not isinstance(self._backend, LocalBackend):
            raise RuntimeError("the model is in its predictor process")
        return self._backend

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, for callers that run its steps one by one (`handlergen map`)."""
        return self._backend.pipeline

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """Replace each hook by what `observed` returns for the model's index in the flow, the role and the hook."""
        self.local.observe(observed)

    def disable_lock_timeout(self) -> None:
        """Let no request fail because the device is not free in time."""
        self.local.model.predictor.disable_lock_timeout()

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
        logging.getLogger("ts.service").addFilter(_is_not_logged_yet)
        log_to_stdout()
        if not faulthandler.is_enabled():
            # The stack of a worker that a signal ends goes to the model log; `server/readiness.py` reads it.
            faulthandler.enable(file=2, all_threads=False)
        keep_freed_memory()
        metrics = getattr(context, "metrics", None)
        leave_out_batch_lines(metrics)
        closed = keep_from_children()
        switched_on(metrics)
        enveloped = bypass_envelope()
        # Bodies arrive as they were sent, and `decode` reads them: TorchServe's own reading logs a traceback for
        # every broken JSON text and loses its bytes (ts/protocol/otf_message_handler.py, _retrieve_input_data).
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        try:
            require_gpu(properties.get("gpu_id"), getattr(context, "model_yaml_config", None))
            try:
                bundle = Bundle.from_json((model_dir / CONTRACT_FILE).read_text(encoding="utf-8"))
            except ValueError as error:
                raise Unsuitable(
                    f"{CONTRACT_FILE} and the runtime of the archive are of two versions: {error}"
                ) from None
            # Clients, metrics and logs know the name that the model was registered under, not the archive's.
            bundle = replace(bundle, settings=replace(bundle.settings, name=context.model_name))
            worker = cls(
                bundle,
                model_dir,
                gpu_id=properties.get("gpu_id"),
                batch_size=int(properties.get("batch_size") or 1),
                metrics=metrics,
                backend=backend_of(bundle),
                duplicates=DuplicateRequests.of_worker(closed),
                commands=Commands.of_worker((context.model_name, bundle.settings.version), closed),
                enveloped=enveloped,
            )
            worker._ask_examples(model_dir, context)
            return worker
        except BaseException as error:
            pass_interrupt(error)
            take_over_logging()
            reason = report_failed_load(error, model_dir)
            if isinstance(error, MemoryError):
                raise
            # Without the cause: TorchServe would print the whole chain once more, handlergen's frames included.
            raise RuntimeError(reason) from None
        finally:
            reopen_streams()

    def _ask_examples(self, model_dir: Path, context: Any) -> None:
        """Ask the archive's examples; `context` is TorchServe's.

        Raises:
            Unsuitable: An answer is wrong, or the examples cannot be read.
        """
        settings = self.bundle.settings
        try:
            examples = read_examples(model_dir)
        except ValueError as error:
            raise Unsuitable(str(error)) from None
        if not examples:
            return
        self._examples = {"number": len(examples), "at_start": settings.examples_at_start}
        if settings.examples_at_start == "off":
            return
        together = self._batch_size
        if settings.predictor == "process" and settings.batch != "each":  # it joins the requests of several workers
            config = getattr(context, "model_yaml_config", None) or {}
            workers = int(config.get("minWorkers") or 1) // max(1, len(config.get("deviceIds") or ()))
            together = min(settings.max_batch, max(1, workers) * self._batch_size)
        try:
            right = ask_at_start(
                self._backend,
                examples,
                name=settings.name,
                batch_size=together,
                compare=settings.examples_at_start == "check",
            )
        except BaseException:
            self.close()
            raise
        self._examples["right"] = right
        metrics = self._backend.metrics
        if metrics is not None and is_declared(EXAMPLES, getattr(context, "metrics", None)):
            metrics.watch(lambda: {EXAMPLES: right})

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch. Its requests are preprocessed and postprocessed while others are predicted.

        Args:
            data: TorchServe's batch, one mapping for each request.
            context: TorchServe's context; gets each request's status, content type and headers.

        Returns:
            One body for each request, in the order of `data`; empty for one whose chunks have been sent.

        Raises:
            Exception: For TorchServe, which takes the status of a failed gRPC request, and the end of a stream that
                failed midway, from an exception only. Only for a batch of one.
        """
        items = received(data, context, enveloped=self._enveloped)
        if self._commands.obeyed(items):
            return answered(items, context, self._counts)
        outlet = outlet_of(context, self._duplicates.note_stream)
        for item in items:
            item.outlet = outlet
        self._counts.requests += self._backend.answer(self._new(items))
        self._backend.flush()
        reopen_streams()
        self._duplicates.note_answers(items)
        self._commands.record(items)
        return answered(items, context, self._counts)

    def preprocess(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Item]:
        """Decode and preprocess, for subclasses of the generated handler."""
        items = received(data, context)
        self.pipeline.preprocess(self._new(items))
        self._backend.flush()
        return items

    def predict(self, items: list[Item]) -> list[Item]:
        """Predict, under the device lock, for subclasses of the generated handler."""
        self.pipeline.predict(items)
        self._backend.flush()
        return items

    def postprocess(self, items: list[Item], context: Any) -> list[bytes]:
        """Postprocess and encode, for subclasses of the generated handler."""
        self.pipeline.postprocess(items)
        self._backend.flush()
        self._duplicates.note_answers(items)
        return answered(items, context, self._counts)

    def _new(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items to answer: those that no other worker has answered, unless the model is being stopped."""
        return self._commands.accepted(self._duplicates.unanswered(items))

    def describe(self) -> dict[str, Any]:
        """Return the answer of `GET /models/NAME?customized=true`: contract, settings, device, counts; no secrets."""
        return description(
            self.bundle,
            **self._backend.describe(),
            counts=self._counts,
            health=self._health.check() if self._health is not None else None,
            examples=self._examples,
        )

    def close(self) -> None:
        """Release threads, connections and the model."""
        if self._health is not None:
            self._health.close()
        self._backend.close()


def backend_of(bundle: Bundle) -> Callable[[BackendOptions], Backend]:
    """Return the factory of the backend that the settings ask for, for one of several workers."""
    if bundle.settings.predictor != "process":
        return LocalBackend.in_worker
    from .predictor_process.backends import PreparedBackend, RelayBackend

    return PreparedBackend if bundle.settings.stages == "worker" else RelayBackend


def read_examples(model_dir: Path) -> tuple[Example, ...]:
    """Return the examples of an unpacked archive. Raises ValueError as `from_files` does."""

    def read(path: str) -> bytes | None:
        try:
            return (model_dir / path).read_bytes()
        except FileNotFoundError:
            return None

    return from_files(read)


def report_failed_load(error: BaseException, model_dir: Path) -> str:
    """Log why a model cannot be loaded: one line, and the user's traceback. Return the line."""
    reason = without_secrets(reason_of(error, model_dir))
    if isinstance(error, Unsuitable):
        traceback = error.user_traceback
    else:
        traceback = user_traceback(error, user_root=str(model_dir))
    logger().error("%s%s\n%s", REPORT, reason, traceback)
    return reason


def _is_not_logged_yet(record: logging.LogRecord) -> bool:
    """Drop TorchServe's own traceback of an error whose traceback handlergen has logged."""
    return not (record.exc_info and getattr(record.exc_info[1], "logged_by_handlergen", False))
