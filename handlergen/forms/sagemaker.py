"""`model_fn`, `input_fn`, `predict_fn`, `output_fn`: SageMaker's PyTorch toolkit.

Arguments go by position, and one more parameter than the toolkit's receives the context: the toolkit counts the
parameters of each function (sagemaker_inference/transformer.py, `_run_handler_function`). How it runs:
`handlergen/runtime/form_sagemaker.py`.
"""

from __future__ import annotations

import ast

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms.form import Form
from handlergen.forms.slips import function_slips, rename
from handlergen.forms.streams import generator_problem
from handlergen.hook_signatures import plain_parameters
from handlergen.runtime.contract import Contract, Hook, Parameter
from handlergen.source_module import call_kind
from handlergen.source_tree import Found

#: The toolkit's functions: the role each has here, and what it is called with.
FUNCTIONS = {
    "pre_model_fn": ("setup", ("model_dir",)),
    "model_fn": ("load", ("model_dir",)),
    "model_warmup_fn": ("warmup", ("model_dir", "model")),
    "input_fn": ("preprocess", ("data", "content_type")),
    "predict_fn": ("predict", ("inputs", "model")),
    "output_fn": ("postprocess", ("outputs", "accept")),
}

#: The toolkit's names of what it passes.
_ITS_NAMES = {"inputs": "data", "outputs": "prediction"}

_RECOGNISED = ("model_fn", "input_fn", "predict_fn", "output_fn")


def recognise(source: Source) -> str | None:
    """Any of the toolkit's four functions."""
    for name in _RECOGNISED:
        binding = source.module.bindings.get(name)
        if binding:
            return f"`{name}`, line {binding.line}"
    return None


def inspect(source: Source) -> Findings:
    """The contract of the functions that are there; the toolkit's defaults stand for the others."""
    findings = Findings()
    hooks = {}
    for name, (role, order) in FUNCTIONS.items():
        found = source.tree.function(source.module, name)
        if isinstance(found, Problem):
            findings.problems.append(found)
        elif found is not None:
            hooks[role] = _hook(source, name, order, found, findings)
    findings.problems += _transform_fn(source)
    findings.problems += _model(source, hooks)
    findings.warnings += function_slips(source.module, FUNCTIONS, [hook.name for hook in hooks.values()])
    settings = source.settings
    if _reads_files(source) and not settings.weights and not settings.extra_files:
        findings.warnings.append(
            f"{source.module.file}: nothing but the module is packed. If model_fn reads files of model_dir, name "
            f"them: weights: or extra_files:"
        )
    if not findings.problems:
        findings.contract = Contract("sagemaker", source.name, hooks)
    return findings


def _hook(source: Source, name: str, order: tuple[str, ...], found: Found, findings: Findings) -> Hook:
    node, file = found.node, found.module.file
    wanted = f"def {name}({', '.join(_ITS_NAMES.get(part, part) for part in order)}[, context])"
    kind = call_kind(node)
    if kind in ("generator", "async_generator"):
        findings.problems.append(generator_problem(file, name, node))
    parameters = list(plain_parameters(node))
    if node.args.vararg or node.args.kwarg or any(parameter.keyword_only for parameter in parameters):
        findings.problems.append(
            Problem(file, node.lineno, f"{name} is called by position", f"Write {wanted}.")
        )
    elif len(parameters) not in (len(order), len(order) + 1):
        count = f"{len(parameters)} parameter{'s' if len(parameters) != 1 else ''}"
        findings.problems.append(
            Problem(
                file,
                node.lineno,
                f"{name} takes {count}, not {len(order)} or {len(order) + 1}",
                f"Write {wanted}.",
            )
        )
    sources = (*order, "context")
    line = node.lineno if found.module is source.module else 0
    return Hook(
        name,
        line,
        kind,
        tuple(
            Parameter(parameter.name, what, required=parameter.required)
            for parameter, what in zip(parameters, sources, strict=False)
        ),
    )


def _reads_files(source: Source) -> bool:
    """Does model_fn use its first parameter, the directory?"""
    found = source.tree.function(source.module, "model_fn")
    if not isinstance(found, Found):
        return False
    first = next(plain_parameters(found.node), None)
    return first is not None and any(
        isinstance(node, ast.Name) and node.id == first.name for node in ast.walk(found.node)
    )


def _transform_fn(source: Source) -> list[Problem]:
    binding = source.module.bindings.get("transform_fn")
    if binding is None:
        return []
    return [
        Problem(
            source.module.file,
            binding.line,
            "transform_fn does in one what must be apart: only predict_fn is to hold the device",
            "Take it apart into input_fn, predict_fn and output_fn.",
        )
    ]


def _model(source: Source, hooks: dict[str, Hook]) -> list[Problem]:
    """Without model_fn, the toolkit's default reads TorchScript."""
    settings, held = source.settings, source.weights_format
    if "load" in hooks or "model_fn" in source.module.bindings:
        return []
    file = source.module.file
    if not settings.weights:
        return [
            Problem(
                file,
                0,
                "there is no model_fn, and no TorchScript file that its default could load",
                rename((binding.name for binding in source.module.functions()), "model_fn")
                or "Write def model_fn(model_dir), or set weights: to a TorchScript file.",
            )
        ]
    if held in (None, "torchscript"):
        return []
    return [
        Problem(
            file,
            0,
            f"there is no model_fn, and its default loads TorchScript: the weights {settings.weights} are "
            f"of the format {held}",
            "Write def model_fn(model_dir), which returns the model.",
        )
    ]


FORM = Form("sagemaker", recognise, inspect)
