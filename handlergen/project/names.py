"""The names that are valid in an archive: of models, versions, modules and files.

Facts: torch-model-archiver's `check_model_name_regex_or_exit`; TorchServe puts name and version into URL
paths (`/predictions/NAME/VERSION`, `/models/NAME/all`), treats `load_models=all` and `load_models=none`
specially (ModelServer.initModelStore), and puts the model directory before the standard library on
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
"""The default directory of archives, in the working directory."""

_STORE_FILE = re.compile(r".+\.mar(\.sig)?|\..+\.mar(\.sig)?\.[0-9a-f]{16}\.part")

#: Modules that a TorchServe worker imports before the user's (seen with TorchServe 0.12), and pip, which TorchServe
#: runs in the archive's root. The root is first on the path of both.
WORKER_MODULES = frozenset({"ts", "torch", "torchvision", "numpy", "yaml", "packaging", "psutil", "PIL"}) | {
    *("torchgen", "functorch", "typing_extensions", "tqdm", "onnxruntime", "pip"),
}

#: Modules that Python imports by itself when it starts (library reference, `site`).
_AT_START = frozenset({"sitecustomize", "usercustomize"})

_OURS = frozenset({HANDLER_MODULE, RUNTIME_PACKAGE})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED_PREFIX = "token"  # TokenAuthorizationHandler.java: the URL contains "/token"
_LONGEST_NAME = 200
"""In a file name of 255 bytes, room remains for `.mar` and for the suffix of a temporary file."""


def is_store_file(name: str) -> bool:
    """Return whether `archive` writes files with such a name: an archive, its signature, or an unfinished one."""
    return _STORE_FILE.fullmatch(name) is not None


def check_model_name(name: str) -> None:
    """Refuse a model name that torch-model-archiver refuses or that TorchServe cannot serve.

    Raises:
        HandlergenError: Says what is wrong with the name and suggests another.
    """
    if not _NAME.fullmatch(name):
        problem = (
            f"{name!r} is not a valid model name: use letters, digits, '_', '-', '.'; begin with a letter or digit"
        )
    elif len(name) > _LONGEST_NAME:
        problem = f"the model name {name[:40]}... has {len(name)} characters; the maximum is {_LONGEST_NAME}"
    elif name.lower() in ("all", "none"):
        problem = f"the model name {name!r} is reserved by TorchServe (load_models={name})"
    elif name.startswith(_RESERVED_PREFIX):
        problem = (
            f"the model name {name!r} begins with {_RESERVED_PREFIX!r}: TorchServe treats every URL with /token in it "
            "as a request for a new key"
        )
    elif name.lower().endswith(".mar"):
        problem = f"the model name {name!r} ends in .mar, which its file name gets anyway"
    else:
        return
    raise HandlergenError(problem, hint=f"name the model {propose(name)!r}: `name:` in handlergen.yaml or --name")


def check_version(version: str) -> None:
    """Refuse a version that is invalid in TorchServe's URLs (`/predictions/NAME/VERSION`).

    Raises:
        HandlergenError: It has characters that a model name cannot have, or it is reserved (`all`).
    """
    reserved = version.lower() in ("all", "set-default") or version.startswith(_RESERVED_PREFIX)
    if reserved or not _NAME.fullmatch(version):
        raise HandlergenError(
            f"{version!r} is not a valid model version: it is part of URLs, so use letters, digits, '_', '-' and '.'; "
            f"'all' and a leading {_RESERVED_PREFIX!r} are reserved",
            hint="write a version such as '1.0'",
        )


def propose(name: str) -> str:
    """Return a valid model name similar to `name`."""
    near = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:_LONGEST_NAME]
    near = re.sub(r"\.mar$", "", near, flags=re.IGNORECASE)
    if near.startswith(_RESERVED_PREFIX):
        return f"model-{near}"
    return f"{near}-model" if near.lower() in ("all", "none") else near or "model"


def module_name_problem(name: str) -> str | None:
    """Return why a module or package with this name cannot be in an archive's root; None if it can."""
    if name in _OURS:
        return f"every archive has handlergen's own {name}"
    if name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return f"it would replace Python's own {name!r} in the worker, which searches the archive first"
    if name in _AT_START:
        return "Python would run it at the start of every worker, before TorchServe's own code"
    if name in WORKER_MODULES:
        return f"it would replace {name!r}, which TorchServe's own processes import"
    if not name.isidentifier() or keyword.iskeyword(name):
        return "Python cannot import this name"
    return None


def path_problem(path: str) -> str | None:
    """Return why a file cannot have this path in an archive; None if it can.

    Args:
        path: Relative, with `/` between its parts.
    """
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
        return "it is not a plain relative path"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "its name has control characters"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "its name is not valid text"
    if parts[0].upper() == MANIFEST_DIRECTORY:
        return f"{MANIFEST_DIRECTORY}/ is reserved for the archive's manifest"
    for part in parts[:-1]:
        # model_packaging_utils.directory_filter
        if part.startswith(".") or part in ("__pycache__", "__MACOSX"):
            return f"torch-model-archiver silently drops the directory {part!r}"
    return None


def clashes(paths: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of archive paths that cannot both exist, with the reason.

    Case is ignored, since the archive may be unpacked on a case-insensitive file system. A path that is both a file
    and a directory is a clash as well, and so are `NAME.py` and the package `NAME/`: Python imports only one of them.
    """
    files: dict[str, str] = {}
    directories: dict[str, str] = {}
    paths = list(paths)
    for path in paths:
        folded = path.casefold()
        if folded in files:
            reason = "is the name of two files" if files[folded] == path else "differ only in upper and lower case"
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
            yield path, directories[folded] + "/", "would be a file and a directory with the same name"
        package = path.removesuffix(".py") + "/__init__.py"
        if path.endswith(".py") and package in paths:
            reason = "are a module and a package with the same name: Python would import only the package"
            yield path, package, reason
