"""Which kind of model an object is, and what a project of that kind has: the draft, and the live object's own hooks."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.modules import is_own
from handlergen.creation.source_code import without_options, write, write_callable
from handlergen.errors import HandlergenError
from handlergen.project.settings import EXECUTABLE_FORMATS
from handlergen.project.weights_file import weights_format

KINDS = (
    "a function, or an object of your own class that is called like one",
    "a torch.nn.Module",
    "TorchScript",
    "a torch.export.ExportedProgram",
    "a scikit-learn, XGBoost or LightGBM model",
    "a transformers pipeline, model, or (model, tokenizer); a SentenceTransformer",
    "an onnxruntime.InferenceSession or onnx.ModelProto",
    "a file of TorchScript (.pt), an exported program (.pt2) or ONNX",
    "a list of flow stages: [(type, model, {'pre': f, 'post': g}), ...]",
)


@dataclass(frozen=True)
class Options:
    """What the caller says about a model besides the model.

    Attributes:
        hooks: The caller's functions by role: `preprocess`, `predict`, `postprocess`.
        arguments: Of the constructor of an nn.Module's class.
        file_format: `joblib`: scikit-learn models are pickled; None: the safe format of the kind.
        example: As given; some kinds need one.
    """

    hooks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    file_format: str | None = None
    example: Any = None


@dataclass(frozen=True)
class Sketch:
    """What becomes of an object.

    Attributes:
        title: What it is, for the module's docstring and the README: `A scikit-learn Pipeline.`
        draft: The project.
        live: Names of the module -> what the live object has in their place, to ask the live object through the same
            pipeline. A hook among them need not be in the module: `load` without parameters, `predict(model, inputs)`.
        stages: Of a flow, its live stages, in place of the module's `FLOW`.
    """

    title: str
    draft: Draft
    live: Mapping[str, Any]
    stages: tuple[Any, ...] = ()


_SKETCHES = {
    "program": "programs.sketch_program",
    "table": "tabular.sketch_tabular",
    "transformers": "transformers_models.sketch_transformers",
    "network": "torch_models.sketch_network",
    "flow": "flows.sketch_flow",
    "function": "kinds.sketch_function",
}
"""Kind -> the function that makes the sketch; imported when it is needed."""


def sketch(model: Any, options: Options) -> Sketch:
    """Return what becomes of an object.

    Raises:
        HandlergenError: The object is of no known kind, or cannot be written down.
    """
    kind = _kind(model)
    if kind is None:
        raise _unknown(model)
    if options.file_format and kind != "table":
        raise HandlergenError(
            f"format={options.file_format!r} is for scikit-learn models, not for a {type(model).__name__}",
            hint="Leave it out: the other kinds have one format each.",
        )
    module, _, function = _SKETCHES[kind].partition(".")
    found: Sketch = getattr(importlib.import_module(f"handlergen.creation.{module}"), function)(model, options)
    return found


def family(model: Any) -> set[str]:
    """Return the top-level packages in which an object's class and its bases are defined."""
    return {base.__module__.partition(".")[0] for base in type(model).__mro__}


def is_program_file(model: Any) -> bool:
    """Return whether an object is the path of a file that holds an executable program."""
    return isinstance(model, str | Path) and weights_format(Path(model)) in EXECUTABLE_FORMATS


def _kind(model: Any) -> str | None:
    packages = family(model)
    kinds: dict[str, Callable[[], bool]] = {
        "program": lambda: is_program_file(model) or bool(packages & {"onnx", "onnxruntime"}) or _is_program(model),
        "transformers": lambda: (
            bool(packages & {"transformers", "sentence_transformers"}) or (type(model) is tuple and _is_pair(model))
        ),
        "table": lambda: bool(packages & {"sklearn", "xgboost", "lightgbm"}),
        "network": lambda: "torch.nn.modules.module" in {base.__module__ for base in type(model).__mro__},
        "flow": lambda: isinstance(model, list),
        "function": lambda: (
            inspect.isroutine(model)
            or isinstance(model, functools.partial)
            or (callable(model) and not isinstance(model, type) and is_own(type(model).__module__))
        ),
    }
    return next((kind for kind, fits in kinds.items() if fits()), None)


def _is_program(model: Any) -> bool:
    if "torch" not in family(model):
        return False
    import torch

    return isinstance(model, torch.jit.ScriptModule | torch.export.ExportedProgram)


def _is_pair(model: Any) -> bool:
    return type(model) is tuple and len(model) == 2 and "transformers" in family(model[0])


def _unknown(model: Any) -> HandlergenError:
    if isinstance(model, type):
        return HandlergenError(
            f"{model.__name__} is a class, no object", hint=f"Give an object: {model.__name__}(...)."
        )
    shown = f"a {type(model).__module__}.{type(model).__qualname__}".replace("a builtins.", "a ")
    kinds = "".join(f"\n  {kind}" for kind in KINDS)
    return HandlergenError(
        f"{shown} is no kind of model that can be written as a project",
        hint=f"Give one of these, or a function predict(inputs) that uses it:{kinds}",
    )


def sketch_function(model: Any, options: Options) -> Sketch:
    """Return the sketch of a plain function: it is `predict`."""
    if "predict" in options.hooks:
        raise HandlergenError("the model is a function, and predict= is another one", hint="Give one of them.")
    draft = Draft(write)
    # An example that is a JSON object, without a preprocess: its keys are the parameters, options among them.
    keywords = "preprocess" not in options.hooks and isinstance(options.example, Mapping | None)
    write_callable(draft, "predict", model if keywords else without_options(model))
    name = getattr(model, "__name__", type(model).__name__)
    return Sketch(f"The function {name}.", draft, {"predict": model})
