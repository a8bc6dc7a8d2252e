"""Which names may stand in an archive: of models, versions, modules and files. Pure.

Facts: torch-model-archiver's `check_model_name_regex_or_exit`; TorchServe puts name and version into URL
paths (`/predictions/NAME/VERSION`, `/models/NAME/all`), reads `load_models=all` and `load_models=none` as
words of its own (ModelServer.initModelStore), and puts the model directory before the standard library on
PYTHONPATH (EnvironmentUtils.getEnvString).
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterable, Iterator

from handlergen.errors import HandlergenError

HANDLER_MODULE = "handlergen_handler"
RUNTIME_PACKAGE = "handlergen_runtime"
HANDLER_FILE = f"{HANDLER_MODULE}.py"
MODEL_CONFIG_FILE = "model-config.yaml"
REQUIREMENTS_FILE = "requirements.txt"
MANIFEST_DIRECTORY = "MAR-INF"
MANIFEST_FILE = f"{MANIFEST_DIRECTORY}/MANIFEST.json"

MODEL_STORE = "model-store"
"""Where archives go unless told otherwise: a directory in the working directory."""

_OF_A_STORE = re.compile(r".+\.mar(\.sig)?|\..+\.mar(\.sig)?\.[0-9a-f]{16}\.part")

#: What a TorchServe worker imports before the user's module. The archive's root comes first on its path.
WORKER_MODULES = frozenset({"ts", "torch", "torchvision", "numpy", "yaml", "packaging", "psutil", "PIL"})

_OURS = frozenset({HANDLER_MODULE, RUNTIME_PACKAGE})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SWALLOWED = "token"  # TokenAuthorizationHandler.java: the address contains "/token"
_LONGEST_NAME = 200
"""Leaves room in a file name of 255 bytes for `.mar` and for the temporary name beside it."""


def is_of_a_store(name: str) -> bool:
    """Is a file of this name what `archive` writes: an archive, its signature, or a part of one of them?"""
    return _OF_A_STORE.fullmatch(name) is not None


def check_model_name(name: str) -> None:
    """Refuse a model name that torch-model-archiver refuses or that TorchServe cannot serve.

    Raises:
        HandlergenError: Says what is wrong with it and proposes another.
    """
    hint = f"name the model {propose(name)!r}: `name:` in handlergen.yaml or --name"
    if not _NAME.fullmatch(name):
        raise HandlergenError(
            f"{name!r} is no model name: letters, digits, '_', '-' and '.' only, the first a letter or digit",
            hint=hint,
        )
    if len(name) > _LONGEST_NAME:
        raise HandlergenError(
            f"the model name {name[:40]}... has {len(name)} characters; a file name takes {_LONGEST_NAME}",
            hint=hint,
        )
    if name.lower() in ("all", "none"):
        raise HandlergenError(f"TorchServe reads load_models={name} as a word of its own", hint=hint)
    if name.startswith(_SWALLOWED):
        raise HandlergenError(
            f"the model name {name!r} begins with {_SWALLOWED!r}: TorchServe takes every address with /token in it "
            "for a request for a new key",
            hint=hint,
        )
    if name.lower().endswith(".mar"):
        raise HandlergenError(f"the model name {name!r} ends in .mar, as its file name will", hint=hint)


def check_version(version: str) -> None:
    """Refuse a version that cannot stand in TorchServe's URLs (`/predictions/NAME/VERSION`).

    Raises:
        HandlergenError: It has other characters than a model name may have, or is `all`.
    """
    if (
        not _NAME.fullmatch(version)
        or version.lower() in ("all", "set-default")
        or version.startswith(_SWALLOWED)
    ):
        raise HandlergenError(
            f"{version!r} is no model version: it stands in URLs, so letters, digits, '_', '-', '.', not 'all', and "
            f"not {_SWALLOWED!r} in front",
            hint="write a version such as '1.0'",
        )


def propose(name: str) -> str:
    """A valid model name near `name`."""
    near = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:_LONGEST_NAME]
    near = re.sub(r"\.mar$", "", near, flags=re.IGNORECASE)
    if near.startswith(_SWALLOWED):
        return f"model-{near}"
    return f"{near}-model" if near.lower() in ("all", "none") else near or "model"


def module_name_problem(name: str) -> str | None:
    """Why a module or package of this name cannot stand in an archive's root, or None when it can."""
    if name in _OURS:
        return f"handlergen puts its own {name} into every archive"
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return f"it would replace Python's own {name!r} in the worker, which looks into the archive first"
    if name in WORKER_MODULES:
        return f"it would replace {name!r}, which TorchServe's worker imports itself"
    if not name.isidentifier() or keyword.iskeyword(name):
        return "it cannot be imported under this name"
    return None


def path_problem(path: str) -> str | None:
    """Why a file may not stand at this place in an archive, or None when it may.

    Args:
        path: Relative, with `/` between its parts.
    """
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
        return "it is no plain relative path"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "its name holds control characters"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not valid text"
    if parts[0].upper() == MANIFEST_DIRECTORY:
        return f"{MANIFEST_DIRECTORY}/ belongs to the archive's manifest"
    for part in parts[:-1]:
        # model_packaging_utils.directory_filter
        if part.startswith(".") or part in ("__pycache__", "__MACOSX"):
            return f"torch-model-archiver drops the directory {part!r} without a word"
    return None


def clashes(paths: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Pairs of archive paths that cannot both exist, with the reason.

    Names are compared without regard to case, since the archive may be unpacked where file names are.
    A path that is a file here and a directory there is a clash as well, and so are `NAME.py` and the package
    `NAME/` side by side, of which Python imports only one.
    """
    files: dict[str, str] = {}
    directories: dict[str, str] = {}
    ordered = list(paths)
    for path in ordered:
        folded = path.casefold()
        if folded in files:
            reason = (
                "is the name of two files" if files[folded] == path else "differ only in upper and lower case"
            )
            yield files[folded], path, reason
        files.setdefault(folded, path)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            known = directories.setdefault(directory.casefold(), directory)
            if known != directory:
                yield known, directory, "differ only in upper and lower case"
    for folded, path in files.items():
        if folded in directories:
            yield path, directories[folded] + "/", "would be a file and a directory of one name"
        if path.endswith(".py") and path.removesuffix(".py") + "/__init__.py" in ordered:
            package = path.removesuffix(".py") + "/__init__.py"
            yield (
                path,
                package,
                "are a module and a package of one name: Python would import only the package",
            )
