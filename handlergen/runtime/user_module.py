"""The user's module, imported and its hooks bound. One class a form; the pipeline sees only `Hooks`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from .context import Context
from .contract import Contract, RuntimeSettings
from .hooks import BoundHook, Hooks, bind, call_once
from .weights import load_executable


class UserModule(Protocol):
    """What a form offers the worker."""

    def setup(self) -> None:
        """Light preparation, once a worker, outside the device lock."""

    def load(self) -> None:
        """Put the model on the device; called under the device lock, once a copy of the model."""

    def hooks(self) -> Hooks:
        """The stages; after `load`."""

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        """A hook outside the stages (`is_healthy`), or None."""


class FunctionsModule:
    """The `functions` form: module-level `setup`, `load`, `preprocess`, `predict`, `postprocess`."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        self._contract = contract
        self._settings = settings
        self._context = context
        self._constants: dict[str, Any] = {"context": context, "device": context.device, "model": None}
        self._module: ModuleType = importlib.import_module(contract.module)
        self._program: Callable[[Any], Any] | None = None

    def setup(self) -> None:
        self._call_once("setup")

    def load(self) -> None:
        if "load" in self._contract.hooks:
            self._constants["model"] = self._call_once("load")
        elif self._settings.weights and self._settings.weights_format in ("torchscript", "exported", "onnx"):
            path = self._context.model_dir / self._settings.weights
            self._program = load_executable(path, self._settings.weights_format, self._context.device)
            self._constants["model"] = self._program

    def hooks(self) -> Hooks:
        predict = self._bound("predict")
        if predict is None:
            program = self._program
            if program is None:
                raise RuntimeError(
                    f"{self._contract.module} has neither predict nor weights that can predict"
                )
            predict = BoundHook("predict", lambda item: program(item.inputs))
        return Hooks(self._bound("preprocess"), predict, self._bound("postprocess"))

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        function = getattr(self._module, hook.name)
        return lambda values: call_once(function, hook, {**self._constants, **values})

    def _call_once(self, role: str) -> Any:
        hook = self._contract.hooks.get(role)
        return call_once(getattr(self._module, hook.name), hook, self._constants) if hook else None

    def _bound(self, role: str) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        return bind(getattr(self._module, hook.name), hook, self._constants) if hook else None


_FORMS: dict[str, Callable[[Contract, RuntimeSettings, Context], UserModule]] = {"functions": FunctionsModule}


def open_user_module(contract: Contract, settings: RuntimeSettings, context: Context) -> UserModule:
    """Import the user's module and wrap it as its form demands.

    Raises:
        Exception: Whatever the module raises while it is imported.
        ValueError: A form this runtime does not know.
    """
    try:
        form = _FORMS[contract.form]
    except KeyError:
        raise ValueError(f"this runtime does not serve the form {contract.form!r}") from None
    return form(contract, settings, context)
