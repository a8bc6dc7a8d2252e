"""A module-level `FLOW = [...]`: Cerebrium's multi-model flows.

How it runs: `handlergen/runtime/form_flow.py`.
"""

from __future__ import annotations

import ast
import difflib
from typing import Any

from handlergen.errors import Problem
from handlergen.findings import Findings, Source
from handlergen.forms import functions
from handlergen.forms.flow_stages import read_model, stage_type
from handlergen.forms.form import Form
from handlergen.hook_signatures import Role, read_signature
from handlergen.runtime.contract import Contract, Hook
from handlergen.source_module import Function, SourceModule, call_kind, first_yield

_EXAMPLE = 'FLOW = [("torch", "encoder.pt"), ("sklearn_classifier", "head.joblib", to_label)]'

PRE = Role("pre", ("inputs", "files"), takes="data")
POST = Role("post", ("outputs", "input_data", "files"), takes="result")
FUNCTION = Role("a python stage", ("inputs",), takes="data")


def recognise(source: Source) -> str | None:
    """A module-level name `FLOW`."""
    binding = source.module.bindings.get("FLOW")
    return f"`FLOW`, line {binding.line}" if binding else None


def inspect(source: Source) -> Findings:
    """The stages of the flow; every problem of every stage."""
    findings = Findings()
    stages = _stages(source, findings)
    hooks = functions.hooks_of(source, ("setup",), findings)
    described = []
    for number, node in enumerate(stages, 1):
        stage = _Stage(source, number, node, findings)
        described.append(stage.described())
        hooks.update(stage.hooks)
    if source.settings.batch in ("collate", "list"):
        findings.problems.append(
            Problem(
                source.module.file,
                0,
                f"batch: {source.settings.batch} is not for the form flow: each request passes its stages alone",
                "Leave it out, or write batch: each.",
            )
        )
    if source.settings.weights:
        findings.warnings.append(
            f"{source.module.file}: weights: {source.settings.weights} has no effect: FLOW names its files itself"
        )
    if not findings.problems:
        files = [stage["file"] for stage in described if stage["file"]]
        details = {"stages": described, "files": list(dict.fromkeys(files))}
        findings.contract = Contract("flow", source.name, hooks, details=details)
    return findings


def _stages(source: Source, findings: Findings) -> list[ast.expr]:
    """The elements of the list that `FLOW` is."""
    module = source.module
    binding = module.bindings.get("FLOW")
    if binding is None:
        findings.problems.append(
            Problem(module.file, 0, "there is no module-level FLOW", f"Write {_EXAMPLE}.")
        )
        return []
    if not isinstance(binding.node, ast.List | ast.Tuple) or any(
        isinstance(item, ast.Starred) for item in binding.node.elts
    ):
        findings.problems.append(
            Problem(
                module.file,
                binding.line,
                "FLOW is no list that can be read without importing the module",
                f"Write it out: {_EXAMPLE}.",
            )
        )
        return []
    if not binding.node.elts:
        findings.problems.append(
            Problem(module.file, binding.line, "FLOW has no stage", f"Write one: {_EXAMPLE}.")
        )
    return binding.node.elts


class _Stage:
    """One element of `FLOW` while it is read.

    Attributes:
        hooks: Its functions' signatures, by role.
    """

    def __init__(self, source: Source, number: int, node: ast.expr, findings: Findings) -> None:
        self._source = source
        self._number = number
        self._node = node
        self._findings = findings
        self.hooks: dict[str, Hook] = {}

    def described(self) -> dict[str, Any]:
        """What the runtime must know of it; problems are noted."""
        parts = self._node.elts if isinstance(self._node, ast.Tuple | ast.List) else []
        if not 2 <= len(parts) <= 3:
            self._problem(
                self._node,
                f"{len(parts)} parts where (type, file) or (type, file, post) should be"
                if parts
                else "no tuple of type and file",
                'Write ("torch", "encoder.pt") or ("torch", "encoder.pt", {"pre": prepare, "post": answer}).',
            )
            return _nothing()
        kind = stage_type(self._source, parts[0], self._problem)
        if kind == "python":
            described = _nothing(kind, shown=self._function("predict", parts[1], FUNCTION))
        elif kind:
            described = read_model(self._source, kind, parts[1], self._problem, self._findings)
        else:
            described = _nothing()
        if len(parts) == 3:
            self._read_functions(parts[2])
        return described

    def _read_functions(self, node: ast.expr) -> None:
        """The third part: the `post` function, or a dict with `pre` and `post`."""
        if isinstance(node, ast.Constant) and node.value is None:
            return
        if not isinstance(node, ast.Dict):
            self._function("post", node, POST)
            return
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if name not in ("pre", "post"):
                shown = repr(name) if name else "a key that cannot be read"
                self._problem(key or node, f"the dict has {shown}", 'It may have "pre" and "post" only.')
            elif not (isinstance(value, ast.Constant) and value.value is None):
                self._function(str(name), value, PRE if name == "pre" else POST)

    def _function(self, role: str, node: ast.expr, wanted: Role) -> str:
        """Read a function's signature.

        Returns:
            Its name, for messages.
        """
        module: SourceModule = self._source.module
        function: Function
        if isinstance(node, ast.Lambda):
            function, name = node, "lambda"
        else:
            name = node.id if isinstance(node, ast.Name) else ""
            if role == "predict" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
            found = self._source.tree.function(self._source.module, name) if name else None
            if found is None:
                what = f"`{name}`" if name else f"`{ast.unparse(node)}`"
                names = [binding.name for binding in self._source.module.functions()]
                near = difflib.get_close_matches(name, names, n=1)
                fix = f"Did you mean `{near[0]}`?" if near else f"Write def {name or 'function'}(...)."
                self._problem(node, f"{what} is no function of this module", fix)
                return name
            if isinstance(found, Problem):
                self._findings.problems.append(found)
                return name
            function, module = found.node, found.module
        kind = call_kind(function)
        if kind in ("generator", "async_generator"):
            self._findings.problems.append(
                Problem(
                    module.file,
                    first_yield(function),
                    f"{name} is a generator, and a stage hands on one value",
                    "Return the value instead of yielding it.",
                )
            )
        signature = read_signature(function, wanted, file=module.file)
        self._findings.problems += signature.problems
        self._findings.warnings += signature.warnings
        line = function.lineno if module is self._source.module else 0
        self.hooks[f"{role} {self._number}"] = Hook(name, line, kind, signature.parameters)
        return name

    def _problem(self, node: ast.AST, message: str, fix: str) -> None:
        line = getattr(node, "lineno", 0)
        self._findings.problems.append(
            Problem(self._source.module.file, line, f"stage {self._number} of FLOW: {message}", fix)
        )


def _nothing(kind: str = "", *, shown: str = "") -> dict[str, Any]:
    return {"type": kind, "file": "", "shown": shown, "format": None, "class": None, "options": {}}


FORM = Form("flow", recognise, inspect)
