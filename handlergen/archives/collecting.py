"""The user's files for an archive: they are found, checked, and kept inside the project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from handlergen.inspection.project import absolute
from handlergen.project.names import MODEL_STORE, is_store_file
from handlergen.project.settings import SETTINGS_FILE, shown

#: Left out of directories silently; other hidden files and directories are left out with a warning.
_NOISE = (
    frozenset({".git", ".gitattributes", ".gitignore", ".gitkeep", ".hg", ".svn", ".DS_Store", "__MACOSX"})
    | {"__pycache__", ".cache", ".hypothesis", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache"}
    | {".idea", ".ruff_cache", ".tox", ".venv", ".vscode", SETTINGS_FILE}
)


class Collector:
    """A collector of files, each with its archive path, and of all problems.

    Args:
        root: The project's directory.
        model_store: The directory that the archive is written to.
        follow_links: Whether links out of the project are packed, too.

    Attributes:
        files: The file to copy for each archive path.
        modules: The origin, for messages, of each import name that the user wants.
        problems: Reasons why the archive cannot be built.
        warnings: Files that are left out or moved.
    """

    def __init__(self, root: Path, model_store: Path = Path(MODEL_STORE), *, follow_links: bool = False) -> None:
        self.root = absolute(root)
        self._follow_links = follow_links
        self._model_store = model_store.resolve()
        self._archives: list[Path] = []
        self.files: dict[str, Path] = {}
        self.modules: dict[str, str] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def locate(self, entry: str, setting: str) -> Path | None:
        """Return the path that `entry` of `setting` names; None, and a problem, if it does not exist."""
        path = absolute(self.root / entry)
        if not path.exists():
            why = "is a broken link" if path.is_symlink() else "does not exist"
            place = "" if shown(path) == entry else f" (looked for {shown(path)})"
            self.problems.append(f"{setting}: {entry} {why}{place}")
            return None
        return path if self.check_inside(path) else None

    def add_named(self, entry: str, setting: str, *, patterns: bool = False) -> None:
        """Add a file or directory under its path relative to the project; one outside the project, under its bare name.

        With `patterns`, `entry` may contain `*`, `?` and `[...]`. `setting` names it, for messages.
        """
        if patterns and any(character in entry for character in "*?[") and not absolute(self.root / entry).exists():
            matches = [] if Path(entry).is_absolute() else sorted(self.root.glob(entry))
            if not matches:
                self.problems.append(f"{setting}: nothing in {shown(self.root)} matches {entry}")
            for match in matches:
                if match.name not in _NOISE and not self._leaves_out_archive(match):
                    self.add_named(os.path.relpath(match, self.root), setting)
            return
        path = self.locate(entry, setting)
        if path is None:
            return
        if path == self.root:
            self.problems.append(f"{setting}: {entry} is the project itself; name the files or directories in it")
            return
        place = path.name
        if path.is_relative_to(self.root):
            place = path.relative_to(self.root).as_posix()
        else:
            self.warnings.append(f"{setting}: {entry} is outside the project; its path in the archive is {place}")
        if path.is_dir():
            self.add_tree(path, place)
        else:
            self.add_file(path, place)

    def add_tree(self, directory: Path, place: str) -> None:
        """Add every file below a directory; `place` is its archive path."""
        found, archives, problems = 0, len(self._archives), len(self.problems)
        for path in self._walk(directory, (directory.resolve(),)):
            found += 1
            self.add_file(path, f"{place}/{path.relative_to(directory).as_posix()}")
        if not found and len(self._archives) == archives and len(self.problems) == problems:
            self.problems.append(f"{shown(directory)} has no file to pack")

    def add_file(self, path: Path, place: str) -> None:
        """Add one file, unless it is there already."""
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
        """Return whether a path of the project stays in it; add a problem if a symbolic link leads out."""
        path = absolute(path)
        real = path.resolve()
        if path.is_relative_to(self.root) and not real.is_relative_to(self.root.resolve()):
            return self._leads_out(path, real)
        return True

    def _leads_out(self, path: Path, real: Path) -> bool:
        """Return whether a link out of the project is followed; add a problem if not."""
        if self._follow_links and real not in self.root.resolve().parents:
            return True
        advice = "--follow-links packs its content under the link's name"
        if real in self.root.resolve().parents:
            advice = "that directory contains the project. Link to the files that the model needs"
        self.problems.append(f"{shown(path)} is a link out of the project, to {real}; {advice}")
        return False

    def archives_left_out(self) -> list[str]:
        """Return a warning for each model store whose archives were left out."""
        stores: dict[Path, list[str]] = {}
        for path in dict.fromkeys(self._archives):
            stores.setdefault(path.parent, []).append(path.name)
        return [
            f"left out the archives in the model store {shown(store)} ({names[0]}{', …' if len(names) > 1 else ''})"
            for store, names in stores.items()
        ]

    def _leaves_out_archive(self, path: Path) -> bool:
        """Return whether it is an archive in a model store; packed, each archive would contain the one before."""
        if not is_store_file(path.name) or path.is_dir():
            return False
        found = path.parent.name == MODEL_STORE or path.parent.resolve() == self._model_store
        if found:
            self._archives.append(path)
        return found

    def _walk(self, directory: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        """Yield the files below a directory, sorted; `above` are the real directories on the way to it."""
        for path in sorted(directory.iterdir()):
            if path.name in _NOISE or path.suffix in (".pyc", ".pyo") or self._leaves_out_archive(path):
                continue
            if path.name.startswith("."):
                advice = "rename it" if path.is_dir() else "name it under extra_files"
                self.warnings.append(f"left out {shown(path)}, which is hidden; if the model needs it, {advice}")
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
            self.problems.append(f"{shown(path)} is a broken link")
        elif real in above:
            self.problems.append(f"{shown(path)} is a link to a directory that contains it")
        elif not real.is_relative_to(self.root.resolve()) and not real.is_relative_to(above[0]):
            return self._leads_out(path, real)
        else:
            return True
        return False
