"""The `module` form: an nn.Module with `preprocess` and `postprocess` of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..pipeline.batching import collate, split
from ..pipeline.hooks import BoundHook, Hooks, Item, ModelHooks
from .loading import UserModule
from .weights import load_weights


class ModuleModule(UserModule):
    """A class of the user's, constructed, with its weights."""

    _model: nn.Module

    def load(self) -> None:
        model = self._loaded()
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

    def load_without_model(self) -> None:
        model_class = self._user_class()
        self._model = model_class.__new__(model_class)
        if "load" in self._contract.hooks:
            return
        # The stage rule lets hooks run here that use methods and class constants alone. Plain attributes, which a hook
        # may use with `stages: worker`, need the constructor, and that may need numbers, which `meta` does not have.
        with contextlib.suppress(Exception), torch.device("meta"):
            self._model = self._constructed()

    def hooks(self) -> Hooks:
        details = self._contract.details
        model = self._model
        forward = _with_arguments(model) if details.get("spread") else model
        owner: Any = {"method": model, "function": self._module}.get(details.get("collate", ""))
        join: Callable[[list[Any]], Any] = owner.collate if owner is not None else collate

        def predict_batch(item: Item) -> Any:
            return forward(item.inputs)

        def predict_sample(item: Item) -> Any:
            return split(forward(join([item.inputs])), 1, hook="forward")[0]

        return (
            ModelHooks(
                self._bound("preprocess", model),
                BoundHook("forward", predict_sample if self._settings.batch == "each" else predict_batch),
                self._bound("postprocess", model),
                collate=join if owner is not None else None,
                one_by_one=bool(details.get("one_by_one")),
                explain=self._bound("explain", model),
            ),
        )

    def _constructed(self) -> Any:
        return self._user_class()(*self._settings.model_args, **self._settings.model_kwargs)

    def _loaded(self) -> Any:
        if "load" in self._contract.hooks:
            return self._call_once("load")
        settings = self._settings
        if not settings.weights:
            return self._constructed()
        path = self._context.model_dir / settings.weights
        return load_weights(path, settings.weights_format, make=self._constructed, main=self._module)


def _with_arguments(model: nn.Module) -> Callable[[Any], Any]:
    """Return `forward` with several parameters: a mapping fills them by name, a sequence in order."""

    def forward(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return model(**{str(name): value for name, value in batch.items()})
        if isinstance(batch, (list, tuple)):
            return model(*batch)
        return model(batch)

    return forward


USER_MODULE = ModuleModule
