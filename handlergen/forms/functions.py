"""The `functions` form: module-level `predict` and the hooks around it. handlergen's own; the simplest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms.form import Form
from handlergen.forms.slips import function_slips, near_names, not_called
from handlergen.forms.streams import generator_problem, stream_problems, stream_warnings
from handlergen.hook_signatures import Role, Signature, plain_parameters, read_keywords, read_signature
from handlergen.runtime.contract import Contract, Hook
from handlergen.settings import EXECUTABLE_FORMATS
from handlergen.source_module import call_kind, wrapped_in_context_manager
from handlergen.source_tree import Found

_NO_REQUEST = "there is no request when it runs"
_BEFORE_LOAD = {"model": "it is not loaded yet", "request": _NO_REQUEST}
_ONCE = ("context", "device")

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("setup", ("context",), _ONCE, withheld=_BEFORE_LOAD),
        Role("load", ("context",), _ONCE, withheld=_BEFORE_LOAD),
        Role("preprocess", ("data", "files"), takes="data"),
        Role(
            "predict",
            ("inputs",),
            takes="inputs",
            instead="What preprocess returns arrives as one value: take it apart inside predict. Without preprocess, "
            "call: keywords makes the keys of a JSON object the parameters.",
        ),
        Role("postprocess", ("outputs", "input_data", "files"), takes="outputs"),
        Role("explain", ("inputs", "data"), takes="inputs"),
        Role("is_healthy", ("context",), (*_ONCE, "model"), withheld={"request": _NO_REQUEST}),
    )
}
"""The hooks, in the order in which they run."""

# What people call a hook elsewhere, or write by mistake, that no spelling distance would find.
_OTHER_NAMES = {
    "load_model": "load",
    "init": "setup",
    "initialize": "setup",
    "inference": "predict",
    "infer": "predict",
    "health": "is_healthy",
    "healthy": "is_healthy",
}


def recognise(source: Source) -> str | None:
    """A module-level `predict`, wherever it is defined."""
    binding = source.module.bindings.get("predict")
    if binding:
        return f"`predict`, line {binding.line}"
    if source.module.star_imports and source.tree.function(source.module, "predict"):
        return f"`predict`, through the import in line {source.module.star_imports[-1].lineno}"
    return None


def inspect(source: Source) -> Findings:
    """The contract of a functions module; every problem of every hook."""
    findings = Findings()
    found: dict[str, Found] = {}
    for name in ROLES:
        function = source.tree.function(source.module, name)
        if isinstance(function, Problem):
            findings.problems.append(function)
        elif function is not None:
            found[name] = function
    bound = set(found) | {name for name in ROLES if name in source.module.bindings}
    findings.warnings += _slips(source, bound)
    findings.problems += _predict_or_weights(source, bound)
    call = _call(source, found, bound, findings)
    hooks = {}
    for name, function in found.items():
        hook = _hook(
            source, ROLES[name], function, findings, keywords=call == "keywords" and name == "predict"
        )
        if hook:
            hooks[name] = hook
    findings.problems += _needs_model(source, hooks, bound)
    findings.problems += _one_predict_for_many(source, hooks, call)
    findings.problems += stream_problems(source.module.file, found, source.settings)
    findings.warnings += stream_warnings(source.module.file, found, source.settings)
    if not findings.problems:
        findings.contract = Contract("functions", source.name, hooks, call=call)
    return findings


def hooks_of(source: Source, names: Sequence[str], findings: Findings) -> dict[str, Hook]:
    """Module-level hooks of these roles, for the forms that share some with this one (`setup`, `load`)."""
    hooks = {}
    for name in names:
        function = source.tree.function(source.module, name)
        if isinstance(function, Problem):
            findings.problems.append(function)
        elif function is not None:
            hook = _hook(source, ROLES[name], function, findings, keywords=False)
            if hook:
                hooks[name] = hook
    findings.warnings += function_slips(source.module, names, hooks)
    return hooks


def _hook(source: Source, role: Role, found: Found, findings: Findings, *, keywords: bool) -> Hook | None:
    node, file = found.node, found.module.file
    kind = call_kind(node)
    if wrapped_in_context_manager(node):
        findings.problems.append(
            Problem(file, node.lineno, f"{role.name} is a context manager", "Return the value instead.")
        )
    elif kind in ("generator", "async_generator") and role.name != "predict":
        findings.problems.append(generator_problem(file, role.name, node))
    signature = _signature(node_of=found, role=role, keywords=keywords)
    findings.problems += signature.problems
    findings.warnings += signature.warnings
    line = node.lineno if found.module is source.module else 0
    return Hook(role.name, line, kind, signature.parameters)


def _signature(*, node_of: Found, role: Role, keywords: bool) -> Signature:
    read = read_keywords if keywords else read_signature
    return read(node_of.node, role, file=node_of.module.file)


def _call(source: Source, found: dict[str, Found], bound: set[str], findings: Findings) -> str:
    """`positional` or `keywords`; see the setting `call`."""
    setting = source.settings.call
    predict = found.get("predict")
    if setting == "keywords" and "preprocess" in bound:
        findings.problems.append(
            Problem(
                source.module.file,
                source.module.bindings["preprocess"].line if "preprocess" in source.module.bindings else 0,
                "call: keywords is for a module without preprocess: with one, predict takes what it returned",
                "Leave out preprocess, or write call: positional.",
            )
        )
        return "positional"
    if predict is None or "preprocess" in bound or setting == "positional":
        return "positional"
    named = ROLES["predict"].named
    own = [parameter for parameter in plain_parameters(predict.node) if parameter.name not in named]
    several = len(own) > 1 or any(parameter.keyword_only for parameter in own)
    return "keywords" if setting == "keywords" or several else "positional"


def _predict_or_weights(source: Source, bound: set[str]) -> list[Problem]:
    """Something must predict: the module or its weights; and somebody must read the weights."""
    weights, held = source.settings.weights, source.weights_format
    problems = []
    if weights and held is not None and held not in EXECUTABLE_FORMATS and "load" not in bound:
        problems.append(
            Problem(
                source.module.file,
                0,
                f"nothing loads the weights {weights}: they hold {_held(held)}, and the module has no "
                f"load(context)",
                f"Write def load(context), which reads {weights} below context.model_dir and returns the model.",
            )
        )
    if "predict" not in bound and not (weights and (held is None or held in EXECUTABLE_FORMATS)):
        near = [name for name, hook in _near_names(source, bound) if hook == "predict"]
        fix = "Write def predict(inputs), or set weights: to a TorchScript, exported or ONNX file."
        if near:
            fix = f"Is `{near[0]}` meant to be it? Rename it to predict."
        elif submodule := _submodule_with_predict(source):
            fix = f"{submodule}.py has one: write `from .{submodule} import predict` in __init__.py."
        message = "the file is empty" if source.module.empty else "there is no module-level predict"
        problems.append(Problem(source.module.file, 0, message, fix))
    return problems


def _needs_model(source: Source, hooks: dict[str, Hook], bound: set[str]) -> list[Problem]:
    """A hook that asks for `model` needs something that makes one."""
    if "load" in bound or source.settings.weights:
        return []  # weights that make none without a load() are reported as such
    return [
        Problem(
            source.module.file,
            hook.line,
            f"{hook.name} asks for `model`, but the module has no load(context) that returns one",
            "Write def load(context), or set weights: to a TorchScript, exported or ONNX file.",
        )
        for hook in hooks.values()
        if any(parameter.source == "model" for parameter in hook.parameters)
    ]


def _one_predict_for_many(source: Source, hooks: dict[str, Hook], call: str) -> list[Problem]:
    """With `batch: list` or `collate`, one call of predict serves several requests: no single one can be passed."""
    batch = source.settings.batch
    if batch not in ("list", "collate") or "predict" not in hooks:
        return []
    predict = hooks["predict"]
    if call == "keywords":
        message = (
            f"batch: {batch} hands predict one value for several requests, not the keys of a JSON object"
        )
        fix = "Write batch: each, or def predict(inputs)."
    elif any(parameter.source == "request" for parameter in predict.parameters):
        message = f"predict asks for `request`, but with batch: {batch} one call serves several requests"
        fix = "Write batch: each, or let preprocess put what predict needs into its inputs."
    else:
        return []
    return [Problem(source.module.file, predict.line, message, fix)]


def _slips(source: Source, bound: set[str]) -> list[str]:
    """Functions that are named nearly as a hook that is not there."""
    return [
        not_called(source.module.file, source.module.bindings[name].line, name, hook)
        for name, hook in _near_names(source, bound)
        if hook != "predict"
    ]


def _near_names(source: Source, bound: set[str]) -> list[tuple[str, str]]:
    """(function, absent hook) pairs that look like slips."""
    names = [binding.name for binding in source.module.functions()]
    return near_names(names, ROLES, bound, others=_OTHER_NAMES)


def _submodule_with_predict(source: Source) -> str | None:
    if not source.module.is_package:
        return None
    for path in sorted(Path(source.module.path).parent.glob("*.py")):
        module = source.tree.open(path)
        if not isinstance(module, Problem) and module is not source.module and "predict" in module.bindings:
            return path.stem
    return None


def _held(weights_format: str) -> str:
    return {"state_dict": "a state dict", "safetensors": "tensors only"}.get(
        weights_format, "nothing that runs by itself"
    )


FORM = Form("functions", recognise, inspect)
