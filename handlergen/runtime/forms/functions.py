"""The `functions` form: module-level `setup`, `load`, `preprocess`, `predict`, `postprocess`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import BoundHook, Hooks, Stage, bind
from .loading import ImportedModule
from .weights import load_executable


class FunctionsModule(ImportedModule):
    """A module of functions, bound. See `UserModule` for the methods."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        super().__init__(contract, settings, context)
        self._program: Callable[[Any], Any] | None = None

    def load(self) -> None:
        if "load" in self._contract.hooks:
            self._constants["model"] = self._call_once("load")
        elif self._settings.weights and self._settings.weights_format in ("torchscript", "exported", "onnx"):
            path = self._context.model_dir / self._settings.weights
            self._program = load_executable(path, self._settings.weights_format, self._context.device)
            self._constants["model"] = self._program

    def stand_in(self) -> None:
        self._program = _elsewhere

    def hooks(self) -> Hooks:
        predict = self._bound("predict")
        if predict is None:
            program = self._program
            if program is None:
                raise RuntimeError(
                    f"{self._contract.module} has neither predict nor weights that can predict"
                )
            predict = BoundHook("predict", lambda item: program(item.inputs))
        return (
            Stage(
                self._bound("preprocess"),
                predict,
                self._bound("postprocess"),
                explain=self._bound("explain"),
            ),
        )

    def _bound(self, role: str) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        return bind(getattr(self._module, hook.name), hook, self._constants) if hook else None


def _elsewhere(_inputs: Any) -> Any:
    raise RuntimeError("predict is called in the predictor process only")


USER_MODULE = FunctionsModule
