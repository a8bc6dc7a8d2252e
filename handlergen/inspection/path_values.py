"""The paths that a source writes: `Path(__file__).parent / "vendor"` as a path, and what it puts on `sys.path`."""

from __future__ import annotations

import ast
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handlergen.inspection.source_module import MethodNode, SourceModule, dotted, runs_elsewhere
from handlergen.inspection.source_tree import assigned, parameters

_SAME = frozenset(
    {"str", "os.fspath", "os.path.abspath", "os.path.realpath", "os.path.normpath"}
    | {f"pathlib.{kind}" for kind in ("Path", "PurePath", "PosixPath", "PurePosixPath")}
)
"""Functions whose result is the path of their arguments."""

_SAME_METHODS = ("resolve", "absolute", "as_posix", "__str__")
_LONGEST_NAME = 200
"""Maximum length of a string that may be the name of a file."""
_MOST = 20
"""Values that are kept of one expression or name, such as a loop's variable."""
_MOST_STEPS = 100
"""Expressions that are followed for one path: names that are made of each other could be followed without end."""


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node of a syntax tree but those that run only in a script or for a type checker."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        skipped = current.body if isinstance(current, ast.If) and runs_elsewhere(current.test) else []
        waiting += [child for child in ast.iter_child_nodes(current) if child not in skipped][::-1]


@dataclass(frozen=True)
class Addition:
    """Directories that a statement puts on `sys.path`; none if the source does not show which.

    Attributes:
        first: Whether they go before the directory of the model.
        text: The expression, for messages.
    """

    line: int
    directories: tuple[Path, ...]
    first: bool
    text: str


class Paths:
    """The values of a file's expressions, as far as they are paths that the source shows.

    Args:
        module: The parsed file; `__file__` is its path.
        working_directory: What relative paths are relative to.
    """

    def __init__(self, module: SourceModule, working_directory: Path) -> None:
        self._module, self._directory = module, working_directory
        self.nodes = list(running(module.tree))
        self._names: dict[str, str] = {}
        self._values: dict[str, list[ast.expr]] = defaultdict(list)
        self._steps = 0
        calls: dict[str, list[ast.Call]] = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                calls[node.func.id].append(node)
        for node in self.nodes:
            if isinstance(node, ast.Import):
                self._names.update({alias.asname: alias.name for alias in node.names if alias.asname})
            elif isinstance(node, ast.ImportFrom):
                self._names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            elif isinstance(node, MethodNode):
                for call in calls.get(node.name, ()):
                    for name, value in zip(parameters(node), call.args, strict=False):
                        self._values[name].append(value)
            for name, value in assigned(node):
                self._values[name].append(value)

    def name(self, node: ast.expr) -> str:
        """Return the full dotted name of an expression: `os.path.join` for `osp.join`."""
        try:
            first, dot, rest = dotted(node).partition(".")
        except RecursionError:
            return ""
        return f"{self._names.get(first, first)}{dot}{rest}"

    def of(self, node: ast.expr) -> list[Path]:
        """Return the absolute paths that an expression may be, without `..`; none if the source does not show any."""
        self._steps = 0
        try:
            texts = self._texts(node, frozenset())
        except RecursionError:
            return []
        return list(dict.fromkeys(Path(os.path.normpath(self._directory / text)) for text in texts if "\0" not in text))

    def existing(self) -> Iterator[tuple[ast.expr, Path]]:
        """Yield the files and directories that the source names, each with its expression.

        They are strings that name a file below the working directory (a directory if there is a slash in the string),
        and paths that the source makes of `__file__` or the working directory. A name made at run time is not found.
        """
        elsewhere = {directory for addition in self.additions() for directory in addition.directories}
        texts = (node.value for node in self.nodes if isinstance(node, ast.Constant))
        elsewhere |= {Path(text) for text in texts if isinstance(text, str) and text.startswith("/") and text != "/"}
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = self._beside(node.value)
                if found is not None:
                    yield node, found
            elif isinstance(node, ast.Call | ast.BinOp | ast.JoinedStr):
                for each in self.of(node):
                    # Path.exists raises for a name that is too long.
                    if os.path.exists(each) and elsewhere.isdisjoint((each, *each.parents)):  # noqa: PTH110
                        yield node, each

    def _beside(self, name: str) -> Path | None:
        if not 2 < len(name) <= _LONGEST_NAME or "\n" in name or "\0" in name or not ("." in name or "/" in name):
            return None
        try:
            found = Path(os.path.normpath(self._directory / name))
            is_there = found.is_file() or (found.is_dir() and "/" in name)
            is_there = is_there and self._directory in found.parents and found.suffix != ".py"
        except OSError:
            return None
        return found if is_there else None

    def additions(self) -> Iterator[Addition]:
        """Yield what the file puts on `sys.path`, in functions too."""
        for node in self.nodes:
            added: ast.expr | None = None
            first = sure = False
            if isinstance(node, ast.Call) and node.args and not isinstance(node.func, ast.Call):
                does = self.name(node.func)
                sure = does in ("sys.path.insert", "sys.path.append", "sys.path.extend", "site.addsitedir")
                added = node.args[-1] if sure else None
                first = does == "sys.path.insert" and ast.unparse(node.args[0]) == "0"
            elif isinstance(node, ast.AugAssign) and self.name(node.target) == "sys.path":
                added = node.value
            elif isinstance(node, ast.Assign) and any(self.name(target) == "sys.path" for target in node.targets):
                added, first = node.value, True
            found = self.of(added) if added is not None else []
            if added is not None and (found or sure):
                yield Addition(added.lineno, tuple(found), first, ast.unparse(added))

    def _texts(self, node: ast.AST, seen: frozenset[str]) -> list[str]:
        found: list[str] = []
        self._steps += 1
        if self._steps > _MOST_STEPS:
            return found
        if isinstance(node, ast.Constant):
            found = [node.value] if isinstance(node.value, str) else []
        elif isinstance(node, ast.Name):
            found = self._named(node.id, seen)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            found = [text for item in node.elts for text in self._texts(item, seen)]
        elif isinstance(node, ast.Starred | ast.FormattedValue | ast.NamedExpr):
            found = self._texts(node.value, seen)
        elif isinstance(node, ast.IfExp):
            found = self._texts(node.body, seen) + self._texts(node.orelse, seen)
        elif isinstance(node, ast.JoinedStr):
            found = ["".join(parts) for parts in self._product(node.values, seen)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Div):
            found = self._sum(node, seen)
        elif isinstance(node, ast.Attribute) and node.attr == "parent":
            found = [os.path.dirname(text) for text in self._texts(node.value, seen)]  # noqa: PTH120 - of a text
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parents":
            found = self._ancestors(node, seen)
        elif isinstance(node, ast.Call):
            found = self._called(node, seen)
        return found[:_MOST]

    def _named(self, name: str, seen: frozenset[str]) -> list[str]:
        if name == "__file__":
            return [str(self._module.path)]
        values = self._values.get(name, [])
        if name in seen or len(values) > _MOST:  # a name for everything is no path
            return []
        return [text for value in values for text in self._texts(value, seen | {name})]

    def _product(self, nodes: list[ast.expr], seen: frozenset[str]) -> list[tuple[str, ...]]:
        return list(itertools.islice(itertools.product(*(self._texts(node, seen) for node in nodes)), _MOST))

    def _sum(self, node: ast.BinOp, seen: frozenset[str]) -> list[str]:
        if isinstance(node.op, ast.Div):
            return [os.path.join(*parts) for parts in self._product([node.left, node.right], seen)]  # noqa: PTH118
        if any(isinstance(side, ast.List) for side in (node.left, node.right)):
            return self._texts(node.left, seen) + self._texts(node.right, seen)
        return ["".join(parts) for parts in self._product([node.left, node.right], seen)]

    def _ancestors(self, node: ast.Subscript, seen: frozenset[str]) -> list[str]:
        index = getattr(node.slice, "value", None)
        if not isinstance(index, int) or not isinstance(node.value, ast.Attribute):
            return []
        of = [Path(self._directory / text).parents for text in self._texts(node.value.value, seen)]
        return [str(parents[index]) for parents in of if index < len(parents)]

    def _called(self, node: ast.Call, seen: frozenset[str]) -> list[str]:
        name = self.name(node.func)
        if name in ("os.getcwd", "pathlib.Path.cwd"):
            return [str(self._directory)]
        if name in _SAME or name == "os.path.join":
            return [os.path.join("", *parts) for parts in self._product(node.args, seen)]  # noqa: PTH118
        if name == "os.path.dirname" and node.args:
            return [os.path.dirname(text) for text in self._texts(node.args[0], seen)]  # noqa: PTH120
        if isinstance(node.func, ast.Attribute) and node.func.attr in _SAME_METHODS:
            return self._texts(node.func.value, seen)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "joinpath":
            return [os.path.join(*parts) for parts in self._product([node.func.value, *node.args], seen)]  # noqa: PTH118
        return []
