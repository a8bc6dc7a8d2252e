"""Find where a live function or class is defined: in a file, in a notebook's cell, or in IPython's history."""

from __future__ import annotations

import ast
import contextlib
import inspect
import linecache
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from handlergen.errors import HandlergenError

LAMBDA = "<lambda>"


@dataclass(frozen=True)
class Definition:
    """The syntax tree of one function, lambda or class, and its text with the comments, not indented."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    text: str

    def undecorated(self) -> Definition:
        """Return the definition without its decorators."""
        decorators = getattr(self.node, "decorator_list", [])
        if not decorators:
            return self
        first = min(each.lineno for each in decorators)
        self.node.decorator_list = []  # type: ignore[union-attr]
        return Definition(self.node, "\n".join(self.text.splitlines()[self.node.lineno - first :]))

    def renamed(self, name: str, others: Mapping[str, str]) -> str:
        """Return the source under another name, with other names for what it uses; a lambda becomes a function."""
        node = self.node
        if isinstance(node, ast.Lambda):
            start = f"def {name}({ast.unparse(node.args)}):\n    return {ast.unparse(node.body)}\n"
            return _replaced(start, others)
        text = re.sub(rf"\b(def|class) {node.name}\b", rf"\1 {name}", self.text, count=1)
        return _replaced(text, {**others, **({node.name: name} if node.name != name else {})}) + "\n"


def _replaced(text: str, names: Mapping[str, str]) -> str:
    """Return a definition that uses other names."""
    if not names:
        return text
    nodes = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name) and each.id in names]
    lines = text.splitlines()
    for each in sorted(nodes, key=lambda each: (each.lineno, each.col_offset), reverse=True):
        line = lines[each.lineno - 1].encode()  # offsets are in bytes
        end = each.col_offset + len(each.id.encode())
        lines[each.lineno - 1] = (line[: each.col_offset] + names[each.id].encode() + line[end:]).decode()
    return "\n".join(lines)


def function_definition(function: FunctionType) -> Definition:
    """Return the definition of a function. Raises HandlergenError if it is not to be found."""
    code = function.__code__
    for text, line in _texts(function, code):
        tree = _parsed(text)
        found = [node for node in ast.walk(tree) if _may_define(node, code)] if tree is not None else []
        alike = [node for node in found if _prints(node, code.co_name) == _print(code)]
        # Assertions that pytest rewrote compile otherwise.
        there = [node for node in found if _first_line(node) == line]
        if alike or len(there) == 1:
            return _definition(min(alike or there, key=lambda node: abs(_first_line(node) - line)), text)
    what = "a lambda" if code.co_name == LAMBDA else function.__qualname__
    raise HandlergenError(
        f"the source of {what} is not to be found (it is of {code.co_filename}, line {code.co_firstlineno})",
        hint="Define it with def, in a file or in a cell of a notebook.",
    )


def class_definition(kind: type) -> Definition:
    """Return the definition of a class; of a notebook's, from the cell that has its methods."""
    texts: list[str] = []
    with contextlib.suppress(OSError, TypeError, SyntaxError):  # of a notebook's class `inspect` finds no file
        texts.append(textwrap.dedent(inspect.getsource(kind)))
    for each in vars(kind).values():
        code = getattr(each, "__code__", None)
        if isinstance(code, CodeType):
            texts.append("".join(linecache.getlines(code.co_filename)))
    for text in (*texts, *_history()):
        tree = _parsed(text)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                return _definition(node, text)
    raise HandlergenError(
        f"the source of the class {kind.__qualname__} is not to be found",
        hint="Define it in a file, or in a cell of a notebook.",
    )


def _first_line(node: Any) -> int:
    lines: list[int] = [node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]
    return min(lines)


def _definition(node: Any, text: str) -> Definition:
    """Return a definition without its indentation; lines inside of texts stay as they are."""
    first, indent = _first_line(node), 0 if isinstance(node, ast.Lambda) else node.col_offset
    inside = {
        number
        for each in ast.walk(node)
        if isinstance(each, ast.JoinedStr | ast.Constant)
        for number in range(each.lineno + 1, (each.end_lineno or 0) + 1)
    }
    lines = [
        line if number in inside else line[min(indent, len(line) - len(line.lstrip())) :]
        for number, line in enumerate(text.splitlines()[first - 1 : node.end_lineno], first)
    ]
    return Definition(node, "\n".join(lines))


def _texts(function: FunctionType, code: CodeType) -> Iterator[tuple[str, int]]:
    """Yield texts that may have a function, and the line at which it begins there; 0: not known."""
    linecache.checkcache(code.co_filename)
    yield "".join(linecache.getlines(code.co_filename, function.__globals__)), code.co_firstlineno
    for text in _history():
        yield text, 0


def _history() -> Iterator[str]:
    """Yield the cells of an IPython session, the newest first."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    for cell in reversed(shell.history_manager.input_hist_raw if shell is not None else []):
        yield shell.transform_cell(cell)
        # A magic such as %%time compiles the rest of its cell under another name.
        yield "".join(line for line in cell.splitlines(keepends=True) if not line.startswith(("%", "!")))


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _may_define(node: ast.AST, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == LAMBDA
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name


def _compiled(node: Any) -> CodeType:
    if isinstance(node, ast.Lambda):
        return compile(ast.unparse(node), "<definition>", "eval")
    decorators, node.decorator_list = node.decorator_list, []
    text = ast.unparse(node)
    node.decorator_list = decorators
    return compile(text, "<definition>", "exec")


def _prints(node: Any, name: str) -> Any:
    try:
        compiled = _compiled(node)
    except SyntaxError:  # it assigns a variable of the function around it
        return None
    code = next((each for each in compiled.co_consts if isinstance(each, CodeType) and each.co_name == name), None)
    return None if code is None else _print(code)


def _print(code: CodeType) -> Any:
    """Return what identifies a function's code wherever it is defined: parameters, names and constants."""
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    names = {*code.co_names, *code.co_freevars}
    inner = [_print(each) for each in code.co_consts if isinstance(each, CodeType)]
    plain = [repr(each) for each in code.co_consts if not isinstance(each, CodeType) and "<locals>" not in str(each)]
    return parameters, frozenset(names), tuple(sorted(plain)), tuple(inner)
