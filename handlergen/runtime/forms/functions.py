"""The `functions` form: module-level `setup`, `load`, `preprocess`, `predict`, `postprocess`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..pipeline.hooks import BoundHook, Hooks, ModelHooks
from .loading import UserModule
from .weights import EXECUTABLE, load_executable


class FunctionsModule(UserModule):
    """A module of functions; executable weights may replace its `load` and `predict`."""

    _program: Callable[[Any], Any] | None = None

    def load(self) -> None:
        settings = self._settings
        if "load" in self._contract.hooks:
            self._constants["model"] = self._call_once("load")
        elif settings.weights and settings.weights_format in EXECUTABLE:
            path = self._context.model_dir / settings.weights
            self._program = load_executable(path, settings.weights_format, self._context.device)
            self._constants["model"] = self._program

    def load_without_model(self) -> None:
        self._program = _no_model

    def hooks(self) -> Hooks:
        predict, program = self._bound("predict"), self._program
        if predict is None:
            if program is None:
                raise RuntimeError(f"{self._contract.module} has neither predict nor weights that can predict")
            predict = BoundHook("predict", lambda item: program(item.inputs))
        preprocess, postprocess = self._bound("preprocess"), self._bound("postprocess")
        return (ModelHooks(preprocess, predict, postprocess, explain=self._bound("explain")),)


def _no_model(_inputs: Any) -> Any:
    raise RuntimeError("predict is called in the predictor process only")


USER_MODULE = FunctionsModule
