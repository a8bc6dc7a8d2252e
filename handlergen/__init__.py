"""Wrap a user's module into a TorchServe archive whose predictions run one at a time on the device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlergen.archives.build import ArchiveResult
    from handlergen.client import Client
    from handlergen.creation.create import archive, create
    from handlergen.errors import ContractError, HandlergenError, ModuleFailed, RequestFailed, ServerError
    from handlergen.local.model import LocalModel, load
    from handlergen.server.lifecycle import RunningServer, serve
    from handlergen.server.replacing import Shadow
    from handlergen.server.update import UpdateReport, rollback, update

__version__ = "0.1.0"

__all__ = [
    "ArchiveResult",
    "Client",
    "ContractError",
    "HandlergenError",
    "LocalModel",
    "ModuleFailed",
    "RequestFailed",
    "RunningServer",
    "ServerError",
    "Shadow",
    "UpdateReport",
    "__version__",
    "archive",
    "create",
    "load",
    "rollback",
    "serve",
    "update",
]

# Name -> module that has it. Imported when first asked for, so that `import handlergen` costs nothing. No module
# may have the name of something here: importing it would put the module in its place.
_EXPORTS = {
    "ArchiveResult": "handlergen.archives.build",
    "Client": "handlergen.client",
    "ContractError": "handlergen.errors",
    "HandlergenError": "handlergen.errors",
    "LocalModel": "handlergen.local.model",
    "ModuleFailed": "handlergen.errors",
    "RequestFailed": "handlergen.errors",
    "RunningServer": "handlergen.server.lifecycle",
    "ServerError": "handlergen.errors",
    "Shadow": "handlergen.server.replacing",
    "UpdateReport": "handlergen.server.update",
    "archive": "handlergen.creation.create",
    "create": "handlergen.creation.create",
    "load": "handlergen.local.model",
    "rollback": "handlergen.server.update",
    "serve": "handlergen.server.lifecycle",
    "update": "handlergen.server.update",
}


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
