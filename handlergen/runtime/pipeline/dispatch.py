"""Which kind of request each of a batch is (prediction, explanation, description, KServe's), and who answers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..codec.encode import encode
from ..codec.errors import Failure
from ..codec.kserve import Opened, open_kserve
from ..contract import Bundle
from .hooks import BoundHook, Hooks, Item, ModelHooks
from .model import Model
from .pipeline import Pipeline
from .predictor import Predictor
from .typed_hooks import TypedHooks

_NO_EXPLAIN = Failure(
    501, "NotSupported", "This model has no explain hook, so it cannot explain its predictions"
)


class Dispatch:
    """Takes each request of a batch to what answers it.

    TorchServe tells by headers: `explain` is True or False at every address for predictions but `/invocations` and
    the like, `url_path` is there under `/predictions` and `/explanations` only, `describe` is True for
    `GET /models/NAME?customized=true`, which has no content. A client may send such headers too; under `/predictions`
    TorchServe's own `explain` comes after it, and `describe` counts only without that and without content, which
    every request for a prediction has (InferenceRequestHandler.java, ManagementRequestHandler.java).

    Args:
        bundle: Contract and settings.
        predictions: The pipeline.
        explanations: The same around the `explain` hook; None without one.
        describe: What describe answers.
        batch_size: The most requests that `predict` sees together, however many instances a KServe request has.
    """

    def __init__(
        self,
        bundle: Bundle,
        predictions: Pipeline,
        explanations: Pipeline | None,
        describe: Callable[[], Any],
        batch_size: int,
    ) -> None:
        self._bundle = bundle
        self._predictions = predictions
        self._explanations = explanations
        self._describe = describe
        self._batch_size = batch_size

    def run(self, items: Sequence[Item]) -> int:
        """Answer every request of a batch: each item ends with its `reply` or its `failure`.

        Returns:
            How many of them were no descriptions.
        """
        others = [item for item in items if not _is_plain(item)]
        if not others:
            self._predictions.run(items)
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
        self._run(self._predictions, predictions)
        if self._explanations is not None:
            self._run(self._explanations, explanations)
        for request in opened:
            request.close(self._predictions.fail)
        return len(items) - described

    def _run(self, pipeline: Pipeline, items: list[Item]) -> None:
        together = self._bundle.settings.batch != "each" and pipeline is self._predictions
        size = max(1, self._batch_size if together else len(items))
        for start in range(0, len(items), size):
            pipeline.run(items[start : start + size])

    def _answer_describe(self, item: Item) -> None:
        try:
            item.reply = encode(self._describe())
        except BaseException as error:
            self._predictions.fail(item, error, "describe")

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
            self._predictions.fail(item, error, "decode")
            if item.failure is not None:
                item.failure = failure_for(item, item.failure)
            return None


def failure_for(item: Item, failure: Failure) -> Failure:
    """A failure as a request's client reads it: one of KServe's reads `error`."""
    return replace(failure, for_kserve=True) if _is_kserve(item) else failure


def _is_kserve(item: Item) -> bool:
    """It came to one of KServe's addresses, or to `/invocations`."""
    return not (_is_plain(item) or is_describe(item) or isinstance(item.properties.get("url_path"), str))


def _is_plain(item: Item) -> bool:
    """A prediction by TorchServe's own address, or over gRPC."""
    explain = item.properties.get("explain")
    if explain == "False":
        return "url_path" in item.properties
    return not isinstance(explain, str) and not is_describe(item)


def is_describe(item: Item) -> bool:
    """`GET /models/NAME?customized=true`: TorchServe makes it a request with this header, and without any content."""
    properties = item.properties
    return (
        properties.get("describe") == "True"
        and not item.entry
        and not isinstance(properties.get("explain"), str)
    )


class Dispatcher:
    """Answers requests in this process, wherever the model's predictions are made.

    Args:
        bundle: Contract and settings.
        model: Loaded.
        batch_size: The most requests that come at once.
        describe: What describe answers.
    """

    def __init__(self, bundle: Bundle, model: Model, *, batch_size: int, describe: Callable[[], Any]) -> None:
        self._model = model
        self._bundle = bundle
        self._batch_size = batch_size
        hooks = model.hooks
        self._types = TypedHooks(bundle.contract.form, hooks, bundle.settings.batch, model.context.logger)
        self.pipeline = self._pipeline(hooks, model.predictor)
        self._explanations: Pipeline | None = None
        explain = hooks[0].explain
        if explain is not None and model.explainer is not None:
            stages = (ModelHooks(hooks[0].preprocess, explain),)
            self._explanations = self._pipeline(stages, model.explainer)
        self._dispatch = Dispatch(bundle, self.pipeline, self._explanations, describe, batch_size)

    def answer(self, items: Sequence[Item]) -> int:
        """Answer a batch: each item ends with its `reply` or its `failure`.

        Returns:
            How many of them were no descriptions.
        """
        try:
            return self._dispatch.run(items)
        except BaseException as error:
            for item in items:
                if item.reply is None and item.failure is None:
                    self._model.failures.fail(item, error, "handle")
            return len(items)

    def types(self) -> dict[str, Any]:
        """What describe says of input and answer."""
        return self._types.describe()

    def observe(self, observed: Callable[[int, str, BoundHook], BoundHook]) -> Hooks:
        """Call something in place of each hook of the stages, which calls the hook and sees what comes and goes.

        Args:
            observed: Gets the stage's number, `preprocess`, `predict` or `postprocess`, and the hook.

        Returns:
            What is called from now on; the predictor is to use it too.
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
            for number, stage in enumerate(self._model.hooks)
        )
        self.pipeline.use(hooks)
        return hooks

    def close(self) -> None:
        """Let go of threads; nothing may be under way."""
        if self._explanations is not None:
            self._explanations.close()
        self.pipeline.close()

    def _pipeline(self, hooks: Hooks, predictor: Predictor) -> Pipeline:
        pipeline = Pipeline(
            self._bundle.settings,
            streaming=self._model.streaming,
            recorder=self._model.recording.recorder,
            batch_size=self._batch_size,
            fail=self._model.failures.fail,
        )
        pipeline.start(hooks, predictor, self._types.converter())
        return pipeline
