"""The `module` form: an nn.Module with `preprocess` and `postprocess` of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.batching import collate, split
from ..pipeline.hooks import BoundHook, Hooks, Item, Stage, bind
from .loading import ImportedModule
from .weights import load_weights


class ModuleModule(ImportedModule):
    """A class of the user's, made, filled with its weights and bound. See `UserModule` for the methods."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        super().__init__(contract, settings, context)
        self._model: nn.Module

    def load(self) -> None:
        model = self._made()
        if not isinstance(model, nn.Module):
            raise TypeError(f"load returned {type(model).__name__}, which is no torch.nn.Module")
        missing = [
            hook.name
            for role, hook in self._contract.hooks.items()
            if role in ("preprocess", "postprocess") and not hasattr(model, hook.name)
        ]
        if missing:
            raise TypeError(
                f"load returned {type(model).__name__}, which has no {' and no '.join(missing)}; "
                f"{self._contract.class_name} has"
            )
        self._model = model.to(self._context.device).eval()
        self._constants["model"] = self._model

    def stand_in(self) -> None:
        kind = getattr(self._module, self._contract.class_name or "")
        self._model = kind.__new__(kind)
        if "load" in self._contract.hooks:
            return
        # The stage rule lets hooks run here that use methods and class constants alone. Plain attributes, which a hook
        # may use with `stages: worker`, need the constructor, and that may need numbers, which `meta` does not have.
        with contextlib.suppress(Exception), torch.device("meta"):
            self._model = kind(*self._settings.model_args, **self._settings.model_kwargs)

    def hooks(self) -> Hooks:
        details = self._contract.details
        model = self._model
        forward = _spread(model) if details.get("spread") else model
        owner: Any = {"method": model, "function": self._module}.get(details.get("collate", ""))
        join: Callable[[list[Any]], Any] = owner.collate if owner is not None else collate

        def batch(item: Item) -> Any:
            return forward(item.inputs)

        def sample(item: Item) -> Any:
            return split(forward(join([item.inputs])), 1, hook="forward")[0]

        return (
            Stage(
                self._bound("preprocess"),
                BoundHook("forward", sample if self._settings.batch == "each" else batch),
                self._bound("postprocess"),
                collate=join if owner is not None else None,
                one_by_one=bool(details.get("one_by_one")),
                explain=self._bound("explain"),
            ),
        )

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        return None if role in ("preprocess", "predict", "postprocess") else super().optional(role)

    def _made(self) -> Any:
        if "load" in self._contract.hooks:
            return self._call_once("load")
        assert self._contract.class_name is not None
        kind = getattr(self._module, self._contract.class_name)

        def make() -> Any:
            return kind(*self._settings.model_args, **self._settings.model_kwargs)

        if not self._settings.weights:
            return make()
        path = self._context.model_dir / self._settings.weights
        return load_weights(path, self._settings.weights_format, make=make, main=self._module)

    def _bound(self, role: str) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        return bind(getattr(self._model, hook.name), hook, self._constants) if hook else None


def _spread(model: nn.Module) -> Callable[[Any], Any]:
    """For a `forward` with several parameters: a mapping fills them by name, a sequence in order."""

    def forward(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return model(**{str(name): value for name, value in batch.items()})
        if isinstance(batch, list | tuple):
            return model(*batch)
        return model(batch)

    return forward


USER_MODULE = ModuleModule
