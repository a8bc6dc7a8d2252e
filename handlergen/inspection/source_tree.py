"""The Python files of a project: a name is followed to its `def` through aliases, re-exports and imports."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import Problem
from handlergen.inspection.source_module import Binding, Function, SourceModule, parse_source
from handlergen.project.settings import shown


@dataclass(frozen=True)
class Found:
    """A function and the module that defines it."""

    node: Function
    module: SourceModule


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
        """Find the function that a module-level name is bound to.

        Returns:
            The function; a problem if the name is bound to something else; None if the module does not bind it.
        """
        return self._follow(module, name, seen=set())

    def local_file(self, module: SourceModule, node: ast.ImportFrom) -> Path | None:
        """Return the project's file that a `from … import …` reads; None if it reads no file of the project."""
        parts = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            base = module.path.parent
            for _ in range(node.level - 1):
                base = base.parent
            return _module_file(base, parts)
        return self.importable(parts, beside=module.path.parent if not module.is_package else None)

    def importable(self, parts: tuple[str, ...], *, beside: Path | None = None) -> Path | None:
        """Return the project's file for an absolute import of `a.b.c`, given as its parts; None if there is none."""
        if not parts:
            return None
        if parts[0] in self._packages:
            package = self._packages[parts[0]]
            if package.is_file():
                return package if len(parts) == 1 else None
            return _module_file(package, parts[1:])
        for base in dict.fromkeys((self.root, beside or self.root)):
            found = _module_file(base, parts)
            if found:
                return found
        return None

    def _follow(self, module: SourceModule, name: str, seen: set[tuple[Path, str]]) -> Found | Problem | None:
        if (module.path, name) in seen:
            return Problem(
                module.file, 0, f"`{name}` is imported in a circle", "Define it in one of the files."
            )
        seen.add((module.path, name))
        binding = module.bindings.get(name)
        if binding is None:
            return self._through_star_imports(module, name, seen)
        node = binding.node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return Found(node, module)
        if isinstance(node, ast.ImportFrom):
            return self._through_import(module, node, name, binding.imported or name, seen)
        aliased = self._follow(module, node.id, seen) if isinstance(node, ast.Name) else None
        return aliased if isinstance(aliased, Found) else _unreadable(module, name, binding)

    def _through_import(
        self,
        module: SourceModule,
        node: ast.ImportFrom,
        name: str,
        original: str,
        seen: set[tuple[Path, str]],
    ) -> Found | Problem:
        where = "." * node.level + (node.module or "")
        path = self.local_file(module, node)
        if path is None:
            return Problem(
                module.file,
                node.lineno,
                f"`{name}` is imported from `{where}`, which is not a file of this project: its parameters cannot "
                f"be read",
                f"Define it here: def {name}(...) that calls {original} of {where}.",
            )
        target = self.open(path)
        if isinstance(target, Problem):
            return target
        return self._follow(target, original, seen) or Problem(
            module.file,
            node.lineno,
            f"`{name}` is imported from `{where}`, but {target.file} does not define `{original}`",
            f"Define {original} in {target.file}.",
        )

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


def _module_file(base: Path, parts: tuple[str, ...]) -> Path | None:
    """Return `base/a/b.py` or `base/a/b/__init__.py` for `a.b`, whichever exists."""
    target = base.joinpath(*parts)
    if (target / "__init__.py").is_file():
        return target / "__init__.py"
    if parts and target.with_name(target.name + ".py").is_file():
        return target.with_name(target.name + ".py")
    return None


def _unreadable(module: SourceModule, name: str, binding: Binding) -> Problem:
    what = "an expression"
    if isinstance(binding.node, ast.ClassDef):
        what = "a class"
    elif isinstance(binding.node, ast.Import):
        what = "a module"
    return Problem(
        module.file,
        binding.line,
        f"`{name}` is {what}, whose parameters cannot be read without importing the module",
        f"Write def {name}(...).",
    )
