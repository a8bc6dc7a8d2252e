"""The user's module, imported, its hooks bound. Each form has a class for it, its file's `USER_MODULE`."""

from __future__ import annotations

import abc
import importlib
import platform
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.event_loop import EventLoop
from ..pipeline.hooks import BoundHook, Hooks, bind, call_once
from .table import FORMS

_PYTHON = platform.python_version()


class UserModule(abc.ABC):
    """A user's module of one form, imported.

    Attributes:
        loop: Of all its async hooks.

    Raises:
        Exception: Whatever the module raises while it is imported.
    """

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        self._contract = contract
        self._settings = settings
        self._context = context
        self._constants: dict[str, Any] = {
            "context": context,
            "device": context.device,
            "model": None,
            "logger": context.logger,
        }
        self.loop = EventLoop()
        try:
            self._module: ModuleType = importlib.import_module(contract.module)
        except ModuleNotFoundError as error:
            # Where: the log and `status` may be all that is seen of an image.
            error.msg += f"; it is neither in the archive nor installed for {sys.executable} (Python {_PYTHON})"
            raise
        self._owner: Any = self._module  # what the hooks are attributes of

    def setup(self) -> None:
        """Call the module's `setup`, once a worker, outside the device lock."""
        self._call_once("setup")

    @abc.abstractmethod
    def load(self) -> None:
        """Put the model on the device; called under the device lock, once a copy of the model."""

    @abc.abstractmethod
    def load_without_model(self) -> None:
        """Make preprocess and postprocess callable, in a process that runs only these, in place of `load`."""

    @abc.abstractmethod
    def hooks(self) -> Hooks:
        """Return the hooks of each model; after `load` or `load_without_model`."""

    def is_healthy(self) -> Callable[[Mapping[str, Any]], Any] | None:
        """Return a function that calls `is_healthy` with the values of further parameters; None without that hook."""
        hook = self._contract.hooks.get("is_healthy")
        if hook is None:
            return None
        function = getattr(self._owner, hook.name)
        return lambda values: call_once(function, hook, {**self._constants, **values}, self.loop)

    def _user_class(self) -> Any:
        return getattr(self._module, self._contract.class_name or "Model")

    def _unconstructed(self) -> Any:
        """Return an instance of the class whose constructor was not called: it may put weights on the device.

        preprocess and postprocess, where they run in a worker, read nothing that the constructor makes.
        """
        return object.__new__(self._user_class())

    def _bound(self, role: str, owner: Any = None) -> BoundHook | None:
        """Return a hook for requests, an attribute of `owner` where there is one; None when the module has no such."""
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        return bind(getattr(self._owner if owner is None else owner, hook.name), hook, self._constants)

    def _predict(self) -> BoundHook:
        """Return the hook `predict`. Raises RuntimeError when the class has none."""
        predict = self._bound("predict")
        if predict is None:
            raise RuntimeError(f"{self._contract.class_name} has no predict")
        return predict

    def _call_once(self, role: str) -> Any:
        """Call a hook that is not for requests; None when the module has no such hook."""
        hook = self._contract.hooks.get(role)
        return call_once(getattr(self._owner, hook.name), hook, self._constants, self.loop) if hook else None


def open_user_module(contract: Contract, settings: RuntimeSettings, context: Context) -> UserModule:
    """Import the user's module as one of its form.

    Raises:
        Exception: Whatever the module raises while it is imported.
        ValueError: This runtime does not know the form.
    """
    row = FORMS.get(contract.form)
    if row is None:
        raise ValueError(f"this runtime does not support the form {contract.form!r}")
    module = importlib.import_module(f".{row.module}", __package__)
    opened: UserModule = module.USER_MODULE(contract, settings, context)
    return opened
