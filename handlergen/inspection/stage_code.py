"""What one function, class body or expression of a module mentions and does, read from its syntax tree alone.

A local name stands for the module-level names that its value may be a part of, whatever line assigns it.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlergen.inspection.source_module import SourceModule, dotted
from handlergen.inspection.stage_libraries import (
    ASKS_ONLY,
    HIDDEN,
    REACHES_NAMES,
    SHARES,
    changes_arguments,
    changes_object,
    is_effect,
    is_gpu_library,
    is_standard,
    sets_state,
    sounds_like_change,
)

if TYPE_CHECKING:
    from handlergen.inspection.stage_names import NamedProject

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
SELF, PARAMETER = "(self)", "(parameter)"

_ACCELERATOR = re.compile(r"(cuda|mps|xpu|hpu)(:\d+)?|(CUDA|Tensorrt|ROCM)ExecutionProvider")
_MADE_ANEW = ast.Lambda | ast.BinOp | ast.Compare | ast.JoinedStr | ast.UnaryOp | ast.Constant
_HANDS_OUT = (
    "next",
    "iter",
    "reversed",
    "enumerate",
    "zip",
    "map",
    "filter",
    "max",
    "min",
    "getattr",
    "super",
    "type",
)
"""Builtins whose result may be, or hand out, a part of what they are given."""


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
    """

    def __init__(
        self, project: NamedProject, names: Names, node: ast.AST, *, name: str = "", method: bool = False
    ) -> None:
        self.project, self.names, self.name, self.node = project, names, name, node
        self.file = names.source.file
        self.reads, self.uses, self.effects, self.device, self.unknown, self.binds, self.own = (
            dict[str, int]() for _ in range(7)
        )
        self.changes: list[Change] = []
        self.at_import: set[str] = set()
        self.shared_defaults: set[str] = set()
        self._sources: dict[str, set[str]] = {}
        self._holds: dict[str, set[str]] = {}
        self._aliases: dict[str, str] = {}
        self._scopes: list[set[str]] = []
        self._globals: set[str] = set()
        self._inner: dict[str, list[str]] = {}
        arguments = parameters(node) if isinstance(node, FUNCTION) else []
        self.first = arguments[0] if method and arguments and not decorated(node, "staticmethod") else ""
        for argument in arguments:
            if argument != "context":
                self._sources[argument] = {SELF if argument == self.first else PARAMETER}
        for _ in range(2):  # what the last line of a loop makes of a name counts in its first line
            self.changes.clear()
            self.visit(node)

    # What an expression may be a part of.

    def _is_global(self, name: str) -> bool:
        return not any(name in scope for scope in self._scopes)

    def is_unknown(self, name: str) -> bool:
        """Whether a name is bound to nothing that the source shows: a function may bind it by `global`."""
        elsewhere = (*self.names.libraries, *self.names.modules, *self.project.names)
        return name not in elsewhere and not hasattr(builtins, name) and not name.startswith("context")

    def roots(self, node: ast.AST | None) -> set[str]:  # noqa: PLR0911 - a kind of expression a branch
        """The names whose values a value may be, or be a part of; none for what is made anew.

        `f()` stands for what a function of the project may return.
        """
        if node is None or isinstance(node, _MADE_ANEW):
            return set()
        if isinstance(node, ast.Name):
            if not self._is_global(node.id):
                return self._sources.get(node.id, set()) | ({"context"} if node.id == "context" else set())
            known = node.id in self.project.names or not hasattr(builtins, node.id)
            foreign = node.id in self.names.libraries or node.id in self.names.modules
            return {self.names.originals.get(node.id, node.id)} if known and not foreign else set()
        if isinstance(node, ast.Call) and self._makes_anew(node.func):
            return set()
        found = set[str]().union(*(self.roots(child) for child in ast.iter_child_nodes(node)))
        if isinstance(node, ast.Call) and dotted(node.func) == "super" and self.first:
            return {SELF}
        if isinstance(node, ast.Call):
            return {f"{root}()" if root == self.function(node.func) else root for root in found}
        if isinstance(node, ast.Subscript):
            return found | self._methods("__getitem__")
        if not isinstance(node, ast.Attribute):
            return found
        found |= self._methods(node.attr)
        if "context" in found:
            return {f"context.{node.attr}"} if node.attr not in ("store", "logger", "device") else set()
        return found | ({node.attr} if self._module(node.value) else set())

    def _methods(self, *names: str) -> set[str]:
        """What methods of the project may hand out, if it has any of these names: `.m()` stands for that."""
        return {f".{name}()" for name in names if name in self.project.methods}

    def _held(self, node: ast.AST) -> set[str]:
        """What an object of the project that is made here was given, and may hold."""
        if isinstance(node, ast.Name):
            return self._holds.get(node.id, set())
        if isinstance(node, ast.Call) and self.function(node.func) in self.project.classes:
            return set[str]().union(*(self.roots(a) for a in (*node.args, *(k.value for k in node.keywords))))
        return set()

    def _makes_anew(self, func: ast.AST) -> bool:
        """Whether a call makes an object: of a library, of a class, of a builtin but for those that hand on."""
        name = self.function(func)
        if name in self.project.classes:
            return not self.project.is_single(name)
        foreign = name is not None and name not in self.project.names and hasattr(builtins, name)
        return bool(self.library(func)) or (foreign and name not in _HANDS_OUT)

    def function(self, func: ast.AST) -> str | None:
        """The name of the project's function or class that is called; None for methods and all else."""
        if isinstance(func, ast.Name) and self._is_global(func.id):
            return self.names.originals.get(func.id, func.id)
        known = (
            isinstance(func, ast.Attribute) and func.attr in self.project.names and self._module(func.value)
        )
        return func.attr if isinstance(func, ast.Attribute) and known else None

    def _module(self, node: ast.AST) -> bool:
        """Whether an expression is a file of the project."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.names.modules

    def library(self, node: ast.AST) -> str:
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
        if not isinstance(node, ast.Name):
            return ""
        first = self._aliases.get(node.id) or self.names.libraries.get(node.id)
        for names, value in (
            self.project.values.get(node.id, ()) if not first and self._is_global(node.id) else ()
        ):
            if isinstance(value, ast.Attribute):  # DRAWS = np.random
                first = self.project.code(names, value).library(value)
        return ".".join((first, *reversed(path))) if first else ""

    def _shares(self, node: ast.Call) -> bool:
        """Whether a call hands out what the library keeps: `decimal.getcontext()`."""
        return self.library(node.func).rpartition(".")[2].startswith(SHARES)

    # What the source says, node by node.

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._define(node)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            self._scopes.append({name for part in node.generators for name in stored(part.target)})
            self._assigned(node)
            self.generic_visit(node)
            self._scopes.pop()
        else:
            self._assigned(node)
            super().visit(node)

    def _assigned(self, node: ast.AST) -> None:
        for target, value in assigned(node):
            roots = self.roots(value)
            if isinstance(node, ast.With | ast.AsyncWith):
                roots |= self._methods("__enter__")
            elif not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                roots |= self._methods("__iter__", "__next__", "__getitem__")
            if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and self.library(value):
                self._aliases[target.id] = self.library(value)
            if isinstance(target, ast.Name):
                self._holds.setdefault(target.id, set()).update(self._held(value))
            self._bind(target, roots, value)
            if isinstance(value, ast.Call) and isinstance(target, ast.Name) and target.id == "_":
                self._call(value, bare=True)

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        for part in (
            *getattr(node, "decorator_list", ()),
            *node.args.defaults,
            *filter(None, node.args.kw_defaults),
        ):
            self.visit(part)
        if node is not self.node and isinstance(node, FUNCTION):
            self._inner[node.name] = parameters(node)
            if node.name in self._globals:
                self._change({node.name}, node, "assigns")
        for argument, default in defaults(node):
            if isinstance(default, ast.List | ast.Dict | ast.Set | ast.Call):  # one object for all calls
                self._sources.setdefault(argument, set()).add(self.name)
                self.shared_defaults.add(argument)
            else:
                self._sources.setdefault(argument, set()).update(self.roots(default))
        self._scopes.append(own_names(node))
        for part in [node.body] if isinstance(node, ast.Lambda) else node.body:
            self.visit(part)
        self._scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            self.visit(part)
        for statement in node.body:
            if node is not self.node or not isinstance(statement, FUNCTION):
                self.visit(statement)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.visit_Name(ast.Name(node.target.id, ast.Load(), lineno=node.lineno))
            number = isinstance(node.value, ast.Constant)
            found = self.roots(node.target) if not self._is_global(node.target.id) else set()
            self._change({name for name in found if not (number and self.project.is_plain(name))}, node)
        self.generic_visit(node)

    def visit_Match(self, node: ast.Match) -> None:
        for pattern in ast.walk(node):
            if isinstance(pattern, ast.MatchAs | ast.MatchStar) and pattern.name:
                self._sources.setdefault(pattern.name, set()).update(self.roots(node.subject))
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._bind(target, set(), node)

    def visit_Global(self, node: ast.Global) -> None:
        self._globals |= set(node.names)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names if self._scopes else ():
            name = alias.asname or alias.name.partition(".")[0]
            library = self.names.libraries.get(name)
            if library and not is_standard(library):
                self.uses.setdefault("sys.path", node.lineno)
            if library and not any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(self.node)):
                self.effects.setdefault(library, node.lineno)  # it is imported for what that does
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

    def visit_Name(self, node: ast.Name) -> None:
        line = node.lineno
        if node.id == self.first:
            self.own.setdefault("", line)
        if not self._is_global(node.id):
            if node.id == "context":
                self.reads.setdefault("context", line)
            return
        name = self.names.originals.get(node.id, node.id)
        self.reads.setdefault(name, line)
        if node.id in self.names.libraries:
            self._use(self.names.libraries[node.id], line)
        elif node.id in self.names.modules:
            self._hide(f"{node.id}, handed on as a whole", line)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        line, base = node.lineno, node.value
        library = self.library(node)
        if node.attr in HIDDEN and not library:
            self._hide(node.attr, line)
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
        elif (isinstance(base, ast.Name) and base.id == self.first) or (
            isinstance(base, ast.Call)
            and isinstance(base.func, ast.Name)
            and base.func.id == "super"
            and self.first
        ):
            self.own.setdefault(node.attr, line)
        elif isinstance(base, ast.Name) and base.id == "context" and not self._is_global("context"):
            self.reads.setdefault(f"context.{node.attr}", line)
            if node.attr == "device":
                self.device.setdefault("context.device", line)
        else:
            self.visit(base)

    def _use(self, name: str, line: int) -> None:
        self.uses.setdefault(name, line)
        if sets_state(
            name
        ):  # it may be called by another name: `for seed in (random.seed, torch.manual_seed)`
            self.effects.setdefault(name, line)
        if name.startswith(REACHES_NAMES):
            self._hide(name, line)
        if is_gpu_library(name) and name not in ASKS_ONLY:
            self.device.setdefault(name, line)

    def _hide(self, what: str, line: int) -> None:
        self.unknown.setdefault(what, line)
        self.binds.setdefault(what, line)

    def _call(self, node: ast.Call, *, bare: bool) -> None:  # noqa: PLR0912 - a kind of callee a branch
        func, line = node.func, node.lineno
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        given = set[str]().union(*(self.roots(argument) for argument in arguments))
        library, function = self.library(func), self.function(func)
        if isinstance(func, ast.Name) and function not in self.project.names:
            self._builtin(func.id, node, given)
        if library:
            if is_effect(library, bare=bare):
                self.effects.setdefault(library, line)
            out = set[str]().union(*(self.roots(k.value) for k in node.keywords if k.arg == "out"))
            self._change(given if changes_arguments(library, bare=bare) else out, node)
            if library == "torch.device" and not all(
                isinstance(argument, ast.Constant) for argument in arguments
            ):
                self.device.setdefault("torch.device(...)", line)
        elif function is not None:
            self.at_import.add(function)
            if function in self.project.functions or function in self.project.classes:
                self._change(given, node, callee=function)
            elif function in self.project.values and not self.project.is_made_by_library(function):
                self._change({function} | given, node, "may change")
        elif isinstance(func, ast.Attribute):
            self._method(node, func, given, bare=bare)
        elif isinstance(func, ast.Name):
            for parameter, argument in zip(self._inner.get(func.id, ()), node.args, strict=False):
                self._sources.setdefault(parameter, set()).update(self.roots(argument))
        for argument in arguments:  # a function that is given is called with the rest
            name = self.function(argument)
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
        if (
            isinstance(func.value, ast.Name)
            and func.value.id in ("dict", "list", "set")
            and self._is_global(func.value.id)
        ):
            self._change(given if changes_object(name, bare=bare, array=False) else set(), func)
        elif name in self.project.methods:
            self._change(roots | given | self._held(func.value), func, callee=f".{name}")
        elif not asks and changes_object(
            name, bare=bare, array=bool(roots) and all(map(self.project.is_array, roots))
        ):
            self._change_of(func.value, func, verb="changes" if sounds_like_change(name) else "may change")
            for root in roots:
                self.project.link(root, given)

    def _builtin(self, name: str, node: ast.Call, given: set[str]) -> None:
        line = node.lineno
        written = node.args[1] if len(node.args) > 1 else None
        if name in ("globals", "exec", "eval", "__import__", "breakpoint") or (
            name == "vars" and (given or not node.args)
        ):
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
        elif name == "open":
            self.uses.setdefault("open()", line)
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
            if not self._module(target.value):
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
        library = self.library(target.value if isinstance(target, ast.Subscript) else target)
        if library:
            self.effects.setdefault(library, getattr(node, "lineno", 0))
            if library.startswith("builtins"):
                self._hide(library, getattr(node, "lineno", 0))
        if isinstance(target, ast.Attribute) and self._module(target.value):
            self._change({target.attr}, node, "assigns")
        inner = target.value if isinstance(target, ast.Attribute | ast.Subscript) else target
        roots = (
            self.roots(target) if isinstance(inner, ast.Name) and inner.id == "context" else self.roots(inner)
        )
        self._change(roots, node, verb, attributes=attributes)

    def _change(
        self,
        names: set[str],
        node: ast.AST,
        verb: str = "changes",
        *,
        callee: str = "",
        attributes: Iterable[str] = (),
    ) -> None:
        if names:
            found = Change(frozenset(names), frozenset(attributes), verb, getattr(node, "lineno", 0), callee)
            self.changes.append(found)


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


def assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets that a statement or an expression assigns, each with what its value comes from."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield node.target, node.iter
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from ((item.optional_vars, item.context_expr) for item in node.items if item.optional_vars)
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        yield from ((part.target, part.iter) for part in node.generators)


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
