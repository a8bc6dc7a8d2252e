"""The `module` form: a `torch.nn.Module` with `preprocess` or `postprocess` of its own.

The convention of the article "Conventions for packaging deep learning models". How it is called at run time:
`handlergen/runtime/forms/module.py`.
"""

from __future__ import annotations

import difflib
from typing import Any

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms import functions
from handlergen.inspection.forms.form import check_returns, defines_model, method_lines, misspelt, rename
from handlergen.inspection.hook_signatures import Role, plain_parameters, read_signature
from handlergen.inspection.source_module import call_kind
from handlergen.inspection.source_tree import Found, UserClass
from handlergen.project.weights_file import pickled_class
from handlergen.runtime.contract import Contract, Hook, Parameter

OWN_HOOKS = ("preprocess", "postprocess")
"""Methods that make an nn.Module a model of this form."""

_BASES = ("nn.Module", "pytorch_lightning.LightningModule", "lightning.LightningModule")
_NAMED = ("context", "device", "request")
_SELF = {"model": "the model is `self`"}

ROLES = {
    "preprocess": Role("preprocess", ("data", "files"), _NAMED, takes="data", unavailable=_SELF),
    "postprocess": Role("postprocess", ("outputs", "input_data", "files"), _NAMED, takes="outputs", unavailable=_SELF),
    "explain": Role("explain", ("inputs", "data"), _NAMED, takes="inputs", unavailable=_SELF),
    "collate": Role("collate", ("samples",), (), takes="samples"),
}


def recognise(source: Source) -> str | None:
    """Find a module-level subclass of nn.Module that has `preprocess` or `postprocess`."""
    found = [
        f"class {model.name}, an nn.Module with {' and '.join(_own_hooks(model))}, {source.place_of(model)}"
        for model in _candidates(source)
    ]
    return " and ".join(found) or None


def inspect(source: Source) -> Findings:
    """Return the contract of the class, or every problem of its hooks, its constructor and its weights."""
    findings = Findings()
    found = _candidates(source)
    if len(found) != 1:
        findings.problems.append(_not_one(source, found))
        return findings
    (model,) = found
    hooks = functions.hooks_of(source, ("setup", "load", "is_healthy"), findings)
    for name in (*OWN_HOOKS, "explain"):
        method = model.method(name)
        if method:
            hooks[name] = _hook(source, method, ROLES[name], findings)
    details: dict[str, Any] = {"one_by_one": source.settings.batch == "auto"}
    collate = _collate(source, model, findings)
    if collate:
        details["collate"] = collate
    _forward(source, model, hooks, details, findings)
    if "load" in hooks:
        for name in ("model_args", "model_kwargs"):
            if getattr(source.settings, name):
                findings.warn(source.module.file, 0, f"{name} has no effect: load(context) creates the module")
    else:
        _check_constructor(source, model, findings)
        _check_weights(source, model, findings)
    if source.settings.batch == "auto" and not collate and source.settings.batch_size > 1:
        message = "what preprocess returns is stacked, and samples of different shapes are predicted one by one"
        message = f"{model.name} has no collate(samples): {message}. Write batch: collate to have them refused."
        findings.warn(model.module.file, model.node.lineno, message)
    own = (*OWN_HOOKS, "explain", "collate")
    there = [name for name in own if model.method(name)]
    findings.warnings += misspelt(model.module.file, method_lines(model.node), own, there)
    if not findings.problems:
        findings.contract = Contract("module", source.name, hooks, class_name=model.name, details=details)
    return findings


def is_module(kind: UserClass) -> bool:
    """Return whether a class inherits from nn.Module, or from one of torch's modules such as nn.Sequential."""
    return any(name.startswith("torch.nn.") or name in _BASES for name in kind.foreign)


def _own_hooks(kind: UserClass) -> list[str]:
    return [name for name in OWN_HOOKS if kind.method(name)]


def _candidates(source: Source) -> list[UserClass]:
    """Return the classes with hooks, its own or inherited, without those that are only a base of another one.

    Those that the source defines; imported ones (`from .network import Network` in an `__init__.py`) only where it
    defines nothing that could be served.
    """
    found = source.tree.classes(source.module)
    if not any(map(is_module, found)) and not defines_model(source):
        found = source.tree.imported_classes(source.module)
    found = [kind for kind in found if is_module(kind) and _own_hooks(kind)]
    bases = [node for kind in found for node, _ in kind.lineage[1:]]
    return [kind for kind in found if kind.node not in bases]


def _not_one(source: Source, found: list[UserClass]) -> Problem:
    if not found:
        message = "there is no nn.Module with a preprocess or postprocess of its own"
        fix = "Write def preprocess(self, x) and def postprocess(self, output) in the model's class."
        return Problem(source.module.file, 0, message, fix)
    names = " and ".join(f"{kind.name}, {source.place_of(kind)}" for kind in found)
    message = f"several modules have a preprocess or postprocess of their own: {names}"
    fix = "Keep those of the one that is served; move the other class into a file of its own and import it."
    own = found[-1].module is source.module
    if not own:
        fix = "Import only the one that is served, or define a class of your own that extends it."
    return Problem(source.module.file, found[-1].node.lineno if own else 0, message, fix)


def _hook(source: Source, found: Found, role: Role, findings: Findings) -> Hook:
    node, file = found.node, found.module.file
    check_returns(file, role.name, node, findings)
    parameters = read_signature(node, role, file=file, findings=findings)
    return Hook(role.name, source.line_of(found), call_kind(node), parameters)


def _forward(
    source: Source, model: UserClass, hooks: dict[str, Hook], details: dict[str, Any], findings: Findings
) -> None:
    """Read `forward(batch)` as `predict`; several parameters receive the parts of the batch one by one."""
    found = model.method("forward")
    if found is None:
        if set(model.foreign) <= {"torch.nn.Module", "nn.Module", "abc.ABC"}:
            fix = "Write def forward(self, batch), which takes what preprocess returned, collated."
            fix = rename(method_lines(model.node), "forward") or fix
            findings.problem(model.module.file, model.node.lineno, f"{model.name} has no forward", fix)
        hooks["predict"] = Hook("forward", 0, "sync", (Parameter("batch", "inputs"),))
        return
    node, file = found.node, found.module.file
    if call_kind(node) != "sync":
        fix = "Write def forward(self, batch) that returns its result."
        findings.problem(file, node.lineno, "forward is async or a generator", fix)
    parameters = list(plain_parameters(node))
    if not parameters and node.args.vararg is None:
        findings.problem(file, node.lineno, "forward takes no batch", "Write def forward(self, batch).")
    required = [parameter for parameter in parameters if parameter.required]
    details["spread"] = len(required) > 1 or node.args.vararg is not None or any(p.keyword_only for p in required)
    passed = tuple(Parameter(p.name, "inputs", p.keyword_only, p.required) for p in parameters)
    hooks["predict"] = Hook("forward", source.line_of(found), "sync", passed)


def _collate(source: Source, model: UserClass, findings: Findings) -> str | None:
    """Return where the user's own `collate(samples)` is: `method`, `function`, or None."""
    method = model.method("collate")
    found = method or source.tree.function(source.module, "collate")
    if not isinstance(found, Found):
        return None
    read_signature(found.node, ROLES["collate"], file=found.module.file, findings=findings)
    return "method" if method else "function"


def _check_constructor(source: Source, model: UserClass, findings: Findings) -> None:
    """Check `model_args` and `model_kwargs` against `__init__`, if the source shows one."""
    found = model.method("__init__")
    if found is None:
        return
    init = found.node
    settings, file, line = source.settings, found.module.file, init.lineno
    parameters = list(plain_parameters(init))
    positional = [parameter for parameter in parameters if not parameter.keyword_only]
    if len(settings.model_args) > len(positional) and init.args.vararg is None:
        message = f"model_args has {len(settings.model_args)} values, but {model.name} takes {len(positional)}"
        findings.problem(file, line, message, "Leave out the rest.")
    given = {parameter.name for parameter in positional[: len(settings.model_args)]}
    names = [parameter.name for parameter in parameters]
    for name in settings.model_kwargs:
        if name in given:
            message = f"model_args and model_kwargs both set `{name}`"
            findings.problem(file, line, message, "Remove it from one of them.")
        elif name not in names and init.args.kwarg is None:
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"Did you mean `{near[0]}`?" if near else f"It takes: {', '.join(names) or 'nothing'}."
            findings.problem(file, line, f"{model.name} has no parameter `{name}` (model_kwargs)", fix)
    missing = [p.name for p in parameters if p.required and p.name not in {*given, *settings.model_kwargs}]
    if missing:
        message = f"{model.name} cannot be created without {', '.join(f'`{name}`' for name in missing)}"
        values = ", ".join(f"{name}: ..." for name in missing)
        fix = f"Write model_kwargs: {{{values}}}, or a load(context) that returns the finished module."
        findings.problem(file, line, message, fix)


def _check_weights(source: Source, model: UserClass, findings: Findings) -> None:
    """Check that the weights are a state dict, or a pickle that `weights_format` asks for."""
    weights, weights_format = source.settings.weights, source.weights_format
    if not weights:
        kept = f"no weights: {model.name} keeps the values its constructor gives it"
        advice = "Set weights: to its state dict, or write load(context)."
        findings.warn(model.module.file, model.node.lineno, f"{kept}. {advice}")
        return
    if weights_format in (None, "safetensors", "pickle"):
        return
    export = f'torch.save(model.state_dict(), "{weights}")'
    if weights_format != "state_dict":
        message = f"the weights {weights} ({weights_format}) are not a state dict, which {model.name} could load"
        fix = f"Write them with {export}, or write load(context)."
        findings.problem(source.module.file, 0, message, fix)
    elif pickled := pickled_class(source.root / weights):
        message = f"the weights {weights} are a pickle of a whole object ({pickled}), which runs code when it is loaded"
        fix = f"Export a state dict: {export}. If you trust the file, write weights_format: pickle."
        findings.problem(source.module.file, 0, message, fix)
