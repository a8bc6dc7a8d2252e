"""Files that a module names, that stand beside it, and that its archive would not hold."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

_LONGEST_NAME = 200


def named_but_not_packed(files: Mapping[str, Path], root: Path) -> list[str]:
    """A warning for each: such a module works where it was written, and fails where it is served.

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
        except (
            SyntaxError,
            ValueError,
        ):  # a module that is only carried along; inspection reads the user's own
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
