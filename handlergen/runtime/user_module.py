"""The user's module, imported and its hooks bound. One class a form; the pipeline sees only its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .context import Context
from .contract import Contract, RuntimeSettings
from .form_flow import FlowModule
from .form_functions import FunctionsModule
from .form_model_class import ModelClassModule
from .form_module import ModuleModule
from .form_sagemaker import SagemakerModule
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


_FORMS: dict[str, Callable[[Contract, RuntimeSettings, Context], UserModule]] = {
    "flow": FlowModule,
    "functions": FunctionsModule,
    "model-class": ModelClassModule,
    "module": ModuleModule,
    "sagemaker": SagemakerModule,
}


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
