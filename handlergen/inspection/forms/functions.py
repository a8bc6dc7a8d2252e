"""The `functions` form: module-level `predict` and the hooks around it. handlergen's own form, and the simplest."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms.form import check_request, check_returns, check_stream, misspelt, near_names
from handlergen.inspection.hook_signatures import Role, plain_parameters, read_keywords, read_signature
from handlergen.inspection.source_module import SourceModule, call_kind, dotted, full_name
from handlergen.inspection.source_tree import Found
from handlergen.project.settings import EXECUTABLE_FORMATS
from handlergen.project.weights_file import pickled_class
from handlergen.runtime.contract import Contract, Hook, Parameter

_NO_REQUEST = "there is no request when it runs"
_BEFORE_LOAD = {"model": "the model is not loaded yet", "request": _NO_REQUEST}
_ONCE = ("context", "device")

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("setup", ("context",), _ONCE, unavailable=_BEFORE_LOAD),
        Role("load", ("context",), _ONCE, unavailable=_BEFORE_LOAD),
        Role("preprocess", ("data", "files"), takes="data"),
        Role(
            "predict",
            ("inputs",),
            takes="inputs",
            instead="What preprocess returns arrives as one value: unpack it inside predict. Without preprocess, "
            "call: keywords makes the keys of a JSON object the parameters.",
        ),
        Role("postprocess", ("outputs", "input_data", "files"), takes="outputs"),
        Role("explain", ("inputs", "data"), takes="inputs"),
        Role("is_healthy", ("context",), (*_ONCE, "model"), unavailable={"request": _NO_REQUEST}),
    )
}
"""The hooks, in the order in which they run."""

# Names for a hook in other systems, too far from it to be found by spelling.
_OTHER_NAMES = {
    "load_model": "load",
    **dict.fromkeys(("init", "initialize"), "setup"),
    **dict.fromkeys(("inference", "infer"), "predict"),
    **dict.fromkeys(("health", "healthy"), "is_healthy"),
}


def recognise(source: Source) -> str | None:
    """Find a module-level `predict`, wherever it is defined."""
    binding = source.module.bindings.get("predict")
    if binding:
        return f"`predict`, line {binding.line}"
    if source.module.star_imports and source.tree.function(source.module, "predict"):
        return f"`predict`, through the import in line {source.module.star_imports[-1].lineno}"
    return None


def inspect(source: Source) -> Findings:
    """Return the contract of a functions module, or every problem of every hook."""
    findings = Findings()
    file = source.module.file
    found = found_functions(source, ROLES, findings)
    bound = set(found) | {name for name in ROLES if name in source.module.bindings}
    lines = source.module.function_lines()
    findings.warnings += misspelt(file, lines, ROLES, {*bound, "predict"}, _OTHER_NAMES)
    _check_predict(source, bound, findings)
    call = _call(source, found, bound, findings)
    hooks = {
        name: _hook(source, ROLES[name], function, findings, keywords=call == "keywords" and name == "predict")
        for name, function in found.items()
    }
    _check_model_is_made(source, hooks, bound, findings)
    batch = source.settings.batch
    if call == "keywords" and batch in ("list", "collate"):
        message = f"batch: {batch} passes predict one value for several requests, not the keys of a JSON object"
        findings.problem(file, hooks["predict"].line, message, "Write batch: each, or def predict(inputs).")
    elif "predict" in hooks:
        asks = "asks for `request`"
        check_request(file, hooks["predict"], source.settings, findings, source="request", asks=asks)
    check_stream(file, {role: each.node for role, each in found.items()}, source.settings, findings)
    if not findings.problems:
        findings.contract = Contract("functions", source.name, hooks, call=call)
    return findings


def hooks_of(source: Source, names: Iterable[str], findings: Findings) -> dict[str, Hook]:
    """Read the module-level hooks with these roles, for forms that share some (`setup`, `load`) with this one."""
    found = found_functions(source, names, findings)
    hooks = {name: _hook(source, ROLES[name], function, findings) for name, function in found.items()}
    findings.warnings += misspelt(source.module.file, source.module.function_lines(), names, hooks)
    return hooks


def found_functions(source: Source, names: Iterable[str], findings: Findings) -> dict[str, Found]:
    """Find the functions with these names, or the problems why they cannot be read."""
    found = {}
    for name in names:
        function = source.tree.function(source.module, name)
        if isinstance(function, Problem):
            findings.problems.append(function)
        elif function is not None:
            found[name] = function
    return found


def _hook(source: Source, role: Role, found: Found, findings: Findings, *, keywords: bool = False) -> Hook:
    node, file = found.node, found.module.file
    check_returns(file, role.name, node, findings, may_yield=role.name == "predict")
    parameters = _cerebriums(found) if role.name == "predict" and not keywords else ()
    if not parameters:
        read = read_keywords if keywords else read_signature
        parameters = read(node, role, file=file, findings=findings)
    return Hook(role.name, source.line_of(found), call_kind(node), parameters)


def _cerebriums(found: Found) -> tuple[Parameter, ...]:
    """Return the parameters of `predict(item, run_id, logger)`, as Cerebrium's first templates have it; else none."""
    given = list(plain_parameters(found.node))
    sources = ["inputs", *(each.name for each in given[1:])]
    if len(given) < 2 or not {*sources[1:]} <= {"run_id", "logger"}:
        return ()
    return tuple(
        Parameter(each.name, source, each.keyword_only, each.required)
        for each, source in zip(given, sources, strict=True)
    )


def _call(source: Source, found: dict[str, Found], bound: set[str], findings: Findings) -> str:
    """Return `positional` or `keywords`; see the setting `call`."""
    setting = source.settings.call
    predict = found.get("predict")
    if setting == "keywords" and "preprocess" in bound:
        preprocess = source.module.bindings.get("preprocess")
        message = "call: keywords is only for a module without preprocess; with one, predict receives what it returned"
        fix = "Remove preprocess, or write call: positional."
        findings.problem(source.module.file, preprocess.line if preprocess else 0, message, fix)
        return "positional"
    if predict is None or "preprocess" in bound or setting == "positional":
        return "positional"
    named = ROLES["predict"].named
    own = [parameter for parameter in plain_parameters(predict.node) if parameter.name not in named]
    if setting != "keywords" and _cerebriums(predict):
        return "positional"
    several = len(own) > 1 or any(parameter.keyword_only for parameter in own)
    return "keywords" if setting == "keywords" or several else "positional"


def _check_predict(source: Source, bound: set[str], findings: Findings) -> None:
    """Check that the module or its weights can predict, and that something loads the weights."""
    file = source.module.file
    weights, weights_format = source.settings.weights, source.weights_format
    runs = bool(weights) and (weights_format is None or weights_format in EXECUTABLE_FORMATS)
    pickled = pickled_class(source.root / weights) if weights and weights_format == "state_dict" else None
    if weights and not runs and "load" not in bound:
        what = {"state_dict": "a state dict", "safetensors": "tensors only"}.get(str(weights_format), "no program")
        fix = f"Write def load(context), which reads {weights} below context.model_dir and returns the model."
        if pickled:
            what = f"a pickle of a whole object ({pickled})"
            fix = _instead_of_pickle(str(weights), pickled)
        message = f"nothing loads the weights {weights}: they hold {what}, and the module has no load(context)"
        findings.problem(file, 0, message, fix)
    elif pickled and (line := _loads_tensors_only(source.module)):
        refused = f"torch.load refuses {weights}, a pickle of a whole object ({pickled})"
        findings.warn(file, line, f"{refused}. If you trust the file, write weights_only=False.")
    if "predict" in bound or runs:
        return
    pairs = near_names(source.module.function_lines(), ROLES, bound, _OTHER_NAMES)
    near = [name for name, hook in pairs if hook == "predict"]
    fix = "Write def predict(inputs), or set weights: to a TorchScript, exported or ONNX file."
    if near:
        fix = f"Is `{near[0]}` meant to be it? Rename it to predict."
    elif submodule := _submodule_with_predict(source):
        fix = f"{submodule}.py has one: write `from .{submodule} import predict` in __init__.py."
    message = "the file is empty" if source.module.empty else "there is no module-level predict"
    findings.problem(file, 0, message, fix)


def _instead_of_pickle(weights: str, pickled: str) -> str:
    name = pickled.rpartition(".")[2]
    program = Path(weights).with_suffix(".pt2").as_posix()
    return (
        f'Where the network was trained, save its tensors: torch.save(model.state_dict(), "{weights}"). Then write '
        f'def load(context): model = {name}(...); model.load_state_dict(torch.load(context.model_dir / "{weights}")); '
        "return model\n    Or save a program, which needs no class and no load: "
        f'torch.export.save(torch.export.export(model, (example_input,)), "{program}")'
    )


def _loads_tensors_only(module: SourceModule) -> int:
    """Return the line of a `torch.load` that leaves `weights_only` at its default (True since torch 2.6), or 0."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and full_name(module, dotted(node.func)) == "torch.load":
            if any(given.arg in ("weights_only", None) for given in node.keywords):
                continue
            return node.lineno
    return 0


def _check_model_is_made(source: Source, hooks: dict[str, Hook], bound: set[str], findings: Findings) -> None:
    """Check that there is a model for the hooks that ask for `model`."""
    if "load" in bound or source.settings.weights:
        return  # weights that need a load() are reported by _check_predict
    for hook in hooks.values():
        if any(parameter.source == "model" for parameter in hook.parameters):
            message = f"{hook.name} asks for `model`, but the module has no load(context) that returns one"
            fix = "Write def load(context), or set weights: to a TorchScript, exported or ONNX file."
            findings.problem(source.module.file, hook.line, message, fix)


def _submodule_with_predict(source: Source) -> str | None:
    if not source.module.is_package:
        return None
    for path in sorted(source.module.path.parent.glob("*.py")):
        module = source.tree.open(path)
        if not isinstance(module, Problem) and module is not source.module and "predict" in module.bindings:
            return path.stem
    return None
