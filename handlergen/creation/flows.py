"""A list of flow stages with live models and functions: `[(type, object_or_path, {"pre": f, "post": g}), ...]`."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.estimators import add_estimator
from handlergen.creation.kinds import Options, Sketch, family
from handlergen.creation.programs import sketch_program
from handlergen.creation.requirements import requirement_of
from handlergen.creation.source_code import without_options, write, write_callable
from handlergen.errors import HandlergenError
from handlergen.inspection.forms.flow import STAGE_TYPES, nearest_type
from handlergen.runtime.forms.flow import dense, estimator_call

Call = Callable[[Any], Any]


def sketch_flow(stages: list[Any], options: Options) -> Sketch:
    """Return the sketch of a flow.

    Raises:
        HandlergenError: A stage is not as `FLOW` may have it, or its model or function cannot be written down.
    """
    if options.hooks:
        raise HandlergenError(
            f"a flow has no {', '.join(options.hooks)} of its own: each stage has",
            hint='Write it into the first or last stage: (type, model, {"pre": f, "post": g}).',
        )
    flow = _Flow()
    for number, stage in enumerate(stages, 1):
        flow.add(number, stage)
    if not stages:
        raise HandlergenError("the list of flow stages is empty", hint='Write [("sklearn_classifier", model)].')
    lines = "".join(f"    {line},\n" for line in flow.lines)
    flow.draft.definitions.append(f"FLOW = [\n{lines}]\n")
    return Sketch(f"A flow of {len(stages)} stages.", flow.draft, {}, tuple(flow.live))


class _Flow:
    """The stages so far.

    Attributes:
        lines: Of the list `FLOW` in the module.
        live: The same stages with the live objects.
    """

    def __init__(self) -> None:
        self.draft = Draft(write)
        self.lines: list[str] = []
        self.live: list[Any] = []
        self._names: dict[str, Any] = {}

    def add(self, number: int, stage: Any) -> None:
        """Add one stage."""
        if not isinstance(stage, tuple | list) or not 2 <= len(stage) <= 3:
            raise HandlergenError(
                f"stage {number} is no (type, model) or (type, model, functions)",
                hint='Write ("sklearn_classifier", model, {"pre": f, "post": g}).',
            )
        kind, model, third = (*stage, None)[:3]
        kind = _kind(kind, number)
        functions = third if isinstance(third, Mapping) else {"post": third}
        if wrong := set(functions) - {"pre", "post"}:
            raise HandlergenError(
                f"stage {number} has functions for {', '.join(map(repr, sorted(map(str, wrong))))}",
                hint='Only "pre" and "post" are allowed.',
            )
        given = {role: function for role, function in functions.items() if function is not None}
        try:
            text, live = self._model(kind, model, number)
            named = {role: self._function(function, f"{role}_{number}") for role, function in given.items()}
        except HandlergenError as error:
            raise HandlergenError(f"stage {number}, {kind}: {error.message}", hint=error.hint) from error
        written = "".join(f'"{role}": {name}, ' for role, name in named.items()).removesuffix(", ")
        self.lines.append(f'("{kind}", {text}' + (f", {{{written}}})" if written else ")"))
        self.live.append((("python" if callable(live) else kind), live, given))

    def _function(self, function: Any, otherwise: str) -> str:
        """Write a function into the module; return its name there."""
        if without_options(function) is not function:
            self._names[otherwise] = function
            write_callable(self.draft, otherwise, without_options(function))
            return otherwise
        name = getattr(function, "__name__", otherwise)
        if not name.isidentifier() or self._names.get(name, function) is not function:
            name = otherwise
        if name not in self._names:
            self._names[name] = function
            write_callable(self.draft, name, function)
        return name

    def _model(self, kind: str, model: Any, number: int) -> tuple[str, Any]:
        """Return the second element of a stage as source, and what is in its place live."""
        stem = f"stage{number}"
        if kind == "python":
            if not inspect.isroutine(model):
                raise HandlergenError(f"a {type(model).__name__} is no function")
            return self._function(model, f"predict_{number}"), model
        if isinstance(model, str | Path):
            return self._path(kind, model, number)
        if kind == "huggingface_pipeline":
            self.draft.files[stem] = model.save_pretrained
            self._require("transformers", "safetensors")
            return f'{{"task": "{model.task}", "model": "{stem}"}}', model
        if kind == "spacy":
            self.draft.files[stem] = model.to_disk
            self._require("spacy")
            return f'"{stem}"', model
        if kind in ("torch", "onnx"):
            return self._program(kind, model, stem)
        return self._estimator(kind, model, stem)

    def _estimator(self, kind: str, model: Any, stem: str) -> tuple[str, Call]:
        if kind.startswith("xgboost"):
            if "xgboost" not in family(model):
                raise HandlergenError(f"a {type(model).__name__} is no model of XGBoost")
            file = f"{stem}.json"
            self.draft.files[file] = model.save_model
            self._require("xgboost")
            return f'"{file}"', estimator_call(kind, model)
        if "sklearn" not in family(model):
            raise HandlergenError(f"a {type(model).__name__} is no scikit-learn model")
        add_estimator(self.draft, model, f"{stem}.skops")  # the flow reads it, with every class that it names
        return f'"{stem}.skops"', estimator_call(kind, model)

    def _program(self, kind: str, model: Any, stem: str) -> tuple[str, Call]:
        import torch

        if kind == "onnx" and not family(model) & {"onnx", "onnxruntime"}:
            raise HandlergenError(f"a {type(model).__name__} is no ONNX model")
        if kind == "torch" and not isinstance(model, torch.jit.ScriptModule | torch.export.ExportedProgram):
            raise HandlergenError(
                f"a {type(model).__name__} is no program, and a stage has its model in one file",
                hint="Give torch.export.export(model, (example,)) or torch.jit.trace(model, example).",
            )
        found = sketch_program(model, Options())
        file = str(found.draft.settings["weights"])
        beside = len(found.draft.files) > 1  # weights that the ONNX file names
        place = file if beside else f"{stem}{Path(file).suffix}"
        self.draft.files |= found.draft.files if beside else {place: found.draft.files[file]}
        if kind == "onnx":
            self._require("onnxruntime")
        call = found.live["load"]()
        return f'"{place}"', lambda inputs: call(dense(inputs) if kind == "torch" else inputs)

    def _path(self, kind: str, model: str | Path, number: int) -> tuple[str, Any]:
        """Copy a stage's file or directory; the live flow has the copy, too."""
        path = Path(model)
        if not path.exists():
            if kind == "spacy":
                self._require("spacy")
                return f'"{model}"', str(model)
            raise HandlergenError(f"there is no file {path}")
        name = path.name
        if name in self.draft.files:
            name = f"stage{number}_{name}"
        self.draft.files[name] = lambda target: (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
        for package in {"onnx": ["onnxruntime"], "spacy": ["spacy"]}.get(kind, [kind.partition("_")[0]]):
            if package in ("sklearn", "xgboost", "onnxruntime", "spacy"):
                self._require(package)
        return f'"{name}"', name

    def _require(self, *modules: str) -> None:
        self.draft.settings.setdefault("requirements", []).extend(map(requirement_of, modules))


def _kind(kind: Any, number: int) -> str:
    """Return a stage's type; Cerebrium's `model_type.TORCH` is `torch`, too."""
    name = str(getattr(kind, "value", kind)).lower()
    if name in STAGE_TYPES:
        return name
    near = nearest_type(name)
    raise HandlergenError(
        f"stage {number}: there is no stage type {name!r}",
        hint=f'Did you mean "{near}"?' if near else f"The types are: {', '.join(STAGE_TYPES)}.",
    )
