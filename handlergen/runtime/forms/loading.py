"""The user's module, imported and its hooks bound. Each form has one class for it, its file's `USER_MODULE`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol, cast

from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import Hooks, call_once
from .table import FORMS


class UserModule(Protocol):
    """What a form offers the worker."""

    def setup(self) -> None:
        """Light preparation, once a worker, outside the device lock."""

    def load(self) -> None:
        """Put the model on the device; called under the device lock, once a copy of the model."""

    def stand_in(self) -> None:
        """In place of `load`, in a process that only preprocesses and postprocesses: make those hooks callable."""

    def hooks(self) -> Hooks:
        """The stages; after `load` or `stand_in`."""

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        """A hook outside the stages (`is_healthy`), or None."""


def open_user_module(contract: Contract, settings: RuntimeSettings, context: Context) -> UserModule:
    """Import the user's module and wrap it as its form demands.

    Raises:
        Exception: Whatever the module raises while it is imported.
        ValueError: A form this runtime does not know.
    """
    row = FORMS.get(contract.form)
    if row is None:
        raise ValueError(f"this runtime does not support the form {contract.form!r}")
    module = importlib.import_module(f".{row.module}", __package__)
    return cast(UserModule, module.USER_MODULE(contract, settings, context))


class ImportedModule:
    """A user's module, imported. See `UserModule` for the methods.

    Args:
        contract: What inspection found in it.
        settings: The model's.
        context: What hooks may ask for.
    """

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        self._contract = contract
        self._settings = settings
        self._context = context
        self._constants: dict[str, Any] = {"context": context, "device": context.device, "model": None}
        self._module: ModuleType = importlib.import_module(contract.module)

    def setup(self) -> None:
        self._call_once("setup")

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        function = getattr(self._module, hook.name)
        return lambda values: call_once(function, hook, {**self._constants, **values})

    def _call_once(self, role: str) -> Any:
        """Call a hook that is not for requests; None when there is none."""
        hook = self._contract.hooks.get(role)
        return call_once(getattr(self._module, hook.name), hook, self._constants) if hook else None
