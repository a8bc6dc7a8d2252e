"""Following a name to its `def` through the project's own files, and these files as one namespace."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import Problem
from handlergen.inspection.source_module import (
    Function,
    MethodNode,
    SourceModule,
    dotted,
    full_name,
    parse_source,
    statements_at_import,
    unbound,
)
from handlergen.project.settings import shown


@dataclass(frozen=True)
class Found:
    """A function and the module that defines it."""

    node: Function
    module: SourceModule


@dataclass(frozen=True)
class FoundMethod(Found):
    """A method, as a call on an instance sees it, and the module that defines it."""

    node: MethodNode


@dataclass(frozen=True)
class UserClass:
    """A class of the project, with what it inherits in any of the project's files.

    Attributes:
        name: What the module that asked calls it.
        node, module: Its definition, and the file that has it.
        lineage: The class and its bases in the project, in Python's order.
        foreign: Full dotted names of the bases, at any depth, that no file of the project defines.
    """

    name: str
    node: ast.ClassDef
    module: SourceModule
    lineage: tuple[tuple[ast.ClassDef, SourceModule], ...]
    foreign: tuple[str, ...]

    def method(self, name: str) -> FoundMethod | None:
        """Return a method, its own or inherited, without the first parameter (`self`, `cls`); None without one."""
        for node, module in self.lineage:
            found = [item for item in node.body if isinstance(item, MethodNode) and item.name == name]
            if found:
                return FoundMethod(unbound(found[-1]), module)
        return None


class SourceTree:
    """The Python files of a project, parsed when they are needed.

    Args:
        root: The directory that absolute imports start from: the archive's root.
        packages: More package directories, or single files, that are importable by their own name.
    """

    def __init__(self, root: Path, packages: Iterable[Path] = ()) -> None:
        self.root = root
        self._packages = {path.stem if path.is_file() else path.name: path for path in packages}
        self._parsed: dict[Path, SourceModule | Problem] = {}

    def open(self, path: Path) -> SourceModule | Problem:
        """Return a parsed file, or the problem why it cannot be parsed."""
        if path not in self._parsed:
            self._parsed[path] = parse_source(path, file=shown(path))
        return self._parsed[path]

    def function(self, module: SourceModule, name: str) -> Found | Problem | None:
        """Return the function that a module-level name is bound to.

        A name that is bound to something else gives a problem; one that the module does not bind, None.
        """
        return self._follow(module, name, seen=set())

    def find_class(self, module: SourceModule, name: str) -> UserClass | None:
        """Return the class that a dotted name stands for in a module; None if no file of the project defines it."""
        found = self._class(module, tuple(name.split(".")), set())
        if found is None:
            return None
        foreign: dict[str, None] = {}
        lineage = self._lineage(*found, (), foreign)
        # A base of several classes comes after all of them.
        lineage = [each for index, each in enumerate(lineage) if each not in lineage[index + 1 :]]
        return UserClass(name, *found, tuple(lineage), tuple(foreign))

    def classes(self, module: SourceModule) -> list[UserClass]:
        """Return the classes that a file defines at module level."""
        found = (self.find_class(module, node.name) for node in module.classes())
        return [each for each in found if each is not None]

    def imported_classes(self, module: SourceModule) -> list[UserClass]:
        """Return the classes of the project's other files that a file has a name for; each once."""
        names = [binding.name for binding in module.bindings.values() if not isinstance(binding.node, ast.ClassDef)]
        for path in (self.local_file(module, node) for node in module.star_imports):
            target = self.open(path) if path else None
            names += target.bindings if isinstance(target, SourceModule) else ()
        found: dict[ast.ClassDef, UserClass] = {}
        for name in names:
            kind = self.find_class(module, name)
            if kind is not None and kind.module is not module:
                found.setdefault(kind.node, kind)
        return list(found.values())

    def local_file(self, module: SourceModule, node: ast.ImportFrom) -> Path | None:
        """Return the project's file that a `from … import …` reads; None if it reads no file of the project."""
        parts = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            base = module.path.parent
            for _ in range(node.level - 1):
                base = base.parent
            return _module_file(base, parts)
        return self.importable(parts, beside=module.path.parent if not module.is_package else None)

    def imported(self, module: SourceModule, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[Path, str]]:
        """The project's files that a statement imports, each with the name that it binds to the file, or none."""
        if isinstance(node, ast.Import):
            beside = None if module.is_package else module.path.parent
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                for length in range(1, len(parts) + 1):
                    path = self.importable(parts[:length], beside=beside)
                    if path is not None:
                        yield path, alias.asname or parts[0]
            return
        own = self.local_file(module, node)
        if own is not None:
            yield own, ""
        for alias in node.names:
            name = f"{node.module}.{alias.name}" if node.module else alias.name
            path = self.local_file(module, ast.ImportFrom(name, [], node.level))
            if path is not None:
                yield path, alias.asname or alias.name

    def importable(self, parts: tuple[str, ...], *, beside: Path | None = None) -> Path | None:
        """Return the project's file for an absolute import of `a.b.c`, given as its parts; None if there is none."""
        if not parts:
            return None
        package = self._packages.get(parts[0])
        if package is not None and package.is_file():
            return package if len(parts) == 1 else None
        if package is not None:
            return _module_file(package, parts[1:])
        for base in dict.fromkeys((self.root, beside or self.root)):
            found = _module_file(base, parts)
            if found:
                return found
        return None

    def _lineage(
        self, node: ast.ClassDef, module: SourceModule, below: tuple[ast.ClassDef, ...], foreign: dict[str, None]
    ) -> list[tuple[ast.ClassDef, SourceModule]]:
        """Return a class and its bases, depth first; adds the bases that the project does not define to `foreign`."""
        lineage = [(node, module)]
        for name in filter(None, map(dotted, node.bases)):
            base = self._class(module, tuple(name.split(".")), set())
            if base is None:
                foreign[full_name(module, name)] = None
            elif base[0] not in (node, *below):
                lineage += self._lineage(*base, (node, *below), foreign)
        return lineage

    def _class(
        self, module: SourceModule | Problem | None, parts: tuple[str, ...], seen: set[tuple[Path, tuple[str, ...]]]
    ) -> tuple[ast.ClassDef, SourceModule] | None:
        """Follow a name, given as its parts, to a class: through imports, files, packages and other names for it."""
        if not isinstance(module, SourceModule) or not parts or (module.path, parts) in seen:
            return None
        seen.add((module.path, parts))
        binding = module.bindings.get(parts[0])
        node, rest = binding.node if binding else None, parts[1:]
        if isinstance(node, ast.ClassDef):
            return None if rest else (node, module)
        if isinstance(node, ast.Name | ast.Attribute):
            return self._class(module, (*dotted(node).split("."), *rest), seen)
        if node is None:
            targets: list[tuple[Path | None, tuple[str, ...]]]
            targets = [(self.local_file(module, each), parts) for each in reversed(module.star_imports)]
            if module.is_package:
                targets.append((_module_file(module.path.parent, parts[:1]), rest))
        else:
            imported = (binding.imported or parts[0]) if binding else ""
            targets = []
            if isinstance(node, ast.ImportFrom):
                targets.append((self.local_file(module, node), (imported, *rest)))
            targets += self._files_named(module, node, parts)
        for path, wanted in targets:
            found = self._class(self.open(path), wanted, seen) if path else None
            if found is not None:
                return found
        return None

    def _files_named(
        self, module: SourceModule, node: ast.AST, parts: tuple[str, ...]
    ) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield each file that an import binds the first of some names to, and the names that are left in it."""
        if isinstance(node, ast.ImportFrom):
            for path, name in self.imported(module, node):
                if name == parts[0]:
                    yield path, parts[1:]
        elif isinstance(node, ast.Import):
            beside = None if module.is_package else module.path.parent
            for alias in node.names:
                if parts[0] == (alias.asname or alias.name.partition(".")[0]):
                    whole = (*alias.name.split("."), *parts[1:]) if alias.asname else parts
                    for length in range(len(whole) - 1, 0, -1):
                        file = self.importable(whole[:length], beside=beside)
                        if file is not None:
                            yield file, whole[length:]

    def _follow(self, module: SourceModule, name: str, seen: set[tuple[Path, str]]) -> Found | Problem | None:
        if (module.path, name) in seen:
            return Problem(module.file, 0, f"`{name}` is imported in a circle", "Define it in one of the files.")
        seen.add((module.path, name))
        binding = module.bindings.get(name)
        if binding is None:
            return self._through_star_imports(module, name, seen)
        node = binding.node
        if isinstance(node, Function):
            return Found(node, module)
        if isinstance(node, ast.ImportFrom):
            return self._through_import(module, node, name, binding.imported or name, seen)
        aliased = self._follow(module, node.id, seen) if isinstance(node, ast.Name) else None
        if isinstance(aliased, Found):
            return aliased
        what = {ast.ClassDef: "a class", ast.Import: "a module"}.get(type(node), "an expression")
        message = f"`{name}` is {what}, whose parameters cannot be read without importing the module"
        return Problem(module.file, binding.line, message, f"Write def {name}(...).")

    def _through_import(
        self, module: SourceModule, node: ast.ImportFrom, name: str, original: str, seen: set[tuple[Path, str]]
    ) -> Found | Problem:
        where = "." * node.level + (node.module or "")
        path = self.local_file(module, node)
        if path is None:
            message = f"`{name}` is imported from `{where}`, which is not a file of this project"
            fix = f"Define it here: def {name}(...) that calls {original} of {where}."
            return Problem(module.file, node.lineno, f"{message}: its parameters cannot be read", fix)
        target = self.open(path)
        if isinstance(target, Problem):
            return target
        message = f"`{name}` is imported from `{where}`, but {target.file} does not define `{original}`"
        missing = Problem(module.file, node.lineno, message, f"Define {original} in {target.file}.")
        return self._follow(target, original, seen) or missing

    def _through_star_imports(
        self, module: SourceModule, name: str, seen: set[tuple[Path, str]]
    ) -> Found | Problem | None:
        for node in reversed(module.star_imports):
            path = self.local_file(module, node)
            target = self.open(path) if path else None
            if isinstance(target, SourceModule) and not name.startswith("_"):
                found = self._follow(target, name, seen)
                if found is not None:
                    return found
        return None


class File:
    """A file of the project, and what the names that it imports stand for.

    Attributes:
        libraries: Names of libraries, with their dotted name.
        modules: Names of the project's files.
        originals: What a name is called in the file that it is imported from.
        imports: The files that an import statement reads.
    """

    def __init__(self, source: SourceModule) -> None:
        self.source = source
        self.libraries: dict[str, str] = {}
        self.modules: set[str] = set()
        self.originals: dict[str, str] = {}
        self.imports: dict[ast.AST, list[File]] = defaultdict(list)


class Namespace:
    """A module and the project's files that it imports, as one namespace: what two of them call alike counts as one.

    Attributes:
        functions, classes, values: What a name is defined as where a file is imported; of values the expressions.
        methods: Of any class, by their name.
        made: All that is assigned to a name anywhere, local names included.
        at_import: The files that an import of the module imports.
        parents, file_of: Of every node of every syntax tree.
    """

    def __init__(self, tree: SourceTree, module: SourceModule) -> None:
        self._tree = tree
        self.files: dict[str, File] = {}
        self.functions: dict[str, list[Function]] = defaultdict(list)
        self.classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
        self.values: dict[str, list[ast.expr]] = defaultdict(list)
        self.methods: dict[str, list[Function]] = defaultdict(list)
        self.made: dict[str, list[ast.expr]] = defaultdict(list)
        self.parents: dict[ast.AST, ast.AST] = {}
        self.file_of: dict[ast.AST, File] = {}
        self.at_import: list[File] = []
        self.main = self._read(module)
        self._import(self.main)

    def _read(self, module: SourceModule) -> File:
        if module.file in self.files:
            return self.files[module.file]
        file = self.files[module.file] = File(module)
        for node in ast.walk(module.tree):
            self.file_of[node] = file
            self.parents.update(dict.fromkeys(ast.iter_child_nodes(node), node))
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._note_import(file, node)
            elif isinstance(node, ast.ClassDef):
                for method in (part for part in node.body if isinstance(part, MethodNode)):
                    self.methods[method.name].append(method)
            for name, value in assigned(node):
                self.made[name].append(value)
        for statement in statements_at_import(module.tree.body):
            self._define(statement)
        return file

    def _define(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.ClassDef):
            self.classes[statement.name].append(statement)
        elif isinstance(statement, MethodNode):
            self.functions[statement.name].append(statement)
            for name in map(dotted, statement.decorator_list):
                if name.endswith(".register"):  # a call of the function that it registers at may run it
                    self.functions[name.removesuffix(".register")].append(statement)
        for name, value in assigned(statement):
            if isinstance(value, ast.Lambda):
                self.functions[name].append(value)
            else:
                self.values[name].append(value)

    def _note_import(self, file: File, node: ast.Import | ast.ImportFrom) -> None:
        local = list(self._tree.imported(file.source, node))
        file.modules |= {name for _, name in local if name}
        for opened in (self._tree.open(path) for path, _ in local):
            if isinstance(opened, SourceModule):
                file.imports[node].append(self._read(opened))
        for alias in node.names:
            name, top = alias.asname or alias.name, alias.name.partition(".")[0]
            if isinstance(node, ast.Import):
                if (alias.asname or top) not in file.modules:
                    file.libraries[alias.asname or top] = alias.name if alias.asname else top
            elif not local:
                file.libraries[name] = f"{node.module or ''}.{alias.name}".lstrip(".")
            elif name not in file.modules:
                file.originals[name] = alias.name

    def _import(self, file: File) -> None:
        self.at_import.append(file)
        for statement in statements_at_import(file.source.tree.body):
            for inner in file.imports.get(statement, ()):
                if inner not in self.at_import:
                    self._import(inner)


def assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement or an expression assigns, each with what its value comes from."""
    pairs: list[tuple[ast.expr | None, ast.expr | None]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        pairs = [(node.target, node.iter)]
    elif isinstance(node, ast.With | ast.AsyncWith):
        pairs = [(item.optional_vars, item.context_expr) for item in node.items]
    for target, value in pairs:
        for part in ast.walk(target) if target is not None and value is not None else ():
            if isinstance(part, ast.Name) and is_stored(part) and value is not None:
                yield part.id, value


def is_stored(node: ast.AST) -> bool:
    """Whether an expression is the target of an assignment or of a `del`."""
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def parameters(node: ast.AST) -> list[str]:
    """Names of a function's parameters, in order, those with stars last; none of what is no function."""
    if not isinstance(node, Function):
        return []
    args = node.args
    stars = [star.arg for star in (args.vararg, args.kwarg) if star is not None]
    return [*(argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs)), *stars]


def _module_file(base: Path, parts: tuple[str, ...]) -> Path | None:
    """Return `base/a/b.py` or `base/a/b/__init__.py` for `a.b`, whichever exists."""
    target = base.joinpath(*parts)
    if (target / "__init__.py").is_file():
        return target / "__init__.py"
    if parts and target.with_name(target.name + ".py").is_file():
        return target.with_name(target.name + ".py")
    return None
