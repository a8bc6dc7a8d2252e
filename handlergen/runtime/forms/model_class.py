"""The `model-class` form: Truss's `class Model`, constructed, loaded and bound."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..codec.redaction import user_traceback
from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..diagnostics import logger
from ..pipeline.hooks import Hooks, ModelHooks
from .loading import UserModule

ENVIRONMENT_VARIABLE = "HANDLERGEN_ENVIRONMENT"
"""Its value, `production` say, is the `name` in what the constructor gets as `environment`."""

_RETRY_AFTER_S = 1.0  # as Truss waits (model_wrapper.py, NUM_LOAD_RETRIES)


class ModelClassModule(UserModule):
    """A class with `predict`, and perhaps `load`, `preprocess` and `postprocess`.

    It is constructed and loaded in `load`, under the device lock: a constructor may put weights on the device.
    `details` of the contract may have `environment_variables` (set before the module is imported, where the
    server's environment has no such variable) and `data_dir`. The directory of a Truss's module, which alone is in a
    package, comes last on `sys.path`, as Truss has it: `import helper` finds `model/helper.py`.
    """

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        for name, value in contract.details.get("environment_variables", {}).items():
            os.environ.setdefault(name, value)
        package, _, _ = contract.module.rpartition(".")
        directory = context.model_dir / package
        if package and str(directory) not in sys.path:
            if not (directory / "__init__.py").is_file():  # else a model.py on the path comes before it
                importlib.import_module(package)
            sys.path.append(str(directory))
        super().__init__(contract, settings, context)

    def load(self) -> None:
        model_class = self._user_class()
        model = self._owner = model_class(**self._arguments(model_class))
        environment = _environment()
        if environment is not None and hasattr(model, "setup_environment"):
            model.setup_environment(environment)
        try:
            self._call_once("load")
        except Exception as error:
            traceback = user_traceback(error, user_root=str(self._context.model_dir))
            logger().warning("load failed and is tried once more\n%s", traceback)
        else:
            return
        time.sleep(_RETRY_AFTER_S)
        self._call_once("load")

    def load_without_model(self) -> None:
        self._owner = self._unconstructed()

    def hooks(self) -> Hooks:
        return (ModelHooks(self._bound("preprocess"), self._predict(), self._bound("postprocess")),)

    def _arguments(self, model_class: type) -> dict[str, Any]:
        """Return the arguments that Truss offers and the constructor names; all of them for `**kwargs`."""
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
    """Truss's handle on data that is downloaded while the model starts. Here all data is in the archive already."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def block_until_download_complete(self, *_args: Any, **_kwargs: Any) -> Path:
        """Return the data directory at once."""
        return self._data_dir

    def raise_if_not_collected(self) -> None:
        """Do nothing: no download is ever outstanding."""


def _environment() -> dict[str, Any] | None:
    """Return what Truss calls the environment of a deployment; None when the server's environment names none."""
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return {"name": name} if name else None


USER_MODULE = ModelClassModule
