"""The project's files that a module needs: what it imports, the directories that it puts on `sys.path`, data files."""

from __future__ import annotations

import ast
import fnmatch
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from handlergen.inspection.findings import Source
from handlergen.inspection.path_values import Paths
from handlergen.inspection.source_module import SourceModule
from handlergen.inspection.source_tree import SourceTree
from handlergen.project.names import is_store_file, module_name_problem
from handlergen.project.settings import AUTO_FILES, SETTINGS_FILE, Settings, shown
from handlergen.project.weights_file import pickled_names


@dataclass(frozen=True)
class _Use:
    """An import of a project's file: where it stands, what it imports, and from which file."""

    place: str
    what: str
    path: Path


class UsedFiles:
    """The project's files that a source imports, at any depth, and what of them has to be packed.

    Directories that the source puts on `sys.path` are given to the source's tree, so that forms and rules see their
    modules, too.

    Args:
        tree: Finds the files.
        module: The file that has the hooks.
        own: The file or directory that is packed as the source.
        base: The directory whose files keep their place in the archive.
        settings: `packages` and `extra_files` say what is packed anyway.

    Attributes:
        paths: Files and directories below `base` to pack in their place.
        warnings: What is imported and cannot be packed, or cannot be seen.
    """

    def __init__(self, tree: SourceTree, module: SourceModule, *, own: Path, base: Path, settings: Settings) -> None:
        self.paths: list[Path] = []
        self.warnings: list[str] = []
        self._tree, self._own, self._base = tree, own, base
        named = (*settings.extra_files, *settings.packages)
        weights = [settings.weights] if settings.weights else []
        self._packed = [own, *(tree.root / entry.rstrip("/") for entry in (*named, *weights))]
        self._unseen: list[str] = []
        self._read: dict[Path, Paths] = {}
        self._seen: set[Path] = set()
        count = -1
        while count != len(tree.search_path):  # a directory on the path changes what the imports before it find
            count = len(tree.search_path)
            self._seen, self._unseen = {module.path}, []
            uses = list(self._uses(module))
        for directory in tree.search_path:
            inside = base in directory.parents and directory not in own.parents and directory.is_dir()
            if inside and not self._is_packed(directory):
                self._pack(directory)
        for use in uses:
            self._include(use)
        self.warnings += self._unseen

    def add_pickles(self, source: Source, files: Iterable[str], *, own_main: bool) -> None:
        """Also include the modules of classes in pickles.

        Args:
            files: Relative to the project's root.
            own_main: Whether the runtime finds a class of `__main__` in the user's module (the form `module`).
        """
        for path in dict.fromkeys(path for entry in files for path in _below(source.root, entry)):
            modules = {module for module, _ in pickled_names(path)} - ({"__main__"} if own_main else set())
            for module in sorted(each for each in modules if not each.startswith("__torch__")):  # TorchScript's own
                self._include_pickled(shown(path), module)

    def pack_named(self) -> dict[str, str]:
        """Return the project's data files that the source names, relative to its root, with the place; pack them.

        Files that are packed anyway, hidden ones and archives in a model store are left out.
        """
        found = {}
        for path, (place, _) in self._named().items():
            name = os.path.relpath(path, self._tree.root)
            if not name.startswith(".") and "/." not in name and not is_store_file(path.name) and name != SETTINGS_FILE:
                found[name] = place
                self._packed.append(path)
        return found

    def missing(self, packed: Iterable[str]) -> list[str]:
        """Return a warning for each file or directory that the source names and that is not packed.

        Such a module works on this machine and fails on the server. `packed`: further files that are packed.
        """
        root = self._tree.root
        self._packed += [root / entry for entry in packed]
        found = []
        for path, (place, text) in self._named().items():
            if root not in path.parents:
                fix = f"outside the project, so no archive has it there; copy it into {shown(root)} and pack it there"
                found.append(f"{place}: {text} is named here ({shown(path)}) and is {fix}")
                continue
            fix = f"add it to extra_files (--extra-file {path.relative_to(root).as_posix()}, or {AUTO_FILES})"
            what = "is named here and is beside the module, but is not packed; if the model reads it"
            found.append(f"{place}: {text} {what}, {fix}")
        return found

    def _named(self) -> dict[Path, tuple[str, str]]:
        """Return what the source names and is not packed, with place and expression; of a directory, what is in it."""
        found: dict[Path, tuple[str, str]] = {}
        for path, paths in self._read.items():
            for node, each in paths.existing():
                if not self._is_packed(each) and not any(each in entry.parents for entry in self._packed):
                    found.setdefault(each, (f"{shown(path)}:{node.lineno}", ast.unparse(node)))
        inner = {parent for path in found for parent in path.parents}
        return {path: named for path, named in found.items() if path not in inner}

    def _include_pickled(self, entry: str, module: str) -> None:
        what = f"has an object of a class of {module}"
        parts = tuple(module.split("."))
        path = self._tree.importable(parts) if all(map(str.isidentifier, parts)) else None
        opened = self._tree.open(path) if path is not None else None
        if module == "__main__":
            fix = "Save its state_dict() only, or let the training script import the class from a module; save again."
            self.warnings.append(f"{entry}: it {what}, the script that saved it, which a worker is not. {fix}")
        elif path is not None and isinstance(opened, SourceModule):
            uses = [_Use(entry, what, path), *(self._uses(opened) if path not in self._seen else ())]
            self._seen.add(path)
            for use in uses:
                self._include(use)
        elif parts[0] not in sys.modules and (not parts[0] or find_spec(parts[0]) is None):
            fix = "Write packages: with its directory, or requirements: with its name."
            self.warnings.append(f"{entry}: it {what}, which is neither in the project nor installed here. {fix}")

    def _uses(self, module: SourceModule) -> Iterator[_Use]:
        """Yield what a file imports of the project, then what these files import."""
        paths = self._read.setdefault(module.path, Paths(module, self._tree.root))
        for addition in paths.additions():
            if not addition.directories:
                fix = "If the model imports from it, write packages: [that directory's packages]."
                what = f"puts {addition.text} on sys.path, which the source does not show. {fix}"
                self._unseen.append(f"{module.file}:{addition.line}: {what}")
            for directory in addition.directories:
                self._tree.search(directory, first=addition.first)
        for line, what, path in self._imports(module, paths):
            yield _Use(f"{module.file}:{line}", f"imports {what}", path)
            opened = self._tree.open(path)
            if path not in self._seen and isinstance(opened, SourceModule):
                self._seen.add(path)
                yield from self._uses(opened)

    def _imports(self, module: SourceModule, paths: Paths) -> Iterator[tuple[int, str, Path]]:
        """Yield line, name and file of each import of a project's file, also inside functions."""
        beside = None if module.is_package else module.path.parent
        for node in paths.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                name = node.names[0].name if isinstance(node, ast.Import) else node.module or "."
                for path, _ in self._tree.imported(module, node):
                    yield node.lineno, name, path
            elif isinstance(node, ast.Call) and node.args:
                if paths.name(node.func) not in ("importlib.import_module", "__import__"):
                    continue
                name, whole = _literal(node.args[0])
                parts = tuple(filter(None, name.split(".")))
                found = None if name.startswith(".") else self._tree.importable(parts, beside=beside)
                if found is not None:
                    yield node.lineno, name, found
                elif not whole and not name.startswith(".") and not _own_package(module, self._own):
                    fix = "If it is a file of the project, write packages: [its directory]."
                    text = ast.unparse(node.args[0])
                    self._unseen.append(f"{module.file}:{node.lineno}: imports {text}, a name that is computed. {fix}")

    def _include(self, use: _Use) -> None:
        top = use.path.parent if use.path.name == "__init__.py" else use.path
        while top.parent != self._base and (top.parent / "__init__.py").is_file():
            top = top.parent
        if self._is_packed(top):
            return
        problem = module_name_problem(top.stem) if top.parent == self._base else None
        if self._base in top.parents and problem is None:
            self._pack(top)
            return
        self._packed.append(top)
        place = os.path.relpath(top, self._tree.root)
        setting = "packages" if top.is_dir() or self._tree.root not in top.parents else "extra_files"
        fix = f"Rename it: {problem}" if problem else f"Write {setting}: [{place}]"
        self.warnings.append(f"{use.place}: {use.what}, which is not packed. {fix}.")

    def _pack(self, path: Path) -> None:
        self.paths.append(path)
        self._packed.append(path)

    def _is_packed(self, path: Path) -> bool:
        return any(
            entry == path or entry in path.parents or fnmatch.fnmatch(str(path), str(entry)) for entry in self._packed
        )


def _below(root: Path, entry: str) -> Iterator[Path]:
    """Yield the files that an entry of `extra_files` names: a file, a directory's files, or a pattern's matches."""
    path = root / entry
    found = [path] if path.exists() or Path(entry).is_absolute() else sorted(root.glob(entry))
    for match in found:
        if not match.is_dir():
            yield match
        elif match.resolve() not in root.resolve().parents:  # a link to / is refused when the files are collected
            yield from sorted(match.rglob("*"))


def _literal(node: ast.expr) -> tuple[str, bool]:
    """Return the text that an expression begins with, up to its last dot, and whether that is all of it."""
    if isinstance(node, ast.Constant):
        return str(node.value), True
    first: ast.AST | None = node.left if isinstance(node, ast.BinOp) else None
    if isinstance(node, ast.JoinedStr) and node.values:
        first = node.values[0]
    text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    return text.rpartition(".")[0], False


def _own_package(module: SourceModule, own: Path) -> bool:
    """Whether a file is in a package that is packed as a whole with everything it could import."""
    return own.is_dir() and own in module.path.parents
