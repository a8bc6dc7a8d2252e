"""What the names of a project stand for, and what a hook does by mentioning them.

The files of a project are one namespace: what two of them call alike counts as one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from handlergen.inspection.findings import Source
from handlergen.inspection.source_module import SourceModule, dotted, statements_at_import
from handlergen.inspection.stage_code import FUNCTION, PARAMETER, SELF, Code, Names, assigned, stored
from handlergen.inspection.stage_libraries import (
    CACHES,
    hands_on,
    is_standard,
    makes_array,
    sounds_like_change,
)

HOOKS = ("preprocess", "postprocess")
DEFINITION = FUNCTION | ast.ClassDef


class NamedProject:
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
                self.link(name, self.code(where, value).roots(value))
        for file in self._at_import:
            self._body(self._files[file])  # notes what it links at import: ALL.append(STATE)

    # Files.

    def _add(self, module: SourceModule) -> Names:
        if module.file in self._files:
            return self._files[module.file]
        names = self._files[module.file] = Names(module)
        for statement in statements_at_import(module.tree.body):
            self._define(names, statement)
        for node in ast.walk(module.tree):
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, FUNCTION):
                    self.methods.setdefault(method.name, []).append((names, method))
                    self.where[method] = names
            if isinstance(node, ast.Import | ast.ImportFrom):
                for path, _ in self._imported(module, node):
                    opened = self._tree.open(path)
                    if isinstance(opened, SourceModule):
                        names.inner.setdefault(node.lineno, set()).add(opened.file)
                        self._add(opened)
        return names

    def _define(self, names: Names, node: ast.stmt) -> None:
        """Note what a statement at import binds."""
        if isinstance(node, FUNCTION):
            self.functions.setdefault(node.name, []).append((names, node))
            for decorator in node.decorator_list:  # @clean.register: a call of `clean` may run it
                inner = decorator.func if isinstance(decorator, ast.Call) else decorator
                if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                    self.functions.setdefault(inner.value.id, []).append((names, node))
        elif isinstance(node, ast.ClassDef):
            self.classes.setdefault(node.name, []).append((names, node))
        for target, value in assigned(node):
            together = set(stored(target))
            for name in together:
                if isinstance(value, ast.Lambda):
                    self.functions.setdefault(name, []).append((names, value))
                else:
                    self.values.setdefault(name, []).append((names, value))
                if isinstance(value, ast.Call):
                    self.link(name, together - {name})

    def _imported(
        self, module: SourceModule, node: ast.Import | ast.ImportFrom
    ) -> Iterator[tuple[Path, str]]:
        """The project's files that a statement imports, each with the name that it binds to the file, or none."""
        if isinstance(node, ast.Import):
            beside = None if module.is_package else module.path.parent
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                for length in range(1, len(parts) + 1):
                    path = self._tree.importable(parts[:length], beside=beside)
                    if path is not None:
                        yield path, alias.asname or parts[0]
            return
        own = self._tree.local_file(module, node)
        if own is not None:
            yield own, ""
        for alias in node.names:
            inner = ast.ImportFrom(
                f"{node.module}.{alias.name}" if node.module else alias.name, [], node.level
            )
            path = self._tree.local_file(module, inner)
            if path is not None:
                yield path, alias.asname or alias.name

    def _import(self, names: Names) -> None:
        """Follow what an import of a file imports in turn."""
        self._at_import.add(names.source.file)
        for node in statements_at_import(names.source.tree.body):
            for file in (
                names.inner.get(node.lineno, ()) if isinstance(node, ast.Import | ast.ImportFrom) else ()
            ):
                if file not in self._at_import:
                    self._import(self._files[file])

    def _resolve(self, names: Names) -> None:
        for node in ast.walk(names.source.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            local = list(self._imported(names.source, node))
            names.modules |= {name for _, name in local if name}
            for alias in node.names:
                name = alias.asname or (
                    alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
                )
                if isinstance(node, ast.Import) and name not in names.modules:
                    names.libraries[name] = alias.name if alias.asname else name
                elif (
                    isinstance(node, ast.ImportFrom)
                    and not any(not bound for _, bound in local)
                    and name not in names.modules
                ):
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
                if isinstance(method, FUNCTION) and not (name in self.served and method.name in HOOKS):
                    yield self.code(names, method, method=True, name=method.name)
        if name in self._files and name not in self._at_import:
            yield self._body(self._files[name])

    def _body(self, names: Names) -> Code:
        """What a file does when it is imported."""
        body = [n for n in statements_at_import(names.source.tree.body) if not isinstance(n, DEFINITION)]
        return Code(self, names, ast.Module(body, []), name="(file)")

    served: frozenset[str] = frozenset()

    def expand(self, roots: Iterable[str]) -> set[str]:
        """Names, with what the functions and methods among them may return, and all that their values hold."""
        found, waiting = set[str](), list(roots)
        while waiting:
            root = waiting.pop()
            if root in found:
                continue
            found.add(root)
            waiting += self.links.get(root, ())
            name = root.removesuffix("()").removeprefix(".")
            called = (
                (self.methods if root.startswith(".") else self.functions).get(name, ())
                if root.endswith("()")
                else ()
            )
            for names, node in called:
                code = self.code(names, node, method=root.startswith("."), name=name)
                waiting += (read for read in code.reads if read in self.values or code.is_unknown(read))
                waiting += (f"{read}()" for read in code.reads if read in self.functions)
                waiting += (name for _ in code.shared_defaults)
        return found

    def changes_given(self, callee: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a function or `.method` of the project changes what it is given, or its object."""
        if callee in seen:
            return False
        name, method = callee.lstrip("."), callee.startswith(".")
        found = list((self.methods if method else self.functions).get(name, ()))
        found += [
            (names, part)
            for names, kind in self.classes.get(name, ())
            for part in kind.body
            if getattr(part, "name", "") == "__init__"
        ]
        return any(
            change.names & ({SELF, PARAMETER} if method else {PARAMETER})
            and (not change.callee or self.changes_given(change.callee, seen | {callee}))
            for names, node in found
            for change in self.code(names, node, method=method or name in self.classes, name=name).changes
        )

    def _made_by(self, name: str) -> Iterator[str]:
        for names, value in self.values.get(name, ()):
            yield self.code(names, value).library(value.func) if isinstance(value, ast.Call) else ""

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

    def _made_by_decorators(self, names: Names, node: ast.AST) -> Iterator[str]:
        for decorator in getattr(node, "decorator_list", ()):
            inner = decorator.func if isinstance(decorator, ast.Call) else decorator
            yield Code(self, names, inner).library(inner) or dotted(inner)

    def is_single(self, name: str) -> bool:
        """Whether all who make an instance of a class may get the same one, or one that is not told by the source."""
        for names, kind in self.classes.get(name, ()):
            made_by = [
                Code(self, names, k.value).library(k.value) or dotted(k.value)
                for k in kind.keywords
                if k.arg == "metaclass"
            ]
            made_by += self._made_by_decorators(names, kind)
            makes_itself = any(getattr(part, "name", "") == "__new__" for part in kind.body)
            bases = {dotted(base) for base in kind.bases} - {name}
            if makes_itself or not all(map(hands_on, made_by)) or any(map(self.is_single, bases)):
                return True
        return False

    def is_cached(self, name: str) -> bool:
        """Whether a function keeps its results."""
        return any(
            made in CACHES
            for names, node in self.functions.get(name, ())
            for made in self._made_by_decorators(names, node)
        )

    def keeps(self, name: str) -> bool:
        """Whether a value may remember something between calls that its name does not show.

        A single instance does, a function behind a decorator that is not known, and what a function of the project
        made with a function inside that changes something: `put, get = make()`.
        """
        decorators = [
            made for found in self.functions.get(name, ()) for made in self._made_by_decorators(*found)
        ]
        makers = [dotted(value.func) for _, value in self.values.get(name, ()) if isinstance(value, ast.Call)]
        makers += [made for made in decorators if made in self.functions]
        closures = any(
            _remembers(inner)
            for maker in makers
            for _, node in self.functions.get(maker, ())
            for inner in ast.walk(node)
            if isinstance(inner, FUNCTION | ast.Lambda) and inner is not node
        )
        unknown = any(
            made not in self.functions and made not in self.classes and not hands_on(made)
            for made in decorators
        )
        return self.is_single(name) or closures or unknown

    def devices_at_import(self) -> Iterator[tuple[str, Location]]:
        """Calls that may make a context on an accelerator when the module is imported."""
        for names in (self._files[file] for file in self._at_import):
            waiting = [
                node
                for node in statements_at_import(names.source.tree.body)
                if not isinstance(node, DEFINITION)
            ]
            for call in (call for node in waiting for call in ast.walk(node) if isinstance(call, ast.Call)):
                code = Code(self, names, call)
                held = {
                    name
                    for read in code.reads
                    for inner in self.codes(read)
                    for name in inner.device
                    if isinstance(inner.node, ast.expr)
                }
                called = code.function(call.func)
                held |= {name for inner in self.codes(called or "") for name in inner.device}
                library = code.library(call.func)
                if (
                    (code.device or held)
                    and library != "torch.device"
                    and (called is None or called in self.functions)
                ):
                    yield ast.unparse(call.func), Location(names.source.file, call.lineno)


def _remembers(function: ast.AST) -> bool:
    """Whether a function changes something that may outlive its call."""
    for node in ast.walk(function):
        stores = isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
        called = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if stores or isinstance(node, ast.Nonlocal | ast.Global) or sounds_like_change(called or "get"):
            return True
    return False


class Location(NamedTuple):
    """Where something happens: file for messages, line, and the functions by which the hook comes there."""

    file: str
    line: int
    through: tuple[str, ...] = ()

    def seen_from(self, other: Location) -> str:
        """`line 12`, with the file when it is another one, and with the helpers."""
        place = f"line {self.line}" if self.file == other.file else f"{self.file}:{self.line}"
        return f"{place}{self.helpers}"

    @property
    def helpers(self) -> str:
        return f" (through {' and '.join(self.through)})" if self.through else ""


class HookUse:
    """What a hook and all that it mentions do; the first location of each counts."""

    def __init__(
        self, project: NamedProject, name: str, codes: Iterable[Code], kinds: Iterable[ast.ClassDef] = ()
    ) -> None:
        self.name = name
        self.reads, self.uses, self.effects, self.device, self.unknown, self.binds, self.own = (
            dict[str, Location]() for _ in range(7)
        )
        self.changes: dict[str, tuple[str, Location]] = {}
        self.attributes: dict[str, Location] = {}
        self.kept: dict[str, Location] = {}
        served = {part: part.name for kind in kinds for part in kind.body if isinstance(part, FUNCTION)}
        waiting: list[tuple[Code, tuple[str, ...], bool]] = [(code, (), True) for code in codes]
        seen: set[tuple[Code, bool]] = set()
        while waiting:
            code, through, runs = waiting.pop(0)
            if (code, runs) in seen or (code, True) in seen:
                continue
            seen.add((code, runs))
            self._note(project, code, through, runs=runs)
            for read, line in code.reads.items():
                location = Location(code.file, line, through)
                self.reads.setdefault(read, location)
                if project.keeps(read) and runs:
                    self.changes.setdefault(read, ("may change", location))
                if project.is_cached(read):
                    self.kept.setdefault(read, location)
                value = isinstance(
                    code.node, ast.expr
                )  # what its expression calls has run when it was imported
                later = runs and not (value and read in code.at_import and read not in project.classes)
                for inner in project.codes(read):
                    helper = (inner.name,) if isinstance(inner.node, FUNCTION | ast.Lambda) else ()
                    waiting.append((inner, (*through, *helper), later))
            for own, line in code.own.items() if code.node in served else ():
                self.own.setdefault(own, Location(code.file, line, through))
                for method in (method for method, known in served.items() if known == own):
                    inner = project.code(project.where[method], method, method=True, name=own)
                    waiting.append((inner, (*through, own), runs))

    def _note(self, project: NamedProject, code: Code, through: tuple[str, ...], *, runs: bool) -> None:
        for kind in ("uses", "device", "unknown", "binds"):
            for name, line in getattr(code, kind).items():
                getattr(self, kind).setdefault(name, Location(code.file, line, through))
        for name, line in code.effects.items() if runs else ():
            self.effects.setdefault(name, Location(code.file, line, through))
        for change in code.changes if runs else ():
            if change.callee and not project.changes_given(change.callee):
                continue
            location = Location(code.file, change.line, through)
            for name in project.expand(change.names):
                if name not in self.changes or change.verb == "assigns":
                    self.changes[name] = (change.verb, location)
            for attribute in change.attributes:
                self.attributes.setdefault(attribute, location)
