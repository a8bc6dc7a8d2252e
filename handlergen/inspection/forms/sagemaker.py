"""The `sagemaker` form: `model_fn`, `input_fn`, `predict_fn`, `output_fn` of SageMaker's PyTorch toolkit.

Arguments go by position, and one more parameter than the toolkit's receives the context: the toolkit counts the
parameters of each function (sagemaker_inference/transformer.py, `_run_handler_function`). How it runs:
`handlergen/runtime/forms/sagemaker.py`.
"""

from __future__ import annotations

import ast

from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms import functions
from handlergen.inspection.forms.form import check_returns, misspelt, rename
from handlergen.inspection.hook_signatures import plain_parameters
from handlergen.inspection.source_module import call_kind
from handlergen.inspection.source_tree import Found
from handlergen.runtime.contract import Contract, Hook, Parameter

FUNCTIONS = {
    "pre_model_fn": ("setup", ("model_dir",)),
    "model_fn": ("load", ("model_dir",)),
    "model_warmup_fn": ("warmup", ("model_dir", "model")),
    "input_fn": ("preprocess", ("data", "content_type")),
    "predict_fn": ("predict", ("inputs", "model")),
    "output_fn": ("postprocess", ("outputs", "accept")),
}
"""The toolkit's functions, each with its role here and its arguments."""

_TOOLKIT_NAMES = {"inputs": "data", "outputs": "prediction"}
_RECOGNISED = ("model_fn", "input_fn", "predict_fn", "output_fn")


def recognise(source: Source) -> str | None:
    """Find one of the toolkit's four functions."""
    for name in _RECOGNISED:
        binding = source.module.bindings.get(name)
        if binding:
            return f"`{name}`, line {binding.line}"
    return None


def inspect(source: Source) -> Findings:
    """Return the contract of the functions that are defined; the toolkit's defaults replace the others."""
    findings = Findings()
    hooks = {}
    for name, found in functions.found_functions(source, FUNCTIONS, findings).items():
        role, order = FUNCTIONS[name]
        hooks[role] = _hook(source, name, order, found, findings)
    transform = source.module.bindings.get("transform_fn")
    if transform is not None:
        message = "transform_fn does all steps in one call, but only predict_fn may hold the device"
        fix = "Split it into input_fn, predict_fn and output_fn."
        findings.problem(source.module.file, transform.line, message, fix)
    _check_model(source, hooks, findings)
    lines = source.module.function_lines()
    findings.warnings += misspelt(source.module.file, lines, FUNCTIONS, [hook.name for hook in hooks.values()])
    settings = source.settings
    if _reads_files(source) and not settings.weights and not settings.extra_files:
        message = "only the module is packed. If model_fn reads files of model_dir, name them: weights: or extra_files:"
        findings.warn(source.module.file, 0, message)
    if not findings.problems:
        findings.contract = Contract("sagemaker", source.name, hooks)
    return findings


def _hook(source: Source, name: str, order: tuple[str, ...], found: Found, findings: Findings) -> Hook:
    node, file = found.node, found.module.file
    fix = f"Write def {name}({', '.join(_TOOLKIT_NAMES.get(part, part) for part in order)}[, context])."
    check_returns(file, name, node, findings)
    parameters = list(plain_parameters(node))
    if node.args.vararg or node.args.kwarg or any(parameter.keyword_only for parameter in parameters):
        findings.problem(file, node.lineno, f"the arguments of {name} are passed by position", fix)
    elif len(parameters) not in (len(order), len(order) + 1):
        count = f"{len(parameters)} parameter{'s' if len(parameters) != 1 else ''}"
        message = f"{name} takes {count}, not {len(order)} or {len(order) + 1}"
        findings.problem(file, node.lineno, message, fix)
    passed = tuple(
        Parameter(parameter.name, what, required=parameter.required)
        for parameter, what in zip(parameters, (*order, "context"), strict=False)
    )
    return Hook(name, source.line_of(found), call_kind(node), passed)


def _reads_files(source: Source) -> bool:
    """Return whether model_fn uses its first parameter, the directory."""
    found = source.tree.function(source.module, "model_fn")
    if not isinstance(found, Found):
        return False
    first = next(plain_parameters(found.node), None)
    return first is not None and any(
        isinstance(node, ast.Name) and node.id == first.name for node in ast.walk(found.node)
    )


def _check_model(source: Source, hooks: dict[str, Hook], findings: Findings) -> None:
    """Check that there is something to load: without model_fn, the toolkit's default reads TorchScript."""
    weights, weights_format = source.settings.weights, source.weights_format
    if "load" in hooks or "model_fn" in source.module.bindings:
        return
    if not weights:
        message = "there is no model_fn, and no TorchScript file that its default could load"
        fix = rename(source.module.function_lines(), "model_fn")
        fix = fix or "Write def model_fn(model_dir), or set weights: to a TorchScript file."
        findings.problem(source.module.file, 0, message, fix)
    elif weights_format not in (None, "torchscript"):
        found = f"the weights {weights} have the format {weights_format}"
        message = f"there is no model_fn, and its default loads TorchScript: {found}"
        findings.problem(source.module.file, 0, message, "Write def model_fn(model_dir), which returns the model.")
