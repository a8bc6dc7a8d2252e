"""A source of no form: what it was probably meant to be."""

from __future__ import annotations

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.forms import sagemaker
from handlergen.forms.module_classes import is_module
from handlergen.forms.slips import method_lines, near_names, rename
from handlergen.methods import find_method


def meant(source: Source) -> Problem | None:
    """The problem that stands between the source and the form it resembles; None if it resembles none."""
    return _flow(source) or _sagemaker(source) or _model_class(source) or _module(source)


def _flow(source: Source) -> Problem | None:
    for name, binding in source.module.bindings.items():
        if name != "FLOW" and name.upper() == "FLOW":
            message = f"there is no module-level predict, and `{name}` is no FLOW"
            return Problem(
                source.module.file, binding.line, message, f"If it is a flow, rename {name} to FLOW."
            )
    return None


def _sagemaker(source: Source) -> Problem | None:
    lines = {binding.name: binding.line for binding in source.module.functions()}
    for name, function in near_names(lines, sagemaker.FUNCTIONS, ()):
        message = f"there is no module-level predict, and `{name}` is none of SageMaker's functions"
        return Problem(
            source.module.file, lines[name], message, f"If it is meant to be {function}, rename it."
        )
    return None


def _model_class(source: Source) -> Problem | None:
    wanted = source.class_name
    for node in source.module.classes():
        if find_method(source.module, node, "predict"):
            message = f"there is no module-level predict, and a class that has one must be called {wanted}"
            return Problem(source.module.file, node.lineno, message, f"Rename {node.name} to {wanted}.")
        if node.name == wanted and not is_module(source.module, node):
            fix = rename(method_lines(node), "predict") or "Write def predict(self, inputs)."
            return Problem(source.module.file, node.lineno, f"class {wanted} has no predict", fix)
    return None


def _module(source: Source) -> Problem | None:
    for node in source.module.classes():
        if is_module(source.module, node):
            return Problem(
                source.module.file,
                node.lineno,
                f"there is no module-level predict, and {node.name} has no preprocess or postprocess of its own",
                f"Write def postprocess(self, output) into {node.name}, or def predict(inputs, model) beside it, and "
                f"def load(context) that returns a {node.name}.",
            )
    return None
