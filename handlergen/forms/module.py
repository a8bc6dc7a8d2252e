"""A `torch.nn.Module` that carries its own `preprocess` and `postprocess`.

The convention of the article "Conventions for packaging deep learning models". How it is called at run time:
`handlergen/runtime/form_module.py`.
"""

from __future__ import annotations

from typing import Any

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms import functions
from handlergen.forms.form import Form
from handlergen.forms.module_classes import OWN_HOOKS, ModelClass, candidates
from handlergen.forms.module_settings import constructor_problems, unused_settings, weights_problems
from handlergen.forms.slips import method_lines, method_slips, rename
from handlergen.forms.streams import generator_problem
from handlergen.hook_signatures import Role, plain_parameters, read_signature
from handlergen.methods import Method, find_method
from handlergen.runtime.contract import Contract, Hook, Parameter
from handlergen.source_module import base_names, call_kind, wrapped_in_context_manager

_NAMED = ("context", "device", "request")
_SELF = {"model": "it is `self`"}

ROLES = {
    "preprocess": Role("preprocess", ("data", "files"), _NAMED, takes="data", withheld=_SELF),
    "postprocess": Role(
        "postprocess", ("outputs", "input_data", "files"), _NAMED, takes="outputs", withheld=_SELF
    ),
    "explain": Role("explain", ("inputs", "data"), _NAMED, takes="inputs", withheld=_SELF),
    "collate": Role("collate", ("samples",), (), takes="samples"),
}


def recognise(source: Source) -> str | None:
    """A module-level subclass of nn.Module that has `preprocess` or `postprocess`."""
    found = candidates(source)
    return " and ".join(candidate.evidence for candidate in found) if found else None


def inspect(source: Source) -> Findings:
    """The contract of the class; every problem of its hooks, its constructor and its weights."""
    findings = Findings()
    found = candidates(source)
    if len(found) != 1:
        findings.problems.append(_not_one(source, found))
        return findings
    (model,) = found
    hooks = functions.hooks_of(source, ("setup", "load", "is_healthy"), findings)
    for name in (*OWN_HOOKS, "explain"):
        method = find_method(model.module, model.node, name)
        if method:
            hooks[name] = _hook(model, method, ROLES[name], findings)
    details: dict[str, Any] = {"one_by_one": source.settings.batch == "auto"}
    own_collate = _collate(source, model, findings)
    if own_collate:
        details["collate"] = own_collate
    forward = find_method(model.module, model.node, "forward")
    if forward:
        hooks["predict"], spread = _forward(model, forward, findings)
        details["spread"] = spread
    elif set(base_names(model.module, model.node)) <= {"torch.nn.Module", "nn.Module"}:
        findings.problems.append(
            Problem(
                model.module.file,
                model.node.lineno,
                f"{model.name} has no forward",
                rename(method_lines(model.node), "forward")
                or "Write def forward(self, batch), which takes what preprocess returns, collated.",
            )
        )
    else:
        hooks["predict"] = Hook("forward", 0, "sync", (Parameter("batch", "inputs"),))
    if "load" in hooks:
        findings.warnings += unused_settings(source)
    else:
        findings.problems += constructor_problems(source, model)
        findings.problems += weights_problems(source, model)
        if not source.settings.weights:
            findings.warnings.append(
                f"{model.module.file}:{model.node.lineno}: no weights: {model.name} keeps the values its "
                f"constructor gives it. Set weights: to its state dict, or write load(context)."
            )
    if source.settings.batch == "auto" and not own_collate and source.settings.batch_size > 1:
        findings.warnings.append(
            f"{model.module.file}:{model.node.lineno}: {model.name} has no collate(samples): what preprocess "
            f"returns is stacked, and samples of different shapes are predicted one by one. "
            f"Write batch: collate to have them refused."
        )
    own = (*OWN_HOOKS, "explain", "collate")
    there = [name for name in own if find_method(model.module, model.node, name)]
    findings.warnings += method_slips(model.module, model.node, own, there)
    if not findings.problems:
        findings.contract = Contract("module", source.name, hooks, class_name=model.name, details=details)
    return findings


def _not_one(source: Source, found: list[ModelClass]) -> Problem:
    if not found:
        return Problem(
            source.module.file,
            0,
            "there is no nn.Module with a preprocess or postprocess of its own",
            "Write def preprocess(self, x) and def postprocess(self, output) into the module's class.",
        )
    names = " and ".join(f"{candidate.name}, line {candidate.node.lineno}" for candidate in found)
    return Problem(
        source.module.file,
        found[-1].node.lineno,
        f"several modules have a preprocess or postprocess of their own: {names}",
        "Keep those of the one that is served; move the other class into a file of its own and import it.",
    )


def _hook(model: ModelClass, method: Method, role: Role, findings: Findings) -> Hook:
    node, file = method.node, model.module.file
    kind = call_kind(node)
    if kind in ("generator", "async_generator") or wrapped_in_context_manager(node):
        findings.problems.append(generator_problem(file, role.name, node))
    signature = read_signature(node, role, file=file)
    findings.problems += signature.problems
    findings.warnings += signature.warnings
    return Hook(role.name, node.lineno, kind, signature.parameters)


def _forward(model: ModelClass, forward: Method, findings: Findings) -> tuple[Hook, bool]:
    """`forward(batch)`; with several parameters the parts of the batch are passed one by one."""
    node, file = forward.node, model.module.file
    plain = [parameter for parameter in plain_parameters(node) if not parameter.keyword_only]
    if call_kind(node) != "sync":
        findings.problems.append(
            Problem(
                file,
                node.lineno,
                "forward is async or a generator",
                "Write def forward(self, batch) that returns.",
            )
        )
    if not plain and node.args.vararg is None and not list(plain_parameters(node)):
        findings.problems.append(
            Problem(file, node.lineno, "forward takes no batch", "Write def forward(self, batch).")
        )
    required = [parameter for parameter in plain_parameters(node) if parameter.required]
    several = len(required) > 1 or node.args.vararg is not None or any(p.keyword_only for p in required)
    parameters = tuple(
        Parameter(p.name, "inputs", p.keyword_only, p.required) for p in plain_parameters(node)
    )
    return Hook("forward", node.lineno, "sync", parameters), several


def _collate(source: Source, model: ModelClass, findings: Findings) -> str | None:
    """Where the own `collate(samples)` is: `method`, `function`, or None."""
    method = find_method(model.module, model.node, "collate")
    if method:
        signature = read_signature(method.node, ROLES["collate"], file=model.module.file)
        findings.problems += signature.problems
        return "method"
    function = source.tree.function(source.module, "collate")
    if function is None or isinstance(function, Problem):
        return None
    findings.problems += read_signature(function.node, ROLES["collate"], file=function.module.file).problems
    return "function"


FORM = Form("module", recognise, inspect)
