"""A model and all that takes requests through it: pipeline, explanations, dispatch, health, describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .contract import Bundle
from .dispatch import Dispatch
from .hooks import BoundHook, Hooks, Item, Stage
from .model import Model
from .pipeline import Pipeline
from .predictor import Predictor
from .typed_hooks import TypedHooks


class Answering:
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
            stages = (Stage(hooks[0].preprocess, explain),)
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
                    self._model.failing.fail(item, error, "handle")
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
            fail=self._model.failing.fail,
        )
        pipeline.start(hooks, predictor, self._types.converter())
        return pipeline
