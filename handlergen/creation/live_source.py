"""The source text of a live function or class: from its file, a notebook's cell, or IPython's history."""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def source_of_function(function: FunctionType) -> str | None:
    """Return a function's source text, dedented; of a lambda, the expression alone.

    None if no source has it: a function of a REPL without history, or made by `exec`. Each candidate is compiled and
    compared with the function's code, so that an edited file or a redefined cell is not taken for it.
    """
    code = function.__code__
    for text in _texts(code.co_filename):
        tree = _parsed(text)
        if tree is None:
            continue
        for node in ast.walk(tree):
            if isinstance(node, _DEFINITION) and _named(node) == code.co_name and _is_same(node, text, code):
                return _segment(text, node)
    return None


def source_of_class(cls: type) -> str | None:
    """Return a class's source text, dedented; None if no source has it."""
    codes = [each.__code__ for each in map(inspect.unwrap, vars(cls).values()) if isinstance(each, FunctionType)]
    codes = [code for code in codes if code.co_filename != "<string>"]  # a dataclass's own
    module = sys.modules.get(cls.__module__)
    files = {code.co_filename for code in codes} or {str(getattr(module, "__file__", "") or "")}
    for text in (text for file in sorted(files) for text in _texts(file)):
        tree = _parsed(text)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                written = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
                if all(_is_same(node, text, code) for code in codes if code.co_name in written):
                    return _segment(text, node)
    return None


def global_names(text: str) -> list[str]:
    """Return the names that a definition reads and does not define itself, in the order in which they occur."""
    found: dict[str, None] = {}

    def collect(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            outside = symbol.is_global() or (table.get_type() == "module" and not symbol.is_assigned())
            if symbol.is_referenced() and outside:
                found[symbol.get_name()] = None
        for child in table.get_children():
            collect(child)

    collect(symtable.symtable(text, "<definition>", "exec"))
    tree = ast.parse(text)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    places = {node.id: (node.lineno, node.col_offset) for node in reversed(nodes)}
    return sorted(found.keys() - own, key=lambda name: places.get(name, (0, 0)))


def _texts(file: str) -> Iterator[str]:
    """Yield what may be the text of a file or cell of this name: itself, then IPython's input, the newest first."""
    lines = linecache.getlines(file)
    if lines:
        yield "".join(lines)
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None:
        for raw in reversed(shell.user_ns.get("In", [])):
            yield shell.transform_cell(raw)
            # A cell magic such as %%time compiles its body itself, under another name.
            yield "".join(line for line in raw.splitlines(keepends=True) if not line.startswith(("%", "!")))


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _named(node: ast.AST) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else str(getattr(node, "name", ""))


def _segment(text: str, node: ast.AST) -> str:
    """Return the lines of a definition, with its decorators; of a lambda, the expression."""
    if isinstance(node, ast.Lambda):
        return ast.get_source_segment(text, node) or ast.unparse(node)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return textwrap.dedent("".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])).rstrip() + "\n"


def _is_same(node: ast.AST, text: str, code: CodeType) -> bool:
    """Return whether a definition, or one in it, compiles to this code, wherever it stands."""
    segment = _segment(text, node)
    try:
        if isinstance(node, ast.Lambda):
            segment = f"({segment})"
        else:
            definition: Any = ast.parse(segment).body[0]
            definition.decorator_list = []
            segment = ast.unparse(definition)
        flags = code.co_flags & __future__.annotations.compiler_flag
        compiled = compile(segment, "<definition>", "exec", flags=flags, dont_inherit=True)
    except SyntaxError:
        return False
    return any(each.co_name == code.co_name and _shape(each) == _shape(code) for each in _nested(compiled))


def _nested(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _nested(each)


def _shape(code: CodeType) -> tuple[Any, ...]:
    """Return what code does, without where it stands: what is free in a nested function is global at the top level."""
    codes = [code, *_nested(code)]
    names = {name for each in codes for name in (*each.co_names, *each.co_freevars)} - {"__class__"}
    constants = [repr(each) for code in codes for each in code.co_consts if not isinstance(each, CodeType)]
    shown = tuple(each for each in constants if "<locals>" not in each)  # names of nested functions, in Python 3.10
    return code.co_argcount, code.co_varnames[: code.co_argcount], frozenset(names), shown
