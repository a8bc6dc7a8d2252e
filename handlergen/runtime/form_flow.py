"""The `flow` form: `FLOW = [...]`, a list of models that a request passes one after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any

import torch

from .context import Context
from .contract import Contract, RuntimeSettings
from .failures import EncodeError
from .flow_models import load_model
from .hooks import BoundHook, Hooks, Item, Stage, bind
from .imported_module import ImportedModule


class FlowError(Exception):
    """A stage cannot be loaded; names it."""


class FlowModule(ImportedModule):
    """The stages of `FLOW`, each with its model. See `UserModule` for the methods.

    What each stage is stands in the contract's `details["stages"]`: `type`, `file`, `format`, `options` and
    `class`. Its functions are taken from the module's own `FLOW`; their signatures stand in the contract's hooks
    under `pre N`, `predict N` and `post N`.
    """

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        super().__init__(contract, settings, context)
        self._described: Sequence[Mapping[str, Any]] = contract.details["stages"]
        self._models: list[Any] = []

    def load(self) -> None:
        flow = self._module.FLOW
        if len(flow) != len(self._described):
            raise FlowError(
                f"FLOW has {len(flow)} stages when the module is imported and {len(self._described)} in its source; "
                f"write it as one list"
            )
        for number, described in enumerate(self._described, 1):
            try:
                self._models.append(self._loaded(described))
            except Exception as error:
                raise FlowError(
                    f"{stage_name(number, described)} could not be loaded: {type(error).__name__}: {error}"
                ) from error

    def stand_in(self) -> None:
        raise FlowError("the stages of a flow need their models; write stages: predictor")

    def hooks(self) -> Hooks:
        stages = []
        for index, (described, model, entry) in enumerate(
            zip(self._described, self._models, self._module.FLOW, strict=True)
        ):
            number, constants = index + 1, {**self._constants, "model": model}
            name = stage_name(number, described)
            functions = _functions(entry)
            post = self._bound(f"post {number}", functions.get("post"), constants)
            if number == len(self._described):
                post = _checked(post, name)
            predict = self._bound(f"predict {number}", entry[1], constants) or _predict(model)
            pre = self._bound(f"pre {number}", functions.get("pre"), constants)
            stages.append(Stage(pre, predict, post, name=name))
        return tuple(stages)

    def optional(self, role: str) -> Callable[[Mapping[str, Any]], Any] | None:
        return None if " " in role else super().optional(role)

    def _loaded(self, described: Mapping[str, Any]) -> Any:
        if described["type"] == "python":
            return None
        return load_model(
            described,
            self._context.model_dir,
            self._context.device,
            settings=self._settings,
            module=self._module,
        )

    def _bound(self, role: str, function: Any, constants: Mapping[str, Any]) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        if isinstance(function, str):  # ("python", "to_matrix")
            function = getattr(self._module, function)
        return bind(function, hook, constants)


def stage_name(number: int, described: Mapping[str, Any]) -> str:
    """`stage 2, xgboost_classifier head.json`."""
    return f"stage {number}, {described['type']} {described['shown']}"


def _functions(entry: Sequence[Any]) -> Mapping[str, Any]:
    """`pre` and `post` of a stage; a lone function is its `post`."""
    if len(entry) < 3 or entry[2] is None:
        return {}
    return entry[2] if isinstance(entry[2], Mapping) else {"post": entry[2]}


def _predict(model: Callable[[Any], Any]) -> BoundHook:
    return BoundHook("predict", lambda item: model(item.inputs))


def _checked(post: BoundHook | None, name: str) -> BoundHook:
    """The last `post`, or what is there in its place: its result must be fit for an answer."""

    async def awaited(coroutine: CoroutineType[Any, Any, Any]) -> Any:
        return _fit(await coroutine, name)

    def call(item: Item) -> Any:
        if post is None:
            return _fit(item.outputs, name)
        value = post.call(item)
        return awaited(value) if type(value) is CoroutineType else _fit(value, name)

    return BoundHook("post", call)


def _fit(value: Any, name: str) -> Any:
    numpy: Any = sys.modules.get("numpy")  # without it there are no arrays
    if not isinstance(value, list | dict | torch.Tensor) and not (
        numpy is not None and isinstance(value, numpy.ndarray)
    ):
        raise EncodeError(
            f"{name} ends in {type(value).__name__}; the last stage of a flow must end in a list, dict, array or "
            f"tensor"
        )
    return value


USER_MODULE = FlowModule
