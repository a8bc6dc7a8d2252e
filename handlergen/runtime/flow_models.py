"""The models of a flow's stages, each as a function from inputs to outputs. A library is imported by who needs it."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .contract import RuntimeSettings
from .state_dict import load_weights
from .weights import call_torch, load_executable

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
