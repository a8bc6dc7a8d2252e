"""The user's files for an archive: found, walked, kept inside the project; and those that seem to be missing."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from handlergen.project.names import MODEL_STORE, is_of_a_store
from handlergen.project.settings import SETTINGS_FILE, shown

#: Left out of a walked directory without a word; other hidden entries are left out with a warning.
_NOISE = (
    frozenset({".git", ".gitattributes", ".gitignore", ".gitkeep", ".hg", ".svn", ".DS_Store", "__MACOSX"})
    | {"__pycache__", ".cache", ".hypothesis", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache"}
    | {".idea", ".ruff_cache", ".tox", ".venv", ".vscode", SETTINGS_FILE}
)

_LONGEST_NAME = 200
"""Characters of a text constant that may name a file."""


class Collector:
    """Collects files under their archive paths, and every problem on the way, not just the first.

    Args:
        root: The project.
        model_store: Where the archive is to go.

    Attributes:
        files: Archive path to the file it is copied from.
        modules: Import name to where it comes from, for what the user wants importable.
        problems: Lines of an error message.
        warnings: What was left out or moved.
    """

    def __init__(self, root: Path, model_store: Path = Path(MODEL_STORE)) -> None:
        self.root = _absolute(root)
        self._model_store = model_store.resolve()
        self._archives: list[Path] = []
        self.files: dict[str, Path] = {}
        self.modules: dict[str, str] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def locate(self, entry: str, setting: str) -> Path | None:
        """The existing path that `entry` of `setting` names; None after noting a problem."""
        path = self._absolute(entry)
        if not path.exists():
            lost = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
            place = "" if shown(path) == entry else f" (looked for {shown(path)})"
            self.problems.append(f"{setting}: {entry} {lost}{place}")
            return None
        return path if self.check_inside(path) else None

    def add_named(self, entry: str, setting: str, *, patterns: bool = False) -> str | None:
        """Add the file or directory that `entry` of `setting` names, at its place relative to the project.

        What lies outside the project has no such place: it goes into the archive's root under its bare name.

        Args:
            entry: A path relative to the project, or an absolute one.
            setting: For messages.
            patterns: `entry` may hold `*`, `?` and `[...]`.

        Returns:
            The archive path, or None when nothing was added or a pattern matched several.
        """
        if patterns and any(character in entry for character in "*?[") and not self._absolute(entry).exists():
            matches = [] if Path(entry).is_absolute() else sorted(self.root.glob(entry))
            if not matches:
                self.problems.append(f"{setting}: nothing in {shown(self.root)} matches {entry}")
            for match in matches:
                if match.name not in _NOISE and not self._leaves_out_archive(match):
                    self.add_named(os.path.relpath(match, self.root), setting)
            return None
        path = self.locate(entry, setting)
        if path is None:
            return None
        if path == self.root:
            self.problems.append(
                f"{setting}: {entry} is the project itself; name the files or directories in it"
            )
            return None
        if path.is_relative_to(self.root):
            place = path.relative_to(self.root).as_posix()
        else:
            place = path.name
            self.warnings.append(
                f"{setting}: {entry} lies outside the project; its place in the archive is {place}"
            )
        if path.is_dir():
            self.add_tree(path, place)
        else:
            self.add_file(path, place)
        return place

    def add_tree(self, directory: Path, place: str) -> None:
        """Add every file below `directory` under the archive path `place`."""
        found, archives = 0, len(self._archives)
        for path in self._walk(directory, (directory.resolve(),)):
            found += 1
            self.add_file(path, f"{place}/{path.relative_to(directory).as_posix()}")
        if not found and len(self._archives) == archives:
            self.problems.append(f"{shown(directory)} holds no file to pack")

    def add_file(self, path: Path, place: str) -> None:
        """Add one file, unless it is already there from the same place."""
        if not path.is_file():
            self.problems.append(f"{shown(path)} is neither a file nor a directory")
            return
        if not os.access(path, os.R_OK):
            self.problems.append(f"{shown(path)} cannot be read: check its permissions")
            return
        known = self.files.get(place)
        if known is not None and not known.samefile(path):
            self.problems.append(f"{shown(known)} and {shown(path)} would both be {place} in the archive")
            return
        self.files.setdefault(place, path)

    def check_inside(self, path: Path) -> bool:
        """Note a problem when a path in the project leads out of it through a symbolic link."""
        absolute = _absolute(path)
        real = absolute.resolve()
        if absolute.is_relative_to(self.root) and not real.is_relative_to(self.root.resolve()):
            self.problems.append(
                f"{shown(absolute)} is a link out of the project, to {real}; name that file itself"
            )
            return False
        return True

    def archives_left_out(self) -> list[str]:
        """A warning when there were archives of a model store among the files; else none."""
        return [
            f"left out what lies in the model store {shown(store)} ({names[0]}{', …' if len(names) > 1 else ''})"
            for store in dict.fromkeys(path.parent for path in self._archives)
            if (names := [path.name for path in dict.fromkeys(self._archives) if path.parent == store])
        ]

    def _leaves_out_archive(self, path: Path) -> bool:
        """Is it an archive of a model store? It would hold itself, or the one before, and grow with each run."""
        if not is_of_a_store(path.name) or path.is_dir():
            return False
        found = path.parent.name == MODEL_STORE or path.parent.resolve() == self._model_store
        if found:
            self._archives.append(path)
        return found

    def _absolute(self, entry: str) -> Path:
        return _absolute(self.root / entry)

    def _walk(self, directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        """Files below `directory` by name; `above` are the real directories on the way to it."""
        for path in sorted(directory.iterdir()):
            if path.name in _NOISE or path.suffix in (".pyc", ".pyo"):
                continue
            if self._leaves_out_archive(path):
                continue
            if path.name.startswith("."):
                advice = "rename it" if path.is_dir() else "name it under extra_files"
                self.warnings.append(
                    f"left out {shown(path)}, which is hidden; if the model needs it, {advice}"
                )
                continue
            if path.is_symlink() and not self._link_is_fine(path, above):
                continue
            if path.is_dir():
                yield from self._walk(path, (*above, path.resolve()))
            else:
                yield path

    def _link_is_fine(self, path: Path, above: tuple[Path, ...]) -> bool:
        real = path.resolve()
        if not path.exists():
            self.problems.append(f"{shown(path)} is a link that leads nowhere")
        elif real in above:
            self.problems.append(f"{shown(path)} is a link to a directory that holds it")
        elif not real.is_relative_to(self.root.resolve()) and not real.is_relative_to(above[0]):
            self.problems.append(
                f"{shown(path)} is a link out of the project, to {real}; name that file itself"
            )
        else:
            return True
        return False


def _absolute(path: Path) -> Path:
    """Absolute and without `..`, with its links as they are: what matters is where the user said it is."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links


def named_but_not_packed(files: Mapping[str, Path], root: Path) -> list[str]:
    """Return a warning for each file that a module names, that stands beside it, and that its archive would not hold.

    Such a module works where it was written, and fails where it is served.

    Found by the text constants of the packed Python files that are names of files below `root`. A name that is put
    together at run time is not found.

    Args:
        files: Archive path -> the user's file, for all that is packed.
        root: The project's directory.
    """
    packed = {path.resolve() for path in files.values()}
    warnings = []
    for path in files.values():
        if path.suffix != ".py":
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # only carried along; inspection reads the user's own module
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            found = _beside(node.value, root)
            if found is not None and found not in packed:
                packed.add(found)  # one warning a file
                place = found.relative_to(root.resolve()).as_posix()
                warnings.append(
                    f"{path.name}:{node.lineno}: {node.value!r} is named here and stands beside the module, but is "
                    f"not packed; if the model reads it, add it to extra_files (--extra-file {place})"
                )
    return warnings


def _beside(name: str, root: Path) -> Path | None:
    """The file below `root` that a text names, if it looks like a file's name and there is one."""
    if not 2 < len(name) <= _LONGEST_NAME or "." not in name or "\n" in name or "\0" in name:
        return None
    try:
        found = (root / name).resolve()
        is_there = found.is_file() and found.is_relative_to(root.resolve()) and found.suffix != ".py"
    except OSError:
        return None
    return found if is_there else None
