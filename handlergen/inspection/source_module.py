"""A user's module as its syntax tree: what it binds at module level, and its classes' methods. Nothing is imported."""

from __future__ import annotations

import ast
import copy
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from handlergen.errors import Problem

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
"""A node that has parameters."""

MethodNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Binding:
    """One name bound at module level; the last binding of a name counts, as at run time.

    Attributes:
        name: The name.
        line: 1-based.
        node: The node it is bound to: a `def`, a `class`, the expression of an assignment, or the import statement.
        imported: Its name in the module it is imported from; None if it is not imported from a module.
    """

    name: str
    line: int
    node: ast.AST
    imported: str | None = None


@dataclass(frozen=True)
class SourceModule:
    """A parsed source file.

    Attributes:
        path: The file.
        file: The file's name, for messages.
        tree: Its syntax tree.
        bindings: By name.
        star_imports: `from x import *`, in order.
        is_package: Whether it is a package's `__init__.py`.
        empty: Whether it has no statement except a docstring.
    """

    path: Path
    file: str
    tree: ast.Module
    bindings: dict[str, Binding] = field(default_factory=dict)
    star_imports: tuple[ast.ImportFrom, ...] = ()
    is_package: bool = False
    empty: bool = False

    def function_lines(self) -> dict[str, int]:
        """Return the names bound to a `def`, `async def` or lambda of this file, each with its line."""
        bindings = self.bindings.values()
        return {binding.name: binding.line for binding in bindings if isinstance(binding.node, Function)}

    def classes(self) -> list[ast.ClassDef]:
        """Return the classes defined at module level."""
        return [binding.node for binding in self.bindings.values() if isinstance(binding.node, ast.ClassDef)]


def parse_source(path: Path, *, file: str) -> SourceModule | Problem:  # noqa: PLR0911 - one return per way to fail
    """Return a parsed file, or the problem why it cannot be parsed.

    It is read as the interpreter would: encoding cookies and byte order marks are honoured.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        return Problem(file, 0, f"the file cannot be read: {error.strerror}")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except SyntaxError as error:
        return Problem(file, 1, f"unknown encoding: {error}", "Save the file as UTF-8.")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"byte 0x{raw[error.start]:02x} is not {error.encoding}"
        fix = "Save the file as UTF-8, or name its encoding in the first line: # -*- coding: latin-1 -*-"
        return Problem(file, line, message, fix)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        return Problem(file, line, "the file has a null byte: this is not Python source")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are for the author's linter to report
            tree = ast.parse(text.removeprefix("\ufeff"), filename=file)
    except SyntaxError as error:
        code = (error.text or "").strip()
        fix = f"The line: {code}" if code else ""
        return Problem(file, error.lineno or 0, f"syntax error: {error.msg}", fix)
    except (RecursionError, MemoryError):
        return Problem(file, 0, "the source is nested too deeply to be read")
    statements = list(statements_at_import(tree.body))
    imports = (node for node in statements if isinstance(node, ast.ImportFrom))
    module = SourceModule(
        path,
        file,
        tree,
        star_imports=tuple(node for node in imports if node.names[0].name == "*"),
        is_package=path.name == "__init__.py",
        empty=len(tree.body) == (ast.get_docstring(tree, clean=False) is not None),
    )
    for node in statements:
        for binding in _bindings(node):
            if not decorated_with(binding.node, "overload"):  # a stub, which is never called
                module.bindings[binding.name] = binding
        if isinstance(node, ast.Delete) and node in tree.body:  # in an `if` it may not run
            for name in _names(node, ast.Del):
                module.bindings.pop(name.id, None)
    return module


def definitions(module: SourceModule, name: str) -> list[MethodNode]:
    """Return every `def` of a name that may be the one called at run time; several if an `if` or a `try` decides."""
    found: list[MethodNode] = []
    for node in statements_at_import(module.tree.body):
        if isinstance(node, MethodNode) and node.name == name and not decorated_with(node, "overload"):
            if node in module.tree.body:
                found.clear()  # this one replaces all before it
            found.append(node)
    return found


def call_kind(node: Function) -> str:
    """Return the kind of a function as in `Hook.kind`: `sync`, `async`, `generator` or `async_generator`."""
    generator = not isinstance(node, ast.Lambda) and any(_own_yields(node.body))
    if isinstance(node, ast.AsyncFunctionDef):
        return "async_generator" if generator else "async"
    return "generator" if generator else "sync"


def first_yield(node: Function) -> int:
    """Return the line of the first `yield`, or of the `def` if there is none."""
    lines = [] if isinstance(node, ast.Lambda) else [found.lineno for found in _own_yields(node.body)]
    return min(lines, default=node.lineno)


def decorated_with(node: ast.AST, *names: str) -> bool:
    """Return whether a function has a decorator of one of these names, whatever module it is from."""
    return any(dotted(item).rpartition(".")[2] in names for item in decorators(node))


def dotted(node: ast.AST) -> str:
    """Return `torch.nn.Module` for such an expression, also if it is called or subscripted; else an empty string."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def unbound(node: MethodNode) -> MethodNode:
    """Return the `def` as a call on an instance sees it: without `self`."""
    if any(dotted(decorator) == "staticmethod" for decorator in node.decorator_list):
        return node
    args = copy.copy(node.args)
    args.args = args.args[not args.posonlyargs :]
    args.posonlyargs = args.posonlyargs[1:]
    # Defaults belong to the last parameters: only `self` itself could have had one of its own.
    args.defaults = args.defaults[max(0, len(args.defaults) - len(args.posonlyargs) - len(args.args)) :]
    changed = copy.copy(node)
    changed.args = args
    return changed


def full_name(module: SourceModule, name: str) -> str:
    """Expand `nn.Module` to `torch.nn.Module` if the module has `from torch import nn`."""
    first, _, rest = name.partition(".")
    binding = module.bindings.get(first)
    if binding is None:
        return name
    origin = first
    if isinstance(binding.node, ast.ImportFrom):
        origin = ".".join(part for part in (binding.node.module or "", binding.imported or "") if part)
    elif isinstance(binding.node, ast.Import):
        origin = next((item.name for item in binding.node.names if item.asname == first), first)
    return f"{origin}.{rest}" if rest else origin


def statements_at_import(body: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    """Yield the statements that run when the module is imported, also inside `if`, `try`, `with`, `match` and loops."""
    for node in body:
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, MethodNode | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and _runs_elsewhere(node.test):
            yield from statements_at_import(node.orelse)
            continue
        # Handlers first: the bindings of the `try` itself count if nothing goes wrong.
        for part in ("handlers", "cases", "body", "orelse", "finalbody"):
            inner = getattr(node, part, ())
            yield from statements_at_import(inner if isinstance(inner, list) else ())


def _runs_elsewhere(test: ast.expr) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":` do not run when a worker imports the module."""
    if dotted(test).rpartition(".")[2] == "TYPE_CHECKING":
        return True
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.Eq):
        return False
    return "__name__" in (dotted(test.left), dotted(test.comparators[0]))


def _bindings(node: ast.stmt) -> Iterator[Binding]:
    if isinstance(node, MethodNode | ast.ClassDef):
        yield Binding(node.name, node.lineno, node)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _assigned(target, node.value)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield from _assigned(node.target, node.value)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            if alias.name != "*":
                yield Binding(alias.asname or alias.name, node.lineno, node, imported=alias.name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield Binding(alias.asname or alias.name.partition(".")[0], node.lineno, node)


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[Binding]:
    if isinstance(target, ast.Name):
        yield Binding(target.id, target.lineno, value)
        return
    for name in _names(target, ast.Store):  # first, second = make(): bound, but to values that cannot be read
        yield Binding(name.id, name.lineno, target)


def _names(node: ast.AST, context: type[ast.expr_context]) -> Iterator[ast.Name]:
    """Yield the names that a statement binds (`ast.Store`) or unbinds (`ast.Del`)."""
    for name in ast.walk(node):
        if isinstance(name, ast.Name) and isinstance(name.ctx, context):
            yield name


def decorators(node: ast.AST) -> list[ast.expr]:
    """Return the decorators of a function; none for any other node."""
    return node.decorator_list if isinstance(node, MethodNode) else []


def _own_yields(body: Iterable[ast.AST]) -> Iterator[ast.Yield | ast.YieldFrom]:
    """Yield each `yield` of the function itself, without those of functions inside it."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Yield | ast.YieldFrom):
            yield node
        yield from _own_yields(ast.iter_child_nodes(node))
