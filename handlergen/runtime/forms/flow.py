"""The `flow` form: `FLOW = [...]`, a list of models that a request passes one after the other."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CoroutineType
from typing import Any

import torch

from ..codec.content import optional_module
from ..codec.errors import EncodeError
from ..pipeline.hooks import BoundHook, Hooks, Item, ModelHooks, bind
from .loading import UserModule
from .weights import EXECUTABLE, call_torch, load_executable, load_weights

#: What a stage asks its scikit-learn or XGBoost estimator for.
_METHODS = {
    "sklearn": "predict",
    "sklearn_classifier": "predict_proba",
    "sklearn_preprocessor": "transform",
    "xgboost_classifier": "predict_proba",
    "xgboost_regressor": "predict",
}

_PICKLES = (".pkl", ".pickle", ".joblib", ".p")

_Described = Mapping[str, Any]
"""A stage as inspection described it: `type`, `file`, `shown`, `format`, `options` and `class`."""


class FlowError(Exception):
    """A stage cannot be loaded; names it."""


class FlowModule(UserModule):
    """The stages of `FLOW`, each with its model.

    The contract's `details["stages"]` describes them. Their functions are taken from the module's own `FLOW`; the
    contract has the functions' signatures as hooks with the roles `pre N`, `predict N` and `post N`.
    """

    def load(self) -> None:
        flow, described = self._module.FLOW, self._described
        if len(flow) != len(described):
            raise FlowError(
                f"FLOW has {len(flow)} stages when the module is imported and {len(described)} in its source; "
                f"write it as one list"
            )
        self._models: list[Any] = []
        for number, stage in enumerate(described, 1):
            try:
                self._models.append(None if stage["type"] == "python" else self._load_model(stage))
            except Exception as error:
                raise FlowError(
                    f"{_stage_name(number, stage)} could not be loaded: {type(error).__name__}: {error}"
                ) from error

    def load_without_model(self) -> None:
        raise FlowError("the stages of a flow need their models; write stages: predictor")

    def hooks(self) -> Hooks:
        found = []
        stages = zip(self._described, self._models, self._module.FLOW)
        for number, (described, model, written) in enumerate(stages, 1):
            constants = {**self._constants, "model": model}
            name = _stage_name(number, described)
            functions = _functions(written)
            post = self._bound_to(f"post {number}", functions.get("post"), constants)
            if number == len(self._described):
                post = _checked(post, name)
            predict = self._bound_to(f"predict {number}", written[1], constants) or _predict_hook(model)
            pre = self._bound_to(f"pre {number}", functions.get("pre"), constants)
            found.append(ModelHooks(pre, predict, post, name=name))
        return tuple(found)

    @property
    def _described(self) -> Sequence[_Described]:
        stages: Sequence[_Described] = self._contract.details["stages"]
        return stages

    def _bound_to(self, role: str, function: Any, constants: Mapping[str, Any]) -> BoundHook | None:
        hook = self._contract.hooks.get(role)
        if hook is None:
            return None
        if isinstance(function, str):  # ("python", "to_matrix")
            function = getattr(self._module, function)
        return bind(function, hook, constants)

    def _load_model(self, stage: _Described) -> Any:
        """Load the model of one stage; raises ImportError, which names the requirement, without its library.

        scikit-learn's models (and XGBoost's when they are pickled) are unpickled, or read by skops with every class
        that they name: they are the author's own files in the author's own archive, as the module's code is.
        """
        kind, device = stage["type"], self._context.device
        path = self._context.model_dir / stage["file"] if stage["file"] else self._context.model_dir
        if kind == "torch":
            return self._load_torch(stage, path)
        if kind == "onnx":
            return load_executable(path, "onnx", device)
        if kind == "spacy":
            return _library("spacy").load(path if stage["file"] else stage["shown"])
        if kind == "huggingface_pipeline":
            options = dict(stage["options"])
            if stage["file"]:
                options["model"] = str(path)
            return _library("transformers").pipeline(**options, device=device)
        return estimator_call(kind, _xgboost(kind, path, device) if kind.startswith("xgboost") else _unpickled(path))

    def _load_torch(self, stage: _Described, path: Path) -> Callable[[Any], Any]:
        device, settings = self._context.device, self._settings
        if stage["format"] in EXECUTABLE:
            program = load_executable(path, stage["format"], device)
            return lambda inputs: program(dense(inputs))
        network_class = getattr(self._module, stage["class"])
        network = load_weights(
            path,
            stage["format"],
            make=lambda: network_class(*settings.model_args, **settings.model_kwargs),
            main=self._module,
        )
        network = network.to(device).eval()
        return lambda inputs: call_torch(network, dense(inputs), device)


def estimator_call(kind: str, estimator: Any) -> Callable[[Any], Any]:
    """Return what a stage of this type asks its scikit-learn or XGBoost estimator for."""
    method = getattr(estimator, _METHODS[kind])
    if kind.startswith("xgboost"):
        return lambda inputs: method(_numbers(_as_array(inputs)))
    return lambda inputs: method(_as_array(inputs))


def _stage_name(number: int, described: _Described) -> str:
    """Return a stage's name for messages: `stage 2, xgboost_classifier head.json`."""
    return f"stage {number}, {described['type']} {described['shown']}"


def _functions(written: Sequence[Any]) -> Mapping[str, Any]:
    """Return `pre` and `post` of a stage as `FLOW` has it; a lone function is its `post`."""
    if len(written) < 3 or written[2] is None:
        return {}
    return written[2] if isinstance(written[2], Mapping) else {"post": written[2]}


def _predict_hook(model: Callable[[Any], Any]) -> BoundHook:
    return BoundHook("predict", lambda item: model(item.inputs))


def _checked(post: BoundHook | None, name: str) -> BoundHook:
    """Return the last `post`, or a hook in its place, that checks that the result can be an answer."""

    async def awaited(coroutine: CoroutineType[Any, Any, Any]) -> Any:
        return _checked_answer(await coroutine, name)

    def call(item: Item) -> Any:
        value = item.outputs if post is None else post.call(item)
        return awaited(value) if type(value) is CoroutineType else _checked_answer(value, name)

    return BoundHook("post", call)


def _checked_answer(value: Any, name: str) -> Any:
    numpy: Any = sys.modules.get("numpy")  # without it there are no arrays
    if isinstance(value, (list, dict, torch.Tensor)) or (numpy and isinstance(value, numpy.ndarray)):
        return value
    raise EncodeError(
        f"{name} ends in {type(value).__name__}; the last stage of a flow must end in a list, dict, array or tensor"
    )


def _as_array(value: Any) -> Any:
    """Return a tensor as an array on the CPU; anything else (text, data frames, sparse matrices) as it is."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _numbers(value: Any) -> Any:
    """Return lists, as JSON brings them, as an array: unlike scikit-learn, XGBoost does not take lists."""
    import numpy as np

    return np.asarray(value, dtype=np.float32) if isinstance(value, list) else value


def dense(value: Any) -> Any:
    """Return a sparse matrix, as scikit-learn's encoders and vectorizers return it, as the array that torch takes."""
    return value.toarray() if hasattr(value, "toarray") else value


def _xgboost(kind: str, path: Path, device: torch.device) -> Any:
    xgboost = _library("xgboost")
    if path.suffix in _PICKLES:
        return _unpickled(path)
    estimator = xgboost.XGBClassifier() if kind == "xgboost_classifier" else xgboost.XGBRegressor()
    estimator.load_model(path)
    if device.type == "cuda":
        estimator.set_params(device=str(device))
    return estimator


def _unpickled(path: Path) -> Any:
    try:
        if path.suffix == ".skops":
            skops = _library("skops.io")
            return skops.load(path, trusted=skops.get_untrusted_types(file=path))
        if joblib := optional_module("joblib"):
            return joblib.load(path)
        with path.open("rb") as file:  # joblib comes with scikit-learn; plain pickles need neither
            return pickle.load(file)  # noqa: S301 - the author's own file
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        requirement = "scikit-learn" if package == "sklearn" else package
        raise ImportError(
            f"{path.name} holds an object of {error.name}, which is not installed here; add {requirement} to the "
            "requirements"
        ) from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this stage needs {name}, which cannot be imported here ({error}); add {name} to the requirements"
        ) from error


USER_MODULE = FlowModule
