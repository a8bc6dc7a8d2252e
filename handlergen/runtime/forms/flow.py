"""The `flow` form: `FLOW = [...]`, a list of models that a request passes one after the other."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CoroutineType, ModuleType
from typing import Any

import torch

from ..codec.errors import EncodeError
from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import BoundHook, Hooks, Item, Stage, bind
from .loading import ImportedModule
from .weights import call_torch, load_executable, load_weights


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


Model = Callable[[Any], Any]

#: What a stage asks its scikit-learn or XGBoost estimator for.
_METHODS = {
    "sklearn": "predict",
    "sklearn_classifier": "predict_proba",
    "sklearn_preprocessor": "transform",
    "xgboost_classifier": "predict_proba",
    "xgboost_regressor": "predict",
}

_PICKLES = (".pkl", ".pickle", ".joblib", ".p")


def load_model(
    described: Mapping[str, Any],
    root: Path,
    device: torch.device,
    *,
    settings: RuntimeSettings,
    module: ModuleType,
) -> Model:
    """The model of one stage.

    scikit-learn's models (and XGBoost's when they are pickled) are unpickled: they are the author's own files in
    the author's own archive, as the module's code is.

    Args:
        described: `type`, `file`, and for torch `format` and `class`, for huggingface_pipeline `options`.
        root: What `file` is relative to.
        device: Where torch models go.
        settings: `model_args` and `model_kwargs` for the class of a state dict.
        module: The user's.

    Raises:
        ImportError: The library is not installed; names the requirement.
        Exception: Whatever loading raises.
    """
    kind = described["type"]
    path = root / described["file"] if described["file"] else root
    if kind == "torch":
        return _torch(described, path, device, settings=settings, module=module)
    if kind == "onnx":
        return load_executable(path, "onnx", device)
    if kind == "spacy":
        spacy = _library("spacy", "spacy")
        model: Model = spacy.load(path if described["file"] else described["shown"])
        return model
    if kind == "huggingface_pipeline":
        return _pipeline(described, path, device)
    estimator = _xgboost(kind, path, device) if kind.startswith("xgboost") else _unpickled(path)
    method: Model = getattr(estimator, _METHODS[kind])
    if kind.startswith("xgboost"):
        return lambda inputs: method(_numbers(as_array(inputs)))
    return lambda inputs: method(as_array(inputs))


def as_array(value: Any) -> Any:
    """Tensors to arrays on the CPU; what is neither (lists of text, data frames, sparse matrices) as it is."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _numbers(value: Any) -> Any:
    """Lists, as JSON brings them, to an array: XGBoost, unlike scikit-learn, is particular about them."""
    import numpy as np

    return np.asarray(value, dtype=np.float32) if isinstance(value, list) else value


def _torch(
    described: Mapping[str, Any],
    path: Path,
    device: torch.device,
    *,
    settings: RuntimeSettings,
    module: ModuleType,
) -> Model:
    if described["format"] in ("torchscript", "exported"):
        program = load_executable(path, described["format"], device)
    else:
        kind = getattr(module, described["class"])

        def make() -> torch.nn.Module:
            made: torch.nn.Module = kind(*settings.model_args, **settings.model_kwargs)
            return made

        network = load_weights(path, described["format"], make=make, main=module).to(device).eval()

        def program(inputs: Any) -> Any:
            return call_torch(network, inputs, device)

    return lambda inputs: program(_dense(inputs))


def _dense(value: Any) -> Any:
    """scikit-learn's encoders and vectorizers return sparse matrices, which torch does not take."""
    return value.toarray() if hasattr(value, "toarray") else value


def _xgboost(kind: str, path: Path, device: torch.device) -> Any:
    xgboost = _library("xgboost", "xgboost")
    if path.suffix in _PICKLES:
        return _unpickled(path)
    estimator = xgboost.XGBClassifier() if kind == "xgboost_classifier" else xgboost.XGBRegressor()
    estimator.load_model(path)
    if device.type == "cuda":
        estimator.set_params(device=str(device))
    return estimator


def _unpickled(path: Path) -> Any:
    try:
        try:
            joblib: Any = importlib.import_module("joblib")
        except ImportError:  # it comes with scikit-learn; plain pickles need neither
            with path.open("rb") as file:
                return pickle.load(file)  # noqa: S301 - the author's own file
        return joblib.load(path)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path.name} holds an object of {error.name}, which is not installed here; add "
            f"{_REQUIREMENTS.get((error.name or '').partition('.')[0], error.name)} to the requirements"
        ) from error


def _pipeline(described: Mapping[str, Any], path: Path, device: torch.device) -> Model:
    transformers = _library("transformers", "transformers")
    options = dict(described["options"])
    if described["file"]:
        options["model"] = str(path)
    model: Model = transformers.pipeline(**options, device=device)
    return model


_REQUIREMENTS = {"sklearn": "scikit-learn", "xgboost": "xgboost"}


def _library(name: str, requirement: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this stage needs {name}, which cannot be imported here ({error}); add {requirement} to the requirements"
        ) from error
