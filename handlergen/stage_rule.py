"""What ties preprocess or postprocess to the process that has the model: five rules, applied by reading the source.

1. A hook that asks for `model` or `device`, or names an accelerator, is tied.
2. In a class, a hook that uses `self` for more than its own methods and class constants is tied.
3. A hook is tied by what it reads and `load` or `predict` assigns or changes, and the other way round for `predict`.
4. `load` or `predict` calling a library for its effect ties the hooks that use what the call affects.
5. What the source does not show (`globals()`, `exec`, `getattr` with a computed name, ...) ties.

Hooks are followed by name: whatever function, class or module-level value of the project a hook mentions, it may use
wholly. The files of a project are one namespace: what two of them call alike counts as one.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from handlergen.findings import Source
from handlergen.library_effects import (
    ASKS_ONLY,
    CACHES,
    HIDDEN,
    REACHES_NAMES,
    SHARES,
    affects,
    changes_arguments,
    changes_object,
    hands_on,
    is_effect,
    is_gpu_library,
    is_standard,
    makes_array,
    sounds_like_change,
)
from handlergen.runtime.contract import Contract
from handlergen.source_module import SourceModule, dotted, statements_at_import

HOOKS = ("preprocess", "postprocess")
_BUILDS = (
    *("__init__", "setup_environment", "load", "warmup", "load_state_dict", "_load_from_state_dict"),
    *("set_extra_state", "__setstate__", "to", "_apply", "eval", "train"),
)
_PREDICTS = ("predict", "explain", "collate")
_CLASS_ROLES = {
    "model-class": ("__init__", "setup_environment", "load", "preprocess", "predict", "postprocess"),
    "module": (*_BUILDS, *_PREDICTS, "preprocess", "postprocess"),
}
_ACCELERATOR = re.compile(r"(cuda|mps|xpu|hpu)(:\d+)?|(CUDA|Tensorrt|ROCM)ExecutionProvider")
_PARAMETER = "(a parameter)"


_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_SELF, _PARAMETER = "(self)", "(parameter)"
_HANDS_OUT = ("next", "iter", "reversed", "enumerate", "zip", "map", "filter", "max", "min", "getattr")


@dataclass(frozen=True)
class Change:
    """Something that code assigns or changes.

    Attributes:
        names: Module-level names, `(self)` or `(parameter)`.
        attributes: On the way from the names to what is changed.
        verb: `assigns`, `changes` or `may change`.
        callee: Only if this function or method of the project changes what it is given.
    """

    names: frozenset[str]
    attributes: frozenset[str]
    verb: str
    line: int
    callee: str = ""


class Names:
    """What the names of one file stand for: libraries' by their dotted name, and those of the project's files."""

    def __init__(self, source: SourceModule) -> None:
        self.source = source
        self.libraries: dict[str, str] = {}
        self.modules: set[str] = set()
        self.originals: dict[str, str] = {}
        self.inner: dict[int, set[str]] = {}  # files of the project that a line imports


class Code(ast.NodeVisitor):
    """What one function, class body or module-level expression mentions and does; everything with its line.

    Attributes:
        reads: Module-level names; `context.x` for what is read of a context.
        at_import: Names that a module-level expression itself calls: their bodies run in every process.
        uses, effects: Dotted names of libraries; an effect is a call or an assignment that serves no result.
        unknown, binds: What the source does not show, and what of it may bind names.
        own: Attributes of the first parameter; "" for any other use of it.
        returns: Names that the result may be a part of; `f()` for what `f` returns, `.m()` for a method.
        keeps: A function inside changes a variable of this one, which then outlives the call.
    """

    def __init__(self, project: Project, names: Names, node: ast.AST, *, name: str = "", method: bool = False) -> None:
        self.project, self.names, self.name, self.node = project, names, name, node
        self.file = names.source.file
        self.reads, self.uses, self.effects, self.device, self.unknown, self.binds, self.own = (
            dict[str, int]() for _ in range(7)
        )
        self.changes: list[Change] = []
        self.at_import: set[str] = set()
        self.returns: set[str] = set()
        self.keeps = False
        self._sources: dict[str, set[str]] = {}
        self._scopes: list[set[str]] = []
        self._globals: set[str] = set()
        self._inner: dict[str, list[str]] = {}
        arguments = parameters(node) if isinstance(node, _FUNCTION) else []
        self.first = arguments[0] if method and arguments and not decorated(node, "staticmethod") else ""
        for argument in arguments:
            if argument != "context":
                self._sources[argument] = {_SELF if argument == self.first else _PARAMETER}
        for _ in range(2):  # what the last line of a loop makes of a name counts in its first line
            self.changes.clear()
            self.visit(node)
        if isinstance(node, ast.expr):
            self.returns = self.roots(node)

    # What an expression may be a part of.

    def _is_global(self, name: str) -> bool:
        return not any(name in scope for scope in self._scopes)

    def roots(self, node: ast.AST | None) -> set[str]:  # noqa: PLR0911 - a kind of expression a branch
        """The names whose values a value may be, or be a part of; none for what is made anew."""
        if isinstance(node, ast.Name):
            if not self._is_global(node.id):
                return self._sources.get(node.id, set()) | ({"context"} if node.id == "context" else set())
            if node.id in self.names.libraries or node.id in self.names.modules:
                return set()
            name = self.names.originals.get(node.id, node.id)
            return set() if name not in self.project.names and hasattr(builtins, name) else {name}
        if isinstance(node, ast.Attribute):
            if self._module(node.value):
                return {node.attr} | self.roots(node.value)
            if node.attr in ("store", "logger", "device") and "context" in self.roots(node.value):
                return set()
            return {f"context.{node.attr}" if root == "context" else root for root in self.roots(node.value)}
        if isinstance(node, ast.Subscript):
            return self.roots(node.value) | self._returned("__getitem__")
        if isinstance(node, ast.Call):
            return self._call_roots(node)
        if isinstance(node, ast.Starred | ast.Await | ast.NamedExpr | ast.Yield | ast.YieldFrom):
            return self.roots(node.value)
        if isinstance(node, ast.Lambda | ast.BinOp | ast.Compare | ast.JoinedStr | ast.UnaryOp) or node is None:
            return set()
        return set[str]().union(*(self.roots(child) for child in ast.iter_child_nodes(node)))

    def _returned(self, method: str) -> set[str]:
        return {f".{method}()"} if method in self.project.methods else set()

    def _call_roots(self, node: ast.Call) -> set[str]:
        function = self._function(node.func)
        given = set[str]().union(*(self.roots(argument) for argument in (*node.args, *(k.value for k in node.keywords))))
        if isinstance(node.func, ast.Attribute) and function is None:
            if self._library(node.func):
                return set()
            return self.roots(node.func.value) | self._returned(node.func.attr)
        if function in self.project.functions:
            return given | {f"{function}()"}
        if function in self.project.classes:
            return {function} if self.project.is_single(function) else set()
        if isinstance(node.func, ast.Name) and node.func.id in ("super", "type"):
            return given or ({_SELF} if self.first else set())
        if isinstance(node.func, ast.Name) and node.func.id in _HANDS_OUT:
            return given
        return self.roots(node.func)

    def _function(self, func: ast.AST) -> str | None:
        """The name of the project's function or class that is called; None for methods and all else."""
        if isinstance(func, ast.Name) and self._is_global(func.id):
            return self.names.originals.get(func.id, func.id)
        known = isinstance(func, ast.Attribute) and func.attr in self.project.names and self._module(func.value)
        return func.attr if isinstance(func, ast.Attribute) and known else None

    def _module(self, node: ast.AST) -> bool:
        """Whether an expression is a file of the project."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.names.modules

    def _library(self, node: ast.AST) -> str:
        """The dotted name that an attribute has in a library; empty when it is none."""
        path: list[str] = []
        while isinstance(node, ast.Attribute | ast.Call):
            if isinstance(node, ast.Call):
                if not path or not isinstance(node.func, ast.Attribute | ast.Name) or not self._shares(node):
                    return ""
                node = node.func
                continue
            path.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names.libraries:
            return ""
        return ".".join((self.names.libraries[node.id], *reversed(path)))

    def _shares(self, node: ast.Call) -> bool:
        """Whether a call hands out what the library keeps: `decimal.getcontext()`."""
        return self._library(node.func).rpartition(".")[2].startswith(SHARES)

    # What the source says, node by node.

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._define(node)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            self._scopes.append({name for part in node.generators for name in stored(part.target)})
            for part in node.generators:
                self._bind(part.target, self._items(part.iter), part.iter)
            self.generic_visit(node)
            self._scopes.pop()
        else:
            super().visit(node)

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        for part in (*getattr(node, "decorator_list", ()), *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        if node is not self.node and isinstance(node, _FUNCTION):
            self._inner[node.name] = parameters(node)
            if node.name in self._globals:
                self._change({node.name}, node, "assigns")
        for argument, default in defaults(node):
            if isinstance(default, ast.List | ast.Dict | ast.Set | ast.Call):  # one object for all calls
                self._sources.setdefault(argument, set()).add(self.name)
            else:
                self._sources.setdefault(argument, set()).update(self.roots(default))
        self._scopes.append(own_names(node))
        for part in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(part)
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            self.visit(part)
        for part in node.body:
            if node is not self.node or not isinstance(part, _FUNCTION):
                self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assigned([node.target], node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assigned(node.targets, node.value)

    def _assigned(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        unused = all(isinstance(target, ast.Name) and target.id == "_" for target in targets)
        self._call(value, bare=True) if unused and isinstance(value, ast.Call) else self.visit(value)
        for target in targets:
            self._bind(target, self.roots(value), target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target, self.roots(node.value), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.visit(ast.Name(node.target.id, ast.Load(), lineno=node.lineno))
            number = isinstance(node.value, ast.Constant)
            found = self.roots(node.target) if not self._is_global(node.target.id) else set()
            self._change({name for name in found if not (number and self.project.is_plain(name))}, node)
        self._bind(node.target, self.roots(node.value), node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._bind(node.target, self._items(node.iter), node)
        self.generic_visit(node)

    visit_AsyncFor = visit_For

    def _items(self, node: ast.expr) -> set[str]:
        return self.roots(node).union(*(self._returned(name) for name in ("__iter__", "__next__", "__getitem__")))

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._bind(node.optional_vars, self.roots(node.context_expr) | self._returned("__enter__"), node.context_expr)

    def visit_Match(self, node: ast.Match) -> None:
        for pattern in ast.walk(node):
            if isinstance(pattern, ast.MatchAs | ast.MatchStar) and pattern.name:
                self._sources.setdefault(pattern.name, set()).update(self.roots(node.subject))
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._bind(target, set(), node)

    def visit_Return(self, node: ast.Return) -> None:
        self.returns |= self.roots(node.value)
        self.generic_visit(node)

    def visit_Yield(self, node: ast.Yield | ast.YieldFrom) -> None:
        self.returns |= self.roots(node.value)
        self.generic_visit(node)

    visit_YieldFrom = visit_Yield

    def visit_Global(self, node: ast.Global) -> None:
        self._globals |= set(node.names)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names if self._scopes else ():
            name = alias.asname or alias.name.partition(".")[0]
            library = self.names.libraries.get(name)
            if library and not is_standard(library):
                self.uses.setdefault("sys.path", node.lineno)
            if name in self._globals:
                self._change({name}, node, "assigns")
        for inner in self.names.inner.get(node.lineno, ()) if self._scopes else ():
            self.reads.setdefault(inner, node.lineno)

    visit_ImportFrom = visit_Import

    def visit_Expr(self, node: ast.Expr) -> None:
        inner = node.value.value if isinstance(node.value, ast.Await) else node.value
        self._call(inner, bare=True) if isinstance(inner, ast.Call) else self.visit(inner)

    def visit_Call(self, node: ast.Call) -> None:
        self._call(node, bare=False)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _ACCELERATOR.fullmatch(node.value):
            self.device.setdefault(repr(node.value), node.lineno)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        if node.format_spec is not None:
            self.uses.setdefault("format()", node.lineno)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        line = node.lineno
        if node.id == self.first:
            self.own.setdefault("", line)
        if not self._is_global(node.id):
            outer = any(node.id in scope for scope in self._scopes[:-1]) and node.id not in self._scopes[-1]
            if outer and isinstance(node.ctx, ast.Store):
                self.keeps = True
            if node.id == "context":
                self.reads.setdefault("context", line)
            return
        name = self.names.originals.get(node.id, node.id)
        self.reads.setdefault(name, line)
        if node.id in self.names.libraries:
            self._use(self.names.libraries[node.id], line)
        elif node.id in self.names.modules:
            self.unknown.setdefault(f"{node.id}, handed on as a whole", line)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        line, base = node.lineno, node.value
        library = self._library(node)
        if node.attr in HIDDEN and not library:
            self._hide(node.attr, line)
        if node.attr == "strftime":
            self.uses.setdefault("strftime()", line)
        if library:
            self.reads.setdefault(library.partition(".")[0], line)
            self._use(library, line)
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Call):
                self.visit(base)
        elif self._module(base):
            self.reads.setdefault(node.attr, line)
            self.reads.setdefault("__getattr__", line)
            while isinstance(base, ast.Attribute):
                self.reads.setdefault(base.attr, line)
                base = base.value
        elif isinstance(base, ast.Name) and base.id == self.first:
            self.own.setdefault(node.attr, line)
        elif isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super" and self.first:
            self.own.setdefault(node.attr, line)
        elif isinstance(base, ast.Name) and base.id == "context" and not self._is_global("context"):
            self.reads.setdefault(f"context.{node.attr}", line)
            if node.attr == "device":
                self.device.setdefault("context.device", line)
        else:
            self.visit(base)

    def _use(self, name: str, line: int) -> None:
        self.uses.setdefault(name, line)
        if name.startswith(REACHES_NAMES):
            self._hide(name, line)
        if is_gpu_library(name) and name not in ASKS_ONLY:
            self.device.setdefault(name, line)

    def _hide(self, what: str, line: int) -> None:
        self.unknown.setdefault(what, line)
        self.binds.setdefault(what, line)

    def _call(self, node: ast.Call, *, bare: bool) -> None:
        func, line = node.func, node.lineno
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        given = set[str]().union(*(self.roots(argument) for argument in arguments))
        library, function = self._library(func), self._function(func)
        if isinstance(func, ast.Name) and function not in self.project.names:
            self._builtin(func.id, node, given)
        if library:
            if is_effect(library, bare=bare):
                self.effects.setdefault(library, line)
            out = set[str]().union(*(self.roots(k.value) for k in node.keywords if k.arg == "out"))
            self._change(given if changes_arguments(library, bare=bare) else out, node)
            if library == "torch.device" and not all(isinstance(argument, ast.Constant) for argument in arguments):
                self.device.setdefault("torch.device(...)", line)
        elif function is not None:
            self.at_import.add(function)
            if function in self.project.functions or function in self.project.classes:
                self._change(given, node, callee=function)
            elif function in self.project.values and not self.project.is_made_by_library(function):
                self._change({function}, node, "may change")
        elif isinstance(func, ast.Attribute):
            self._method(node, func, given, bare=bare)
        elif isinstance(func, ast.Name):
            for parameter, argument in zip(self._inner.get(func.id, ()), node.args, strict=False):
                self._sources.setdefault(parameter, set()).update(self.roots(argument))
        for argument in arguments:  # a function that is given is called with the rest
            name = self._function(argument)
            if name in self.project.functions:
                self._change(given - {name}, node, callee=name)
        self.visit(func)
        for argument in arguments:
            self.visit(argument)

    def _method(self, node: ast.Call, func: ast.Attribute, given: set[str], *, bare: bool) -> None:
        name, roots = func.attr, self.roots(func.value)
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        asks = isinstance(first, str) and first.lstrip().lower().startswith("select")  # a query of a database
        if name in ("cuda", "pin_memory"):
            self.device.setdefault(f".{name}()", func.lineno)
        if isinstance(func.value, ast.Name) and func.value.id in ("dict", "list", "set") and self._is_global(func.value.id):
            self._change(given if changes_object(name, bare=bare, array=False) else set(), func)
        elif name in self.project.methods:
            self._change(roots | given, func, callee=f".{name}")
        elif not asks and changes_object(
            name, bare=bare, array=bool(roots) and all(map(self.project.is_array, roots))
        ):
            self._change_of(func.value, func, verb="changes" if sounds_like_change(name) else "may change")
            for root in roots:
                self.project.link(root, given)

    def _builtin(self, name: str, node: ast.Call, given: set[str]) -> None:
        line = node.lineno
        written = node.args[1] if len(node.args) > 1 else None
        if name in ("globals", "exec", "eval", "__import__", "breakpoint") or (name == "vars" and (given or not node.args)):
            self._hide(f"{name}()", line)
        elif name in ("getattr", "setattr", "delattr") and node.args:
            first = node.args[0]
            if isinstance(written, ast.Constant) and isinstance(written.value, str):
                attribute = ast.Attribute(first, written.value, ast.Load(), lineno=line)
                self._bind(attribute, given, node) if name != "getattr" else self.visit(attribute)
            elif self.roots(first) or self._module(first):
                self.unknown.setdefault(f"{name} with a computed name", line)
                if name != "getattr":
                    self.binds.setdefault(f"{name} with a computed name", line)
        elif name in ("open", "format"):
            self.uses.setdefault(f"{name}()", line)
        elif name == "next":
            self._change(given, node)

    # Changes.

    def _bind(self, target: ast.AST, roots: set[str], node: ast.AST) -> None:
        """`target = ...`, in whatever statement."""
        if isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._bind(part, roots, node)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, set(), node)
        elif isinstance(target, ast.Name):
            if self._is_global(target.id) and (self._scopes or self.name == "(file)"):
                self._change({target.id}, node, "assigns")
                self.project.link(target.id, roots)
            else:
                self._sources.setdefault(target.id, set()).update(roots)
                self.visit_Name(target)
        elif isinstance(target, ast.Attribute | ast.Subscript):
            self._change_of(target, node)
            for root in self.roots(target.value):
                self.project.link(root, roots)
            self.visit(target.value)
            if isinstance(target, ast.Subscript):
                self.visit(target.slice)

    def _change_of(self, target: ast.AST, node: ast.AST, verb: str = "changes") -> None:
        """What an expression stands for is changed."""
        base, attributes = target, set[str]()
        while isinstance(base, ast.Attribute | ast.Subscript | ast.Call):
            if isinstance(base, ast.Attribute):
                attributes.add(base.attr)
            base = base.func if isinstance(base, ast.Call) else base.value
        if isinstance(base, ast.Name) and not self._is_global(base.id) and base.id not in self._scopes[-1]:
            self.keeps = True
        library = self._library(target.value if isinstance(target, ast.Subscript) else target)
        if library:
            self.effects.setdefault(library, getattr(node, "lineno", 0))
            if library.startswith("builtins"):
                self._hide(library, getattr(node, "lineno", 0))
        if isinstance(target, ast.Attribute) and self._module(target.value):
            self._change({target.attr}, node, "assigns")
        inner = target.value if isinstance(target, ast.Attribute | ast.Subscript) else target
        roots = self.roots(target) if isinstance(inner, ast.Name) and inner.id == "context" else self.roots(inner)
        self._change(roots, node, verb, attributes=attributes)

    def _change(
        self, names: set[str], node: ast.AST, verb: str = "changes", *, callee: str = "", attributes: Iterable[str] = ()
    ) -> None:
        if names:
            found = Change(frozenset(names), frozenset(attributes), verb, getattr(node, "lineno", 0), callee)
            self.changes.append(found)


class Project:
    """The project's files as one namespace, and what each name of it is defined as."""

    def __init__(self, source: Source) -> None:
        self._tree = source.tree
        self.functions: dict[str, list[tuple[Names, ast.AST]]] = {}
        self.classes: dict[str, list[tuple[Names, ast.ClassDef]]] = {}
        self.values: dict[str, list[tuple[Names, ast.expr]]] = {}
        self.methods: dict[str, list[tuple[Names, ast.AST]]] = {}
        self.where: dict[ast.AST, Names] = {}
        self.links: dict[str, set[str]] = {}
        self._codes: dict[ast.AST, Code] = {}
        self._files: dict[str, Names] = {}
        self._at_import: set[str] = set()
        self.main = self._add(source.module)
        self._import(self.main)
        self.names = {*self.functions, *self.classes, *self.values}
        for names in list(self._files.values()):
            self._resolve(names)
        for name, values in self.values.items():
            for where, value in values:
                self.link(name, self.code(where, value).returns)

    # Files.

    def _add(self, module: SourceModule) -> Names:
        if module.file in self._files:
            return self._files[module.file]
        names = self._files[module.file] = Names(module)
        for node in statements_at_import(module.tree.body):
            if isinstance(node, _FUNCTION):
                self.functions.setdefault(node.name, []).append((names, node))
                for decorator in node.decorator_list:  # @clean.register: a call of `clean` may run it
                    inner = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                        self.functions.setdefault(inner.value.id, []).append((names, node))
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, []).append((names, node))
            for target, value in assigned(node):
                for name in (together := list(stored(target))):
                    into = self.functions if isinstance(value, ast.Lambda) else self.values
                    into.setdefault(name, []).append((names, value))  # type: ignore[arg-type]
                    if isinstance(value, ast.Call):
                        self.link(name, set(together) - {name})
        for node in ast.walk(module.tree):
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, _FUNCTION):
                    self.methods.setdefault(method.name, []).append((names, method))
                    self.where[method] = names
            if isinstance(node, ast.Import | ast.ImportFrom):
                for path, _ in self._imported(module, node):
                    opened = self._tree.open(path)
                    if isinstance(opened, SourceModule):
                        names.inner.setdefault(node.lineno, set()).add(opened.file)
                        self._add(opened)
        return names

    def _imported(self, module: SourceModule, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[Path, str]]:
        """The project's files that a statement imports, each with the name that it binds to the file, or none."""
        if isinstance(node, ast.Import):
            beside = None if module.is_package else module.path.parent
            for alias in node.names:
                path = self._tree.importable(tuple(alias.name.split(".")), beside=beside)
                if path is not None:
                    yield path, alias.asname or alias.name.partition(".")[0]
            return
        own = self._tree.local_file(module, node)
        if own is not None:
            yield own, ""
        for alias in node.names:
            inner = ast.ImportFrom(f"{node.module}.{alias.name}" if node.module else alias.name, [], node.level)
            path = self._tree.local_file(module, inner)
            if path is not None:
                yield path, alias.asname or alias.name

    def _import(self, names: Names) -> None:
        """Follow what an import of a file imports in turn."""
        self._at_import.add(names.source.file)
        for node in statements_at_import(names.source.tree.body):
            for file in names.inner.get(node.lineno, ()) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if file not in self._at_import:
                    self._import(self._files[file])

    def _resolve(self, names: Names) -> None:
        for node in ast.walk(names.source.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            local = list(self._imported(names.source, node))
            names.modules |= {name for _, name in local if name}
            for alias in node.names:
                name = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
                if isinstance(node, ast.Import) and name not in names.modules:
                    names.libraries[name] = alias.name if alias.asname else name
                elif isinstance(node, ast.ImportFrom) and not any(not bound for _, bound in local) and name not in names.modules:
                    names.libraries[name] = f"{node.module or ''}.{alias.name}".lstrip(".")
                elif isinstance(node, ast.ImportFrom) and alias.asname:
                    names.originals[name] = alias.name

    # What is known of names.

    def code(self, names: Names, node: ast.AST, *, method: bool = False, name: str = "") -> Code:
        if node not in self._codes:
            self._codes[node] = Code(self, names, node, method=method, name=name)
        return self._codes[node]

    def link(self, name: str, others: Iterable[str]) -> None:
        """The value of a name holds those of others, so that changing its parts changes them."""
        self.links.setdefault(name, set()).update(others)

    def codes(self, name: str) -> Iterator[Code]:
        """What a mention of a name may run: a function, a class with all of its methods, a value's expression."""
        for names, node in self.functions.get(name, ()):
            yield self.code(names, node, name=name)
        for names, value in self.values.get(name, ()):
            yield self.code(names, value, name=name)
        for names, kind in self.classes.get(name, ()):
            yield self.code(names, kind, name=name)
            for method in kind.body:
                if isinstance(method, _FUNCTION) and not (name in self.served and method.name in HOOKS):
                    yield self.code(names, method, method=True, name=method.name)
        if name in self._files and name not in self._at_import:
            body = [n for n in statements_at_import(self._files[name].source.tree.body) if not isinstance(n, _FUNCTION | ast.ClassDef)]
            yield self.code(self._files[name], ast.Module(body, []), name="(file)")

    served: frozenset[str] = frozenset()

    def expand(self, roots: Iterable[str]) -> set[str]:
        """Names, with what functions and methods among the roots return, and all that their values hold."""
        found, waiting = set[str](), list(roots)
        while waiting:
            root = waiting.pop()
            if root in found:
                continue
            found.add(root)
            waiting += self.links.get(root, ())
            if root.endswith("()"):
                name, methods = root[:-2].lstrip("."), root.startswith(".")
                for names, node in (self.methods if methods else self.functions).get(name, ()):
                    waiting += self.code(names, node, method=methods, name=name).returns - {_SELF, _PARAMETER}
        return found

    def changes_given(self, callee: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a function or `.method` of the project changes what it is given, or its object."""
        if callee in seen:
            return False
        name, method = callee.lstrip("."), callee.startswith(".")
        found = list((self.methods if method else self.functions).get(name, ()))
        found += [(names, part) for names, kind in self.classes.get(name, ()) for part in kind.body if getattr(part, "name", "") == "__init__"]
        return any(
            change.names & ({_SELF, _PARAMETER} if method else {_PARAMETER})
            and (not change.callee or self.changes_given(change.callee, seen | {callee}))
            for names, node in found
            for change in self.code(names, node, method=method or name in self.classes, name=name).changes
        )

    def _made_by(self, name: str) -> Iterator[str]:
        for names, value in self.values.get(name, ()):
            yield self.code(names, value)._library(value.func) if isinstance(value, ast.Call) else ""

    def is_array(self, name: str) -> bool:
        made = list(self._made_by(name))
        return bool(made) and all(map(makes_array, made))

    def is_made_by_library(self, name: str) -> bool:
        return all(self._made_by(name))

    def is_plain(self, name: str) -> bool:
        """Whether a name is bound to what Python itself makes, so that adding a number to a part makes a new one."""
        return name in self.values and not any(
            not is_standard(used) and not used.endswith("()")
            for names, value in self.values[name]
            for used in self.code(names, value).uses
        )

    def is_single(self, name: str) -> bool:
        """Whether all who make an instance of a class may get the same one."""
        for names, kind in self.classes.get(name, ()):
            code = self.code(names, kind, name=name)
            if any(keyword.arg == "metaclass" and not hands_on(code._library(keyword.value)) for keyword in kind.keywords):
                return True
            for method in kind.body:
                if getattr(method, "name", "") == "__new__" and any(isinstance(n, ast.Assign) for n in ast.walk(method)):
                    return True
            if self._kept_by(names, kind) or any(self.is_single(base.id) for base in kind.bases if isinstance(base, ast.Name) and base.id != name):
                return True
        return False

    def _kept_by(self, names: Names, node: ast.AST) -> str:
        """The decorator that may keep something from call to call, if there is one."""
        for decorator in getattr(node, "decorator_list", ()):
            inner = decorator.func if isinstance(decorator, ast.Call) else decorator
            library = Code(self, names, inner)._library(inner)
            function = names.originals.get(dotted(inner), dotted(inner).rpartition(".")[2])
            if library and not hands_on(library):
                return library
            if any(self.code(where, made, name=function).keeps for where, made in self.functions.get(function, ())):
                return function
        return ""

    def is_cached(self, name: str) -> bool:
        return any(
            Code(self, names, inner)._library(inner) in CACHES
            for names, node in self.functions.get(name, ())
            for decorator in getattr(node, "decorator_list", ())
            for inner in [decorator.func if isinstance(decorator, ast.Call) else decorator]
        )

    def keeps(self, name: str) -> bool:
        """Whether a name's value remembers something between calls that the source does not name."""
        if self.is_single(name) or any(self._kept_by(names, node) for names, node in self.functions.get(name, ())):
            return True
        made = [value.func.id for _, value in self.values.get(name, ()) if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)]
        return any(self.code(names, node, name=maker).keeps for maker in made for names, node in self.functions.get(maker, ()))


    def devices_at_import(self) -> Iterator[tuple[str, Site]]:
        """Calls that may make a context on an accelerator when the module is imported."""
        for file in self._at_import:
            names = self._files[file]
            body = [node for node in statements_at_import(names.source.tree.body) if not isinstance(node, _DEFINITION)]
            waiting, seen = [(names, node) for node in body], set[str]()
            while waiting:
                where, node = waiting.pop()
                for call in ast.walk(node):
                    if isinstance(call, ast.Call):
                        code = Code(self, where, call)
                        function = code._function(call.func)
                        if function in self.functions and function not in seen:
                            seen.add(function)
                            waiting += self.functions[function]
                        named = code.device.keys() | {n for read in code.reads for inner in self.codes(read) if isinstance(inner.node, ast.expr) for n in inner.device}
                        if named and code._library(call.func) != "torch.device" and function is None:
                            yield ast.unparse(call.func), Site(where.source.file, call.lineno)


class Site(NamedTuple):
    """Where something happens: file for messages, line, and the functions by which the hook comes there."""

    file: str
    line: int
    through: tuple[str, ...] = ()

    def seen_from(self, other: Site) -> str:
        """`line 12`, with the file when it is another one, and with the helpers."""
        place = f"line {self.line}" if self.file == other.file else f"{self.file}:{self.line}"
        return f"{place}{self.helpers}"

    @property
    def helpers(self) -> str:
        return f" (through {' and '.join(self.through)})" if self.through else ""


class Role:
    """What a hook and all that it mentions do; the first site of each counts."""

    def __init__(self, project: Project, name: str, codes: Iterable[Code], kinds: Iterable[ast.ClassDef] = ()) -> None:
        self.name = name
        self.reads, self.uses, self.effects, self.device, self.unknown, self.binds, self.own = (
            dict[str, Site]() for _ in range(7)
        )
        self.changes: dict[str, tuple[str, Site]] = {}
        self.attributes: dict[str, Site] = {}
        self.kept: dict[str, Site] = {}
        served = {part: part.name for kind in kinds for part in kind.body if isinstance(part, _FUNCTION)}
        waiting: list[tuple[Code, tuple[str, ...], bool]] = [(code, (), True) for code in codes]
        seen: set[tuple[Code, bool]] = set()
        while waiting:
            code, through, runs = waiting.pop(0)
            if (code, runs) in seen or (code, True) in seen:
                continue
            seen.add((code, runs))
            self._note(project, code, through, runs=runs)
            for name, line in code.reads.items():
                site = Site(code.file, line, through)
                self.reads.setdefault(name, site)
                if project.keeps(name) and runs:
                    self.changes.setdefault(name, ("may change", site))
                if project.is_cached(name):
                    self.kept.setdefault(name, site)
                at_import = isinstance(code.node, ast.expr) and name in code.at_import and name not in project.classes
                for inner in project.codes(name):
                    path = (*through, inner.name) if isinstance(inner.node, _FUNCTION | ast.Lambda) else through
                    waiting.append((inner, path, runs and not at_import))
            for name, line in code.own.items() if code.node in served else ():
                self.own.setdefault(name, Site(code.file, line, through))
                for method in (method for method, known in served.items() if known == name):
                    inner = project.code(project.where[method], method, method=True, name=name)
                    waiting.append((inner, (*through, name), runs))

    def _note(self, project: Project, code: Code, through: tuple[str, ...], *, runs: bool) -> None:
        for mine, theirs in ((self.uses, code.uses), (self.device, code.device), (self.unknown, code.unknown)):
            for name, line in theirs.items():
                mine.setdefault(name, Site(code.file, line, through))
        for name, line in code.binds.items():
            self.binds.setdefault(name, Site(code.file, line, through))
        for name, line in code.effects.items() if runs else ():
            self.effects.setdefault(name, Site(code.file, line, through))
        for change in code.changes if runs else ():
            if change.callee and not project.changes_given(change.callee):
                continue
            site = Site(code.file, change.line, through)
            for name in project.expand(change.names):
                if name not in self.changes or change.verb == "assigns":
                    self.changes[name] = (change.verb, site)
            for attribute in change.attributes:
                self.attributes.setdefault(attribute, site)


@dataclass(frozen=True)
class Reason:
    """Why preprocess or postprocess belongs into the process that has the model.

    Attributes:
        rule: 1 to 5, as at the top of this file.
        file: As in messages; empty when the reason is none of the source's lines.
        line: 1-based, of the use; 0 likewise.
        hook: The hook that uses it.
        name: What it uses, as the source writes it: `TOKENIZER`, `self.labels`, `model`.
        through: The helpers by which the hook comes there, outermost first.
        what: The sentence, without place and without full stop.
        fix: How to free the stage: whole sentences.
    """

    rule: int
    file: str
    line: int
    hook: str
    name: str
    through: tuple[str, ...]
    what: str
    fix: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        place = f"{self.place}: " if self.file else ""
        return f"{place}rule {self.rule}: {self.what}. {self.fix}".rstrip()


def find_reasons(source: Source, contract: Contract) -> tuple[Reason, ...]:
    """What ties preprocess or postprocess to the process that has the model; empty when nothing does."""
    if not any(hook in contract.hooks for hook in HOOKS):
        return ()
    try:
        found = list(_Rules(source, contract).reasons())
    except RecursionError:
        what = "the source is nested too deeply to be followed"
        return (Reason(5, source.module.file, 0, "", "", (), what, ""),)
    first: dict[tuple[str, str], Reason] = {}
    for reason in found:
        first.setdefault((reason.hook, reason.name), reason)
    return tuple(first.values())


class _Rules:
    """The five rules, for one module."""

    def __init__(self, source: Source, contract: Contract) -> None:
        self.contract, self.file = contract, source.module.file
        self.project = project = Project(source)
        self.ancestry = list(self._ancestry(contract.class_name)) if contract.class_name else []
        project.served = frozenset(kind.name for kind in self.ancestry)
        self.roles = {role: self._role(role) for role in ("setup", *_BUILDS, *_PREDICTS, *HOOKS) if self._has(role)}

    def _ancestry(self, name: str, seen: frozenset[str] = frozenset()) -> Iterator[ast.ClassDef]:
        """A class and its bases in the project, in the order in which Python looks."""
        for _, kind in self.project.classes.get(name, ()):
            yield kind
            for base in kind.bases:
                inner = dotted(base).rpartition(".")[2]
                inner = self.project.main.originals.get(inner, inner)
                if inner not in seen | {name}:
                    yield from self._ancestry(inner, seen | {name})

    def _of_class(self, role: str) -> bool:
        form = self.contract.form
        if role == "collate" and self.contract.details.get("collate") == "function":
            return False
        if form == "module" and role == "load":
            return False
        return role in _CLASS_ROLES.get(form, ())

    def _has(self, role: str) -> bool:
        return role in self.contract.hooks or role == "collate" or (self._of_class(role) and role not in HOOKS)

    def _role(self, role: str) -> Role:
        hook = self.contract.hooks.get(role)
        name = hook.name if hook else role
        project = self.project
        if self._of_class(role):
            written = [part for kind in self.ancestry for part in kind.body if getattr(part, "name", "") == name]
            codes = [project.code(project.where[node], node, method=True, name=name) for node in written if node in project.where]
        else:
            codes = list(project.codes(name))
        found = Role(project, name, codes, self.ancestry)
        if hook and not codes:
            found.unknown.setdefault(f"{name}, which is no function that can be read", Site(self.file, hook.line))
        return found

    def reasons(self) -> Iterator[Reason]:
        """Every reason, hook by hook; several may name the same thing."""
        for role in HOOKS:
            hook = self.contract.hooks.get(role)
            if hook is None:
                continue
            mine, site = self.roles[role], Site(self.file, hook.line)
            if role == "preprocess" and hook.streams:
                what = "{hook} yields, and a generator cannot go to another process"
                yield self._reason(5, mine, "yield", site, what, "Return a list instead, and it runs in the workers.")
            asked = {parameter.source for parameter in hook.parameters}
            if "model" in asked:
                fix = "Do in predict what needs it, or make what this hook needs of it in setup(context)."
                what = "{hook} asks for `model`, which only the predictor process has"
                yield self._reason(1, mine, "model", site, what, fix)
            yield from self._device(mine, {"device": site} if "device" in asked else {})
            yield from self._self(mine)
            for other in (*_BUILDS, *_PREDICTS):
                if other in self.roles:
                    yield from self._shared(role, mine, other, self.roles[other])
                    yield from self._effects(mine, self.roles[other])
            for name, where in mine.unknown.items():
                what = "{hook} uses {name}{through}: what that reads, the source does not show"
                fix = "Write the names out, or say stages: worker if nothing of it comes from load."
                yield self._reason(5, mine, name, where, what, fix)
        yield from self._around()

    def _reason(self, rule: int, role: Role, name: str, site: Site, what: str, fix: str) -> Reason:
        said = what.replace("{hook}", role.name).replace("{name}", name).replace("{through}", site.helpers)
        return Reason(rule, site.file, site.line, role.name, name, site.through, said, fix)

    def _device(self, role: Role, asked: dict[str, Site]) -> Iterator[Reason]:
        fix = "Leave it out: inputs are on the device when predict gets them, outputs on the CPU when it has returned."
        for name, site in {**asked, **role.device}.items():
            what = "{hook} uses {name}{through}, and workers leave the device to the predictor process"
            yield self._reason(1, role, name, site, what, fix)

    def _self(self, role: Role) -> Iterator[Reason]:
        """A worker's instance is made without its constructor: it has its class's methods and constants."""
        methods = {part.name for kind in self.ancestry for part in kind.body if isinstance(part, _FUNCTION)}
        constants = {name for kind in self.ancestry for part in kind.body if isinstance(part, ast.stmt) for target, _ in assigned(part) for name in stored(target)}
        if any(kind.decorator_list for kind in self.ancestry):
            constants.clear()  # a decorator such as `dataclass` makes attributes of the instance of them
        others = [other for name, other in self.roles.items() if name != "setup"]
        for name, site in role.own.items():
            set_by = next(((other, other.attributes[name]) for other in others if name in other.attributes), None)
            if (name in methods or name in constants) and set_by is None:
                continue
            shown = f"self.{name}" if name else "self"
            said = ", not only for a method or a constant of its class"
            if set_by is not None:
                said = f", which {set_by[0].name} sets in {set_by[1].seen_from(site)}"
            elif name:
                said = f", which is neither a method nor a constant of class {self.contract.class_name}"
            fix = f"Make {name or 'what it needs'} a class attribute, or a constant of the module, and leave it so."
            yield self._reason(2, role, shown, site, f"{{hook}} uses {{name}}{{through}}{said}", fix)

    def _shared(self, role: str, mine: Role, other: str, theirs: Role) -> Iterator[Reason]:
        setup = "pre_model_fn(model_dir)" if self.contract.form == "sagemaker" else "setup(context)"
        for name, read, verb, written in _conflicts(mine, theirs):
            fix = f"Make {name} in {setup}, which every worker runs, or where the module is imported."
            if name.startswith("context."):
                fix = f"Do that in {setup}, which every worker runs."
            elif self.contract.form == "model-class":
                fix = f"Make {name} where the module is imported, and leave it so."
            if other in _PREDICTS:
                fix = _RETURN_IT["postprocess"] if role == "postprocess" else "Keep what predict changes to predict."
            what = f"{{hook}} uses {{name}}{{through}}, which {theirs.name} {verb} in {written.seen_from(read)}"
            yield self._reason(3, mine, name, read, what, fix)
        for name, read, verb, written in _conflicts(theirs, mine) if other in _PREDICTS else ():
            fix = _RETURN_IT["preprocess"] if role == "preprocess" else "Keep what predict uses to predict."
            what = f"{{hook}} {verb} {{name}}{{through}}, which {theirs.name} uses in {read.seen_from(written)}"
            yield self._reason(3, mine, name, written, what, fix)
        prepared = self.roles["setup"].kept if "setup" in self.roles else {}
        for name in mine.kept.keys() & theirs.kept.keys() - prepared.keys():
            what = f"{{hook}} uses {{name}}(){{through}}, whose cached result {theirs.name} uses too: each worker would make another"
            yield self._reason(3, mine, name, mine.kept[name], what, f"If that is meant, call {name}() in {setup} too.")

    def _effects(self, mine: Role, theirs: Role) -> Iterator[Reason]:
        for effect, written in theirs.effects.items():
            for used, site in mine.uses.items():
                if affects(effect, used):
                    what = f"{{hook}} uses {used}{{through}}, which {{name}} may affect; {theirs.name} calls or sets that in {written.seen_from(site)}"
                    yield self._reason(4, mine, effect, site, what, "Do that in setup(context), which every worker runs, or where the module is imported.")
                    break

    def _around(self) -> Iterator[Reason]:
        """What load, predict, setup and the import do that a worker must not, or that cannot be followed."""
        for other in (*_BUILDS, *_PREDICTS):
            for name, site in self.roles[other].binds.items() if other in self.roles else ():
                what = "{hook} uses {name}{through}: what that binds, the source does not show"
                fix = "Write the names out, or say stages: worker if preprocess and postprocess use nothing of it."
                yield self._reason(5, self.roles[other], name, site, what, fix)
        if "setup" in self.roles:
            hook = self.contract.hooks["setup"]
            asks = any(parameter.source == "device" for parameter in hook.parameters)
            yield from self._device(self.roles["setup"], {"device": Site(self.file, hook.line)} if asks else {})
        for name, site in self.project.devices_at_import():
            what = "the module uses {name} when it is imported, and workers leave the device to the predictor process"
            yield Reason(1, site.file, site.line, "import", name, (), what.replace("{name}", name), "Do it in load.")


_RETURN_IT = {
    "preprocess": "Let preprocess return it: predict receives what preprocess returns.",
    "postprocess": "Let predict return it: postprocess receives what predict returns.",
}


def _conflicts(reader: Role, writer: Role) -> Iterator[tuple[str, Site, str, Site]]:
    """Names that one role reads and another one changes."""
    for name, (verb, written) in writer.changes.items():
        for read, site in reader.reads.items():
            if read == name or (name == "context" and read.startswith("context.")) or (read == "context" and name.startswith("context.")):
                yield read if read != "context" else name, site, verb, written


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """Names of a function's parameters, in order, those with stars last."""
    args = node.args
    stars = [star.arg for star in (args.vararg, args.kwarg) if star is not None]
    return [*(argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs)), *stars]


def defaults(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[tuple[str, ast.expr]]:
    """Parameters that have a default, with it."""
    args = node.args
    plain = [argument.arg for argument in (*args.posonlyargs, *args.args)]
    yield from zip(reversed(plain), reversed(args.defaults), strict=False)
    for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg, default


def stored(target: ast.AST) -> Iterator[str]:
    """The names that a target of an assignment binds."""
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id


def assigned(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets of a statement, each with the expression that it gets its value from."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield node.target, node.iter
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from ((item.optional_vars, item.context_expr) for item in node.items if item.optional_vars)


def decorated(node: ast.AST, *names: str) -> bool:
    """Whether a definition has one of these decorators."""
    return any(dotted(item).rpartition(".")[2] in names for item in getattr(node, "decorator_list", ()))


def own_names(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """The names that a function binds itself; imports aside, which mean the same everywhere in a file."""
    own, others = set(parameters(node)), set[str]()
    waiting: list[ast.AST] = list(node.body) if isinstance(node.body, list) else [node.body]
    while waiting:
        current = waiting.pop()
        if isinstance(current, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(current.name)
            continue
        if isinstance(current, ast.Global | ast.Nonlocal):
            others |= set(current.names)
        elif isinstance(current, ast.Name) and not isinstance(current.ctx, ast.Load):
            own.add(current.id)
        elif isinstance(current, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and current.name:
            own.add(current.name)
        if isinstance(current, ast.comprehension):
            waiting += [current.iter, *current.ifs]
        elif not isinstance(current, ast.Lambda):
            waiting += ast.iter_child_nodes(current)
    return own - others
