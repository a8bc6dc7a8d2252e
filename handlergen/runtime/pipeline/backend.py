"""What answers a worker's requests: this process, or a predictor process (`predictor_process.backends`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..codec.encode import encode
from ..codec.errors import Failure
from ..codec.kserve import KSERVE_BODY, Opened, open_kserve
from ..contract import Bundle
from ..device.device import share_the_cores
from ..server_process import server_of_this_process
from ..telemetry.recording import Metrics
from .hooks import BoundHook, Hooks, Item, ModelHooks
from .model import LoadedModel, Model
from .pipeline import Pipeline
from .predictor import Predictor
from .typed_hooks import TypedHooks

_NO_EXPLAIN = Failure(501, "NotSupported", "This model has no explain hook, so it cannot explain its predictions")


@dataclass(frozen=True)
class BackendOptions:
    """What a backend is made from.

    Attributes:
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        batch_size: The most requests that come at once.
        describe: Returns the answer of describe.
    """

    bundle: Bundle
    model_dir: Path
    gpu_id: int | None
    batch_size: int
    describe: Callable[[], Any]


class Backend(Protocol):
    """What answers a worker's requests."""

    is_healthy: Callable[[Mapping[str, Any]], Any] | None
    """Calls the module's `is_healthy`; None without one."""

    @property
    def metrics(self) -> Metrics | None:
        """The counters of answers; None without metrics."""

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, for callers that run its steps one by one."""

    def answer(self, items: Sequence[Item]) -> int:
        """Give each item its `reply` or its `failure`; return how many requests were not describe."""

    def relayed(self) -> tuple[Backend, Callable[[str], None]] | None:
        """Return what answers by all stages in the predictor process, and a function that changes to it and says why.

        None where that changes nothing.
        """

    def describe(self) -> dict[str, Any]:
        """Return `predictor` and `types`, for `health.description`."""

    def flush(self) -> None:
        """Write what was recorded of a batch."""

    def close(self) -> None:
        """Release threads, connections and the model."""


class Dispatcher:
    """Answers requests in this process, wherever the model's predictions are made.

    TorchServe says by headers what kind a request is: `explain` is True or False at every address for predictions but
    `/invocations` and the like, `url_path` is set under `/predictions` and `/explanations` only, `describe` is True for
    `GET /models/NAME?customized=true`, which has no content. (For TorchServe before 0.12, which never sets `url_path`,
    `torchserve.frontend.received` sets it. There, and below a service envelope, it marks what is KServe's by its body.)
    A client may send such headers too; under `/predictions` TorchServe's own `explain` overwrites the client's, and
    `describe` counts only without `explain` and without content, which every request for a prediction has
    (InferenceRequestHandler.java, ManagementRequestHandler.java).

    Args:
        batch_size: The most requests that come at once, and that `predict` gets together, however many instances a
            KServe request has.
        describe: Returns the answer of describe.
    """

    def __init__(self, bundle: Bundle, model: Model, *, batch_size: int, describe: Callable[[], Any]) -> None:
        self._bundle = bundle
        self._model = model
        self._batch_size = batch_size
        self._describe = describe
        hooks = model.hooks
        self._types = TypedHooks(bundle.contract.form, hooks, bundle.settings.batch)
        self.pipeline = self._pipeline(hooks, model.predictor)
        self._explanations: Pipeline | None = None
        if hooks[0].explain is not None and model.explainer is not None:
            explained = ModelHooks(hooks[0].preprocess, hooks[0].explain)
            self._explanations = self._pipeline((explained,), model.explainer)

    def answer(self, items: Sequence[Item]) -> int:
        """Answer a batch: each item ends with its `reply` or its `failure`.

        Returns:
            How many of the requests are predictions or explanations: all but describe.
        """
        try:
            return self._answer(items)
        except BaseException as error:
            for item in items:
                if item.reply is None and item.failure is None:
                    self._model.failures.fail(item, error, "handle")
            return len(items)

    def types(self) -> dict[str, Any]:
        """Return what describe says about input and output."""
        return self._types.describe()

    def close(self) -> None:
        """Stop the threads. No request may be in progress."""
        if self._explanations is not None:
            self._explanations.close()
        self.pipeline.close()

    def _pipeline(self, hooks: Hooks, predictor: Predictor) -> Pipeline:
        settings, convert = self._bundle.settings, self._types.convert
        return Pipeline(settings, self._model, hooks, predictor, convert=convert, batch_size=self._batch_size)

    def _answer(self, items: Sequence[Item]) -> int:
        others = [item for item in items if not _is_plain(item)]
        if not others:
            self.pipeline.run(items)
            return len(items)
        predictions = [item for item in items if _is_plain(item)]
        explanations: list[Item] = []
        opened: list[Opened] = []
        described = 0
        index = len(items)
        for item in others:
            if is_describe(item):
                described += 1
                self._answer_describe(item)
                continue
            explains = item.properties.get("explain") == "True"
            if explains and self._explanations is None:
                item.failure = failure_for(item, _NO_EXPLAIN)
                continue
            parts = [item]
            if _is_kserve(item):
                request = self._open(item, index)
                if request is None:
                    continue
                opened.append(request)
                parts = request.parts
                index += len(parts)
            (explanations if explains else predictions).extend(parts)
        # A KServe request may have more instances than a batch; without batches, all run concurrently.
        together = self._bundle.settings.batch != "each"
        size = max(1, self._batch_size if together else len(predictions))
        for start in range(0, len(predictions), size):
            self.pipeline.run(predictions[start : start + size])
        if self._explanations is not None and explanations:
            self._explanations.run(explanations)
        for request in opened:
            request.close(self.pipeline.fail)
        return len(items) - described

    def _answer_describe(self, item: Item) -> None:
        try:
            item.reply = encode(self._describe())
        except BaseException as error:
            self.pipeline.fail(item, error, "describe")

    def _open(self, item: Item, index: int) -> Opened | None:
        try:
            return open_kserve(item, self._bundle, index)
        except BaseException as error:
            self.pipeline.fail(item, error, "decode")
            if item.failure is not None:
                item.failure = failure_for(item, item.failure)
            return None


class PipelineBackend(Dispatcher):
    """The pipeline in this process, wherever the model is, which is closed with it. See `Backend` for the methods."""

    def __init__(self, options: BackendOptions, model: Model) -> None:
        super().__init__(options.bundle, model, batch_size=options.batch_size, describe=options.describe)
        self.metrics = model.recording.metrics
        self.is_healthy = model.is_healthy

    def relayed(self) -> tuple[Backend, Callable[[str], None]] | None:
        return None

    def flush(self) -> None:
        self._model.recording.flush()

    def describe(self) -> dict[str, Any]:
        return {"types": self.types(), "predictor": self._model.predictor.describe()}

    def close(self) -> None:
        super().close()
        self._model.close()


class LocalBackend(PipelineBackend):
    """The pipeline and a copy of the model in this process; `server` is TorchServe's process, None without one."""

    def __init__(self, options: BackendOptions, server: int | None = None) -> None:
        self.model = LoadedModel(options.bundle, options.model_dir, gpu_id=options.gpu_id, server=server)
        super().__init__(options, self.model)

    @classmethod
    def in_worker(cls, options: BackendOptions) -> LocalBackend:
        """Make the backend of one of several workers, which share the machine's cores."""
        share_the_cores()
        server, _started = server_of_this_process()
        return cls(options, server)

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> None:
        """Replace each hook. See `Worker.observe`."""

        def optional(number: int, role: str, hook: BoundHook | None) -> BoundHook | None:
            return observed(number, role, hook) if hook is not None else None

        hooks = tuple(
            replace(
                each,
                preprocess=optional(number, "preprocess", each.preprocess),
                predict=observed(number, "predict", each.predict),
                postprocess=optional(number, "postprocess", each.postprocess),
            )
            for number, each in enumerate(self.model.hooks)
        )
        self.pipeline.hooks = self.model.predictor.hooks = hooks


def failure_for(item: Item, failure: Failure) -> Failure:
    """Return a failure in the format that the request's client reads: KServe's clients read `error`."""
    return replace(failure, for_kserve=True) if _is_kserve(item) else failure


def _is_kserve(item: Item) -> bool:
    """Whether a request came to one of KServe's addresses, or is KServe's by its body."""
    properties = item.properties
    by_address = not (_is_plain(item) or is_describe(item) or isinstance(properties.get("url_path"), str))
    return by_address or properties.get(KSERVE_BODY) is True


def _is_plain(item: Item) -> bool:
    """Whether a request is a prediction, by TorchServe's own address or gRPC, and not KServe's by its body."""
    explain = item.properties.get("explain")
    if item.properties.get(KSERVE_BODY) is True:
        return False
    if explain == "False":
        return "url_path" in item.properties
    return not isinstance(explain, str) and not is_describe(item)


def is_describe(item: Item) -> bool:
    """Whether a request is `GET /models/NAME?customized=true`: TorchServe sets a header and sends no content."""
    properties = item.properties
    return properties.get("describe") == "True" and not item.entry and not isinstance(properties.get("explain"), str)
