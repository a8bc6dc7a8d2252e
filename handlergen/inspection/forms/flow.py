"""The `flow` form: a module-level `FLOW = [...]` of several models, as in Cerebrium's multi-model flows.

How it runs: `handlergen/runtime/forms/flow.py`.
"""

from __future__ import annotations

import ast
import difflib
from typing import Any

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms import functions
from handlergen.inspection.forms.form import yields
from handlergen.inspection.forms.module import is_module
from handlergen.inspection.hook_signatures import Role, read_signature
from handlergen.inspection.source_module import Function, SourceModule, call_kind, first_yield
from handlergen.project.settings import archive_path
from handlergen.project.weights_file import pickled_class, weights_format
from handlergen.runtime.contract import Contract, Hook

_EXAMPLE = 'FLOW = [("torch", "encoder.pt"), ("sklearn_classifier", "head.joblib", to_label)]'

STAGE_TYPES = (
    *("torch", "sklearn", "sklearn_classifier", "sklearn_preprocessor", "xgboost_classifier", "xgboost_regressor"),
    *("onnx", "spacy", "huggingface_pipeline", "python"),
)

# Names for a type in other systems, too far from it to be found by spelling.
_OTHER_NAMES = {
    **dict.fromkeys(("pytorch", "torchscript"), "torch"),
    **dict.fromkeys(("xgboost", "xgb"), "xgboost_classifier"),
    **dict.fromkeys(("transformers", "huggingface", "hf"), "huggingface_pipeline"),
    **{"scikit-learn": "sklearn", "sklearn_transformer": "sklearn_preprocessor"},
    **{"onnxruntime": "onnx", "function": "python"},
}

PRE = Role("pre", ("inputs", "files"), takes="data")
POST = Role("post", ("outputs", "input_data", "files"), takes="result")
FUNCTION = Role("a python stage", ("inputs",), takes="data")


def recognise(source: Source) -> str | None:
    """Find a module-level name `FLOW`."""
    binding = source.module.bindings.get("FLOW")
    return f"`FLOW`, line {binding.line}" if binding else None


def inspect(source: Source) -> Findings:
    """Return the contract of the flow, or every problem of every stage."""
    findings = Findings()
    elements = enumerate(_elements(source, findings), 1)
    stages = [_FlowElement(source, number, node, findings) for number, node in elements]
    hooks = functions.hooks_of(source, ("setup",), findings)
    described = [stage.read() for stage in stages]
    for stage in stages:
        hooks.update(stage.hooks)
    file, settings = source.module.file, source.settings
    if settings.batch in ("collate", "list"):
        message = f"batch: {settings.batch} is not supported by the form flow: each request passes its stages alone"
        findings.problem(file, 0, message, "Remove it, or write batch: each.")
    if settings.weights:
        findings.warn(file, 0, f"weights: {settings.weights} has no effect: FLOW names its files itself")
    if not findings.problems:
        files = [stage["file"] for stage in described if stage["file"]]
        details = {"stages": described, "files": list(dict.fromkeys(files))}
        findings.contract = Contract("flow", source.name, hooks, details=details)
    return findings


def _elements(source: Source, findings: Findings) -> list[ast.expr]:
    """Return the elements of the list `FLOW`."""
    file = source.module.file
    binding = source.module.bindings.get("FLOW")
    if binding is None:
        findings.problem(file, 0, "there is no module-level FLOW", f"Write {_EXAMPLE}.")
        return []
    node = binding.node
    if not isinstance(node, ast.List | ast.Tuple) or any(isinstance(e, ast.Starred) for e in node.elts):
        message = "FLOW is not a list that can be read without importing the module"
        findings.problem(file, binding.line, message, f"Write it out: {_EXAMPLE}.")
        return []
    if not node.elts:
        findings.problem(file, binding.line, "FLOW has no stage", f"Write one: {_EXAMPLE}.")
    return node.elts


class _FlowElement:
    """One element of `FLOW`: `(type, model)`, or `(type, model, functions)`.

    Attributes:
        hooks: The signatures of its functions, by role.
    """

    def __init__(self, source: Source, number: int, node: ast.expr, findings: Findings) -> None:
        self._source, self._number, self._node, self._findings = source, number, node, findings
        self.hooks: dict[str, Hook] = {}
        self._described: dict[str, Any] = dict.fromkeys(("type", "file", "shown"), "")
        self._described |= {"format": None, "class": None, "options": {}}

    def read(self) -> dict[str, Any]:
        """Return what the runtime must know of the stage; problems are added to the findings.

        That is `type`, `file` (its path in the archive, or empty), `shown` (for messages), and what only some types
        have: `format` and `class` (torch), `options` (huggingface_pipeline).
        """
        parts = self._node.elts if isinstance(self._node, ast.Tuple | ast.List) else []
        if not 2 <= len(parts) <= 3:
            found = "expected a tuple of type and file"
            if parts:
                found = f"expected (type, file) or (type, file, post), got a tuple of {len(parts)}"
            fix = 'Write ("torch", "encoder.pt") or ("torch", "encoder.pt", {"pre": prepare, "post": answer}).'
            self._problem(self._node, found, fix)
            return self._described
        kind = self._described["type"] = self._type(parts[0])
        if kind == "python":
            self._described["shown"] = self._function("predict", parts[1], FUNCTION)
        elif kind == "huggingface_pipeline":
            self._pipeline(parts[1])
        elif kind:
            self._model_file(kind, parts[1])
        if len(parts) == 3:
            self._functions(parts[2])
        return self._described

    def _type(self, node: ast.expr) -> str:
        """Return the type; "" after adding the problem that there is no such type."""
        name = self._text(node)
        if name in STAGE_TYPES:
            return name
        types = f"The types are: {', '.join(STAGE_TYPES)}."
        if name is not None:
            near = nearest_type(name.lower())
            fix = f'Did you mean "{near}"?' if near else types
            self._problem(node, f"there is no stage type {name!r}", fix)
            return ""
        fix = types
        if isinstance(node, ast.Attribute):  # model_type.TORCH, as in Cerebrium's own module
            fix = f'Write "{nearest_type(node.attr.lower()) or "torch"}".'
        self._problem(node, f"the type `{ast.unparse(node)}` is not a string", fix)
        return ""

    def _model_file(self, kind: str, node: ast.expr) -> None:
        """Read the name of a model's file or directory."""
        name = self._text(node)
        if name is None:
            message = f"the file `{ast.unparse(node)}` is not a string"
            self._problem(node, message, 'Write its name: "models/encoder.pt".')
            return
        self._described["shown"] = name
        path = self._source.root / name
        if path.exists() and (path.is_file() or kind == "spacy"):
            self._described["file"] = archive_path(name)
            if kind == "torch":
                self._torch(name, node)
        elif kind == "spacy" and "/" not in name:
            meant = "the worker looks for an installed spaCy package with that name"
            message = f"there is no directory {name} here: {meant}"
            self._findings.warn(self._source.module.file, node.lineno, message)
        else:
            what = "is a directory" if path.is_dir() else "does not exist"
            message = f"the file {name} {what}"
            self._problem(node, message, "Write its path relative to the project's directory.")

    def _torch(self, name: str, node: ast.expr) -> None:
        """Read which kind of torch file it is, and which class of the module a state dict is for."""
        path = self._source.root / name
        stored = self._described["format"] = weights_format(path)
        if stored in ("torchscript", "exported"):
            return
        if stored not in ("state_dict", "safetensors"):
            fix = "Export it: torch.jit.script(model).save(...) or torch.export.save(...)."
            self._problem(node, f"{name} does not hold a torch model", fix)
            return
        pickled = pickled_class(path)
        if pickled:
            message = f"{name} is a pickle of a whole object ({pickled}), which runs code when it is loaded"
            fix = f'torch.jit.script(model).save("{name}"), or a state dict: torch.save(model.state_dict(), "{name}").'
            self._problem(node, message, f"Export TorchScript, {fix}")
            return
        networks = self._networks()
        if len(networks) == 1:
            self._described["class"] = networks[0]
            return
        found = f"it has {' and '.join(networks)}" if networks else "there is none"
        message = f"{name} is a state dict, which needs exactly one nn.Module class in this module; {found}"
        fix = f'Define it here, or export TorchScript: torch.jit.script(model).save("{name}").'
        self._problem(node, message, fix)

    def _networks(self) -> list[str]:
        """Return the nn.Module classes of the file that are not a base of another one."""
        found = [kind for kind in self._source.tree.classes(self._source.module) if is_module(kind)]
        bases = [node for kind in found for node, _ in kind.lineage[1:]]
        return [kind.name for kind in found if kind.node not in bases]

    def _pipeline(self, node: ast.expr) -> None:
        """Read `{"task": ..., "model": ..., ...}`: the arguments of transformers.pipeline."""
        try:
            options = ast.literal_eval(node)
        except ValueError:
            options = None
        if not isinstance(options, dict) or not isinstance(options.get("task"), str):
            fix = 'Write {"task": "text-classification", "model": "models/sentiment"}.'
            self._problem(node, "a huggingface_pipeline needs the arguments of transformers.pipeline", fix)
            return
        model = options.get("model")
        self._described.update(options=options, shown=str(model or options["task"]))
        if isinstance(model, str) and (self._source.root / model).is_dir():
            self._described["file"] = archive_path(model)
        else:
            message = f"there is no directory {model} here: each worker downloads the model when it starts"
            self._findings.warn(self._source.module.file, node.lineno, message)

    def _functions(self, node: ast.expr) -> None:
        """Read the third part: the `post` function, or a dict with `pre` and `post`."""
        if isinstance(node, ast.Constant) and node.value is None:
            return
        if not isinstance(node, ast.Dict):
            self._function("post", node, POST)
            return
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if name not in ("pre", "post"):
                shown = f"the key {name!r}" if name else "a key that cannot be read"
                self._problem(key or node, f"the dict has {shown}", 'Only "pre" and "post" are allowed.')
            elif not (isinstance(value, ast.Constant) and value.value is None):
                self._function(str(name), value, PRE if name == "pre" else POST)

    def _function(self, role: str, node: ast.expr, wanted: Role) -> str:
        """Read a function's signature, and return its name, for messages."""
        module: SourceModule = self._source.module
        function: Function
        if isinstance(node, ast.Lambda):
            function, name = node, "lambda"
        else:
            name = node.id if isinstance(node, ast.Name) else ""
            if role == "predict" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
            found = self._source.tree.function(module, name) if name else None
            if found is None:
                near = difflib.get_close_matches(name, module.function_lines(), n=1)
                fix = f"Did you mean `{near[0]}`?" if near else f"Write def {name or 'function'}(...)."
                shown = name or ast.unparse(node)
                self._problem(node, f"`{shown}` is not a function of this module", fix)
                return name
            if isinstance(found, Problem):
                self._findings.problems.append(found)
                return name
            function, module = found.node, found.module
        if yields(function):
            message = f"{name} is a generator, but a stage passes on one value"
            fix = "Return the value instead of yielding it."
            self._findings.problem(module.file, first_yield(function), message, fix)
        parameters = read_signature(function, wanted, file=module.file, findings=self._findings)
        line = function.lineno if module is self._source.module else 0
        self.hooks[f"{role} {self._number}"] = Hook(name, line, call_kind(function), parameters)
        return name

    def _text(self, node: ast.expr) -> str | None:
        """Return a string that is written out, or the name of a constant of the module."""
        bindings = self._source.module.bindings
        if isinstance(node, ast.Name) and node.id in bindings:
            bound = bindings[node.id].node
            node = bound if isinstance(bound, ast.expr) else node
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None

    def _problem(self, node: ast.AST, message: str, fix: str) -> None:
        line = getattr(node, "lineno", 0)
        self._findings.problem(self._source.module.file, line, f"stage {self._number} of FLOW: {message}", fix)


def nearest_type(name: str) -> str | None:
    """Return the stage type that a name in lower case is, or may mean."""
    if name in STAGE_TYPES:
        return name
    near = difflib.get_close_matches(name, STAGE_TYPES, n=1, cutoff=0.6)
    return _OTHER_NAMES.get(name) or (near[0] if near else None)
