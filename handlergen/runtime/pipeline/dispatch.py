"""Takes each request of a batch to what answers it: predictions, explanations, describe, KServe's protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..codec.encode import encode
from ..codec.errors import Failure
from ..codec.kserve import Opened, open_kserve
from ..contract import Bundle
from .hooks import Hooks, Item, ModelHooks
from .model import Model
from .pipeline import Pipeline
from .predictor import Predictor
from .typed_hooks import TypedHooks

_NO_EXPLAIN = Failure(501, "NotSupported", "This model has no explain hook, so it cannot explain its predictions")


class Dispatcher:
    """Answers requests in this process, wherever the model's predictions are made.

    TorchServe says by headers what kind a request is: `explain` is True or False at every address for predictions but
    `/invocations` and the like, `url_path` is set under `/predictions` and `/explanations` only, `describe` is True for
    `GET /models/NAME?customized=true`, which has no content. A client may send such headers too; under `/predictions`
    TorchServe's own `explain` overwrites the client's, and `describe` counts only without `explain` and without
    content, which every request for a prediction has (InferenceRequestHandler.java, ManagementRequestHandler.java).

    Args:
        bundle: Contract and settings.
        model: Loaded.
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
        self._types = TypedHooks(bundle.contract.form, hooks, bundle.settings.batch, model.context.logger)
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
        return Pipeline(
            self._bundle.settings,
            hooks,
            predictor,
            convert=self._types.convert,
            streaming=self._model.streaming,
            recorder=self._model.recording.recorder,
            batch_size=self._batch_size,
            fail=self._model.failures.fail,
        )

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
        settings = self._bundle.settings
        try:
            return open_kserve(
                item,
                name=settings.name,
                version=settings.version,
                nan=settings.nan,
                limit=settings.max_response_bytes,
                first_index=index,
                keywords=self._bundle.contract.call == "keywords",
            )
        except BaseException as error:
            self.pipeline.fail(item, error, "decode")
            if item.failure is not None:
                item.failure = failure_for(item, item.failure)
            return None


def failure_for(item: Item, failure: Failure) -> Failure:
    """Return a failure in the format that the request's client reads: KServe's clients read `error`."""
    return replace(failure, for_kserve=True) if _is_kserve(item) else failure


def _is_kserve(item: Item) -> bool:
    """Whether a request came to one of KServe's addresses, or to `/invocations`."""
    return not (_is_plain(item) or is_describe(item) or isinstance(item.properties.get("url_path"), str))


def _is_plain(item: Item) -> bool:
    """Whether a request is a prediction, by TorchServe's own address or gRPC."""
    explain = item.properties.get("explain")
    if explain == "False":
        return "url_path" in item.properties
    return not isinstance(explain, str) and not is_describe(item)


def is_describe(item: Item) -> bool:
    """Whether a request is `GET /models/NAME?customized=true`: TorchServe sets a header and sends no content."""
    properties = item.properties
    return properties.get("describe") == "True" and not item.entry and not isinstance(properties.get("explain"), str)
