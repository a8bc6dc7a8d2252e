"""What the forms whose hooks are functions of a module have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .context import Context
from .contract import Contract, RuntimeSettings
from .hooks import call_once


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
