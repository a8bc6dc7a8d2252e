"""The user's module, imported and its hooks bound. Each form has one class for it, its file's `USER_MODULE`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from .context import Context
from .contract import Contract, RuntimeSettings
from .form_table import FORMS
from .hooks import Hooks


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
    module = importlib.import_module(f".form_{row.module}", __package__)
    return cast(UserModule, module.USER_MODULE(contract, settings, context))
