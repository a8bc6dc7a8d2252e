"""The `model-class` form: Truss's `class Model` with `predict`, alone in a file or in a Truss directory.

How it is called at run time: `handlergen/runtime/form_model_class.py`. Facts of Truss:
truss/templates/server/model_wrapper.py.
"""

from __future__ import annotations

import ast
import difflib

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms.form import Form
from handlergen.forms.slips import method_slips
from handlergen.forms.streams import stream_problems, stream_warnings
from handlergen.hook_signatures import plain_parameters
from handlergen.methods import Method, find_method
from handlergen.runtime.contract import Contract, Hook, Parameter
from handlergen.source_module import SourceModule, call_kind, dotted, full_name, wrapped_in_context_manager

ARGUMENTS = ("config", "data_dir", "secrets", "environment", "lazy_data_resolver")
"""What a constructor may name."""

# Role to what its data parameter receives.
_DATA = {"preprocess": "data", "predict": "inputs", "postprocess": "outputs"}
_ONCE = ("load", "is_healthy")
# Endpoints of Truss's server that TorchServe does not have.
_ENDPOINTS = ("completions", "chat_completions", "websocket")


def recognise(source: Source) -> str | None:
    """A module-level class of that name that has `predict`, be it inherited."""
    node = _class(source)
    if node is not None and find_method(source.module, node, "predict"):
        return f"class {node.name} with predict, line {node.lineno}"
    return None


def inspect(source: Source) -> Findings:
    """The contract of the class; every problem of its constructor and its hooks."""
    findings = Findings()
    node = _class(source)
    if node is None:
        findings.problems.append(_no_class(source))
        return findings
    file = source.module.file
    hooks: dict[str, Hook] = {}
    methods: dict[str, Method] = {}
    for role in (*_ONCE, *_DATA):
        method = find_method(source.module, node, role)
        if method is None:
            continue
        methods[role] = method
        hooks[role] = (_once if role in _ONCE else _hook)(source.module, method, role, findings)
    foreign = _foreign_bases(source.module, node)
    if "predict" not in hooks:
        findings.problems.append(_no_predict(source.module, node, foreign))
    elif foreign:
        findings.warnings.append(
            f"{file}:{node.lineno}: {node.name} inherits from {', '.join(foreign)}, which is not read: hooks that it "
            f"defines there are not called"
        )
    findings.problems += _constructor(source.module, node)
    findings.problems += stream_problems(file, methods, source.settings)
    findings.problems += _together(source, hooks)
    findings.warnings += stream_warnings(file, methods, source.settings)
    findings.warnings += _unserved(source.module, node, hooks)
    findings.warnings += method_slips(source.module, node, (*_ONCE, *_DATA), hooks)
    if not findings.problems:
        ordered = {role: hooks[role] for role in ("load", *_DATA, "is_healthy") if role in hooks}
        findings.contract = Contract(
            "model-class", source.name, ordered, class_name=node.name, details=dict(source.details)
        )
    return findings


def _class(source: Source) -> ast.ClassDef | None:
    binding = source.module.bindings.get(source.class_name)
    return binding.node if binding and isinstance(binding.node, ast.ClassDef) else None


def _hook(module: SourceModule, method: Method, role: str, findings: Findings) -> Hook:
    node, file = method.node, module.file
    if wrapped_in_context_manager(node):
        findings.problems.append(
            Problem(file, node.lineno, f"{role} is a context manager", "Return the value instead.")
        )
    parameters, problem = _parameters(module, node, role)
    if problem:
        findings.problems.append(problem)
    return Hook(role, node.lineno, call_kind(node), parameters)


def _parameters(  # noqa: PLR0911 - one return a way to be wrong
    module: SourceModule, node: ast.FunctionDef | ast.AsyncFunctionDef, role: str
) -> tuple[tuple[Parameter, ...], Problem | None]:
    """One data parameter, and perhaps a second one annotated `Request`; their names do not matter."""
    wanted = f"Write def {role}(self, {_DATA[role]}), or def {role}(self, {_DATA[role]}, request: Request)."

    def problem(line: int, message: str, fix: str = wanted) -> tuple[tuple[Parameter, ...], Problem]:
        return (), Problem(module.file, line, message, fix)

    variadic = node.args.vararg or node.args.kwarg
    if variadic:
        star = "*" if node.args.vararg else "**"
        return problem(
            variadic.lineno, f"{role} takes `{star}{variadic.arg}`, which does not say what to pass"
        )
    given = list(plain_parameters(node))
    annotated = {arg.arg: _is_request(module, arg.annotation) for arg in _arguments(node)}
    if not given:
        return problem(node.lineno, f"{role} takes no data besides self")
    if len(given) > 2:
        return problem(
            given[2].line, f"{role} has more than two parameters: nothing is passed for `{given[2].name}`"
        )
    first, *second = given
    if not second:
        if not annotated[first.name]:
            return (Parameter(first.name, _DATA[role], first.keyword_only, first.required),), None
        if role == "postprocess":
            return problem(
                first.line, "postprocess takes only the request: what predict returned would be lost"
            )
        return (Parameter(first.name, "http_request", first.keyword_only, first.required),), None
    if annotated[first.name]:
        return problem(first.line, f"the request comes second, after the data, in {role}")
    if not annotated[second[0].name]:
        message = f"the second parameter of {role}, `{second[0].name}`, is not annotated Request"
        return problem(
            second[0].line,
            message,
            f"If it is the request: `{second[0].name}: Request`; if not, remove it. {wanted}",
        )
    return (
        Parameter(first.name, _DATA[role], first.keyword_only, first.required),
        Parameter(second[0].name, "http_request", second[0].keyword_only, second[0].required),
    ), None


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _is_request(module: SourceModule, annotation: ast.expr | None) -> bool:
    """`Request`, `starlette.requests.Request`, `"Request"`, `Request | None`, `Optional[Request]`, renamed or not."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return _is_request(module, ast.parse(annotation.value, mode="eval").body)
        except SyntaxError:
            return False
    if isinstance(annotation, ast.BinOp):
        return _is_request(module, annotation.left) or _is_request(module, annotation.right)
    if isinstance(annotation, ast.Subscript):
        outer = dotted(annotation.value).rpartition(".")[2]
        return outer in ("Optional", "Annotated", "Union") and any(
            _is_request(module, item)
            for item in (
                annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            )
        )
    name = dotted(annotation)
    return bool(name) and full_name(module, name).rpartition(".")[2] == "Request"


def _once(module: SourceModule, method: Method, role: str, findings: Findings) -> Hook:
    """`load` and `is_healthy` take nothing besides self."""
    node = method.node
    for parameter in plain_parameters(node):
        if parameter.required:
            findings.problems.append(
                Problem(
                    module.file,
                    parameter.line,
                    f"{role} has no argument for its parameter `{parameter.name}`",
                    f"Write def {role}(self); the constructor receives {', '.join(ARGUMENTS)}.",
                )
            )
    if call_kind(node) in ("generator", "async_generator"):
        findings.problems.append(
            Problem(module.file, node.lineno, f"{role} is a generator", "Do its work instead.")
        )
    return Hook(role, node.lineno, call_kind(node), ())


def _constructor(module: SourceModule, node: ast.ClassDef) -> list[Problem]:
    """Truss passes keyword arguments, those that the constructor names."""
    method = find_method(module, node, "__init__")
    if method is None:
        return []
    problems = []
    for parameter in plain_parameters(method.node):
        known = parameter.name in ARGUMENTS
        if known and parameter.positional_only:
            problems.append(
                Problem(
                    module.file,
                    parameter.line,
                    f"`{parameter.name}` of {node.name} is positional-only, and is passed by keyword",
                    "Leave out the `/`.",
                )
            )
        elif not known and parameter.required:
            near = difflib.get_close_matches(parameter.name, ARGUMENTS, n=1, cutoff=0.6)
            fix = f"Did you mean `{near[0]}`?" if near else "Give it a default, or read it from config."
            problems.append(
                Problem(
                    module.file,
                    parameter.line,
                    f"{node.name} has no argument for its parameter `{parameter.name}`",
                    f"It may name {', '.join(ARGUMENTS)}, or take **kwargs for all of them. {fix}",
                )
            )
    return problems


def _together(source: Source, hooks: dict[str, Hook]) -> list[Problem]:
    """What each hook may be on its own and not beside the others."""
    problems = []
    file, predict = source.module.file, hooks.get("predict")
    if predict is None:
        return []
    takes = {parameter.source for parameter in predict.parameters}
    if "preprocess" in hooks and takes == {"http_request"}:
        problems.append(
            Problem(
                file,
                predict.line,
                "predict takes only the request: what preprocess returned would be lost",
                "Write def predict(self, inputs, request: Request).",
            )
        )
    batch = source.settings.batch
    if batch in ("list", "collate") and "http_request" in takes:
        problems.append(
            Problem(
                file,
                predict.line,
                f"predict takes a Request, but with batch: {batch} one call serves several requests",
                "Write batch: each, or let preprocess put what predict needs into its inputs.",
            )
        )
    return problems


def _unserved(module: SourceModule, node: ast.ClassDef, hooks: dict[str, Hook]) -> list[str]:
    return [
        f"{module.file}:{method.node.lineno}: {name} is not served: TorchServe has no such endpoint"
        for name in _ENDPOINTS
        if "predict" in hooks and (method := find_method(module, node, name))
    ]


def _no_class(source: Source) -> Problem:
    classes = [node for node in source.module.classes() if find_method(source.module, node, "predict")]
    fix = f"Write class {source.class_name} with def predict(self, inputs)."
    if len(classes) == 1:
        fix = f"Is {classes[0].name}, line {classes[0].lineno}, meant to be it? Rename it to {source.class_name}."
    binding = source.module.bindings.get(source.class_name)
    if binding is not None:
        message = f"`{source.class_name}` is not defined here by a class statement, and cannot be read"
        return Problem(
            source.module.file, binding.line, message, f"Write class {source.class_name} in this file."
        )
    return Problem(source.module.file, 0, f"there is no class {source.class_name}", fix)


def _no_predict(module: SourceModule, node: ast.ClassDef, foreign: list[str]) -> Problem:
    websocket = find_method(module, node, "websocket")
    if websocket:
        message = "websocket takes the place of predict, and TorchServe has no WebSocket endpoint"
        return Problem(module.file, websocket.node.lineno, message, "Write def predict(self, inputs).")
    fix = "Write def predict(self, inputs)."
    if foreign:
        fix = f"{', '.join(foreign)} is not read: write def predict(self, inputs) here, and call the inherited one."
    return Problem(module.file, node.lineno, f"class {node.name} has no predict", fix)


def _foreign_bases(module: SourceModule, node: ast.ClassDef) -> list[str]:
    """Bases, at any depth, that are not defined in this file; `object` and typing's aside."""
    found: list[str] = []
    waiting, seen = [node], {node.name}
    while waiting:
        for base in waiting.pop().bases:
            name = dotted(base)
            binding = module.bindings.get(name)
            if binding and isinstance(binding.node, ast.ClassDef):
                if name not in seen:
                    seen.add(name)
                    waiting.append(binding.node)
            elif name and full_name(module, name).partition(".")[0] not in ("object", "abc", "typing"):
                found.append(name)
    return found


FORM = Form("model-class", recognise, inspect)
