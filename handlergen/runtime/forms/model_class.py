"""The `model-class` form: Truss's `class Model`, constructed, loaded and bound."""

from __future__ import annotations

import importlib
import inspect
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..codec.redaction import user_traceback
from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import BoundHook, Hooks, Stage, bind, call_once

ENVIRONMENT_VARIABLE = "HANDLERGEN_ENVIRONMENT"
"""Its value, `production` say, is the `name` in what the constructor gets as `environment`."""

_RETRY_AFTER_S = 1.0  # as Truss waits (model_wrapper.py, NUM_LOAD_RETRIES)


class ModelClassModule:
    """A class with `predict`, and perhaps `load`, `preprocess` and `postprocess`. See `UserModule`.

    It is constructed and loaded in `load`, under the device lock: a constructor may put weights on the device.
    `details` of the contract may have `environment_variables` (set before the module is imported, where the
    server's environment has no such variable) and `data_dir`.
    """

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        self._contract = contract
        self._settings = settings
        self._context = context
        for name, value in contract.details.get("environment_variables", {}).items():
            os.environ.setdefault(name, value)
        self._module: ModuleType = importlib.import_module(contract.module)
        self._model: Any = None

    def setup(self) -> None:
        """Nothing: the form has no such hook."""

    def load(self) -> None:
        model_class = getattr(self._module, self._contract.class_name or "Model")
        self._model = model_class(**self._arguments(model_class))
        environment = _environment()
        if environment is not None and hasattr(self._model, "setup_environment"):
            self._model.setup_environment(environment)
        hook = self._contract.hooks.get("load")
        if hook is None:
            return
        load = getattr(self._model, hook.name)
        try:
            call_once(load, hook, {})
        except Exception as error:
            traceback = user_traceback(error, user_root=str(self._context.model_dir))
            self._context.logger.warning("load failed and is tried once more\n%s", traceback)
        else:
            return
        time.sleep(_RETRY_AFTER_S)
        call_once(load, hook, {})

    def stand_in(self) -> None:
        # Without its constructor, which may put weights on the device: preprocess and postprocess, where they run
        # in a worker, read nothing that the constructor makes.
        self._model = object.__new__(getattr(self._module, self._contract.class_name or "Model"))

    def hooks(self) -> Hooks:
        predict = self._bound("predict")
        if predict is None:
            raise RuntimeError(f"{self._contract.class_name} has no predict")
        return (Stage(self._bound("preprocess"), predict, self._bound("postprocess")),)

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        function = getattr(self._model, hook.name)
        return lambda values: call_once(function, hook, values)

    def _bound(self, role: str) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        return bind(getattr(self._model, hook.name), hook, {}) if hook else None

    def _arguments(self, model_class: type) -> dict[str, Any]:
        """What the constructor names of what Truss offers; all of it for `**kwargs`."""
        parameters = inspect.signature(model_class).parameters.values()
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        makers: dict[str, Callable[[], Any]] = {
            "config": lambda: dict(self._context.config),
            "data_dir": self._data_dir,
            "secrets": lambda: self._context.secrets,
            "environment": _environment,
            "lazy_data_resolver": lambda: LazyDataResolver(self._data_dir()),
        }
        return {name: make() for name, make in makers.items() if every or name in names}

    def _data_dir(self) -> Path:
        directory: Path = self._context.model_dir / self._contract.details.get("data_dir", "data")
        directory.mkdir(parents=True, exist_ok=True)
        return directory


class LazyDataResolver:
    """Truss's handle on data that is downloaded while the model starts. Here all data is in the archive already.

    Args:
        data_dir: Where the data is.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def block_until_download_complete(self, *_args: Any, **_kwargs: Any) -> Path:
        """Return at once: the data directory."""
        return self._data_dir

    def raise_if_not_collected(self) -> None:
        """Nothing is ever outstanding."""


def _environment() -> dict[str, Any] | None:
    """What Truss calls the environment of a deployment; None when the server's environment names none."""
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return {"name": name} if name else None


USER_MODULE = ModelClassModule
