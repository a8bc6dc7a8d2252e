"""What a worker executes of an archive, and whether handlergen's own part of it is what handlergen packs.

A runtime of the installed version is compared with the installed files, one of another with the list of its release:
`runtimes/VERSION.sha256`, in the format that `sha256sum --check` reads in an unpacked archive.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from handlergen import __version__, runtime
from handlergen.archives.mar import Mar
from handlergen.errors import HandlergenError
from handlergen.project.names import (
    HANDLER_FILE,
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    RUNTIME_PACKAGE,
    module_name_problem,
)
from handlergen.runtime.contract import CONTRACT_FILE, Bundle

RELEASES = Path(__file__).with_name("runtimes")

Origin = Literal["handlergen", "changed", "unknown", "metadata", "user"]
"""Who wrote a file. `changed` and `unknown`: it is in a place of handlergen's; `metadata`: data about the model."""

_MOST_NAMED = 5
"""Maximum number of files that one message names."""

_IMPORTABLE = (".py", ".pyc", ".so", ".pyd")


@dataclass(frozen=True)
class Audit:
    """The comparison of an archive with what handlergen packs.

    Attributes:
        version: The version of handlergen that the archive names; None if another program wrote it.
        runtime: Who wrote its runtime: `handlergen` if every file is that version's, `changed`, or `unknown`.
        changed: What differs from an archive of that version, a line each.
        unverified: Why the runtime could not be compared; None if it was.
        origins: Who wrote each file, by its name in the archive.
    """

    version: str | None
    runtime: Origin
    changed: tuple[str, ...]
    unverified: str | None
    origins: Mapping[str, Origin]

    @property
    def outdated(self) -> str | None:
        """That the runtime is the unchanged one of another release than the installed one; None if it is not."""
        if self.runtime != "handlergen" or self.version == __version__:
            return None
        return f"its runtime is that of handlergen {self.version}; the installed one is of {__version__}"

    def refusal(self, archive: Path | str, *, hint: str | None = None) -> HandlergenError | None:
        """Return the error for an archive that is not known to be as handlergen packs it; None if it is."""
        lines = [*self.changed, *([self.unverified] if self.unverified else [])]
        if not lines:
            return None
        what = f"is not as handlergen {self.version} packs it" if self.changed else "cannot be verified"
        return HandlergenError("\n  ".join([f"{archive} {what}:", *lines]), hint=hint)


def audit(archive: Mar) -> Audit:
    """Compare an archive with what the version of handlergen that it names packs.

    Compared are the runtime, the generated handler, the handler that the manifest names, and the names of all other
    files: none may be imported in place of a module of Python, TorchServe or handlergen. The module, the contract and
    the settings are whatever the author wrote: only a signature protects them.
    """
    bundle = archive.bundle
    origins: dict[str, Origin] = {file.name: "user" for file in archive.files}
    origins[MANIFEST_FILE] = "metadata"
    if bundle is None:
        why = "it was not made by handlergen, so that there is nothing to compare it with"
        return Audit(None, "user", (), why, origins)
    version = bundle.handlergen
    expected = runtime_of(version)
    packed = {file.name: file.sha256 for file in archive.files if file.name.startswith(f"{RUNTIME_PACKAGE}/")}
    wrong: Origin = "unknown" if expected is None else "changed"
    origins |= {
        name: "handlergen" if (expected or {}).get(name) == sha256 else wrong for name, sha256 in packed.items()
    }
    origins |= {CONTRACT_FILE: "metadata", MODEL_CONFIG_FILE: "metadata"}
    generated = _is_generated(archive.handler, bundle)
    origins[HANDLER_FILE] = "handlergen" if generated else wrong
    changed = [*_manifest_problems(archive), *_shadows(archive)]
    if expected is None:
        unverified = f"its runtime is of handlergen {version}, which handlergen {__version__} does not know"
        return Audit(version, "unknown", tuple(changed), f"{unverified}: it was not compared", origins)
    if not generated:
        what = f"is not what handlergen {version} generates for {CONTRACT_FILE}" if archive.handler else "is missing"
        changed.insert(0, f"{HANDLER_FILE} {what}")
    differences = list(_differences(packed, expected))
    if differences:
        more = len(differences) - _MOST_NAMED
        named = ", ".join(differences[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        changed.insert(0, f"its runtime is not that of handlergen {version}: {named}")
    return Audit(version, "changed" if differences else "handlergen", tuple(changed), None, origins)


def runtime_files() -> dict[str, Path]:
    """Return the installed files of the runtime by their names in an archive, sorted."""
    directory = Path(runtime.__file__).parent
    places = sorted((path.relative_to(directory).as_posix(), path) for path in directory.rglob("*.py"))
    return {
        f"{RUNTIME_PACKAGE}/{place}": path
        for place, path in places
        if not any(part.startswith(".") or part == "__pycache__" for part in place.split("/"))
    }


def runtime_of(version: str) -> Mapping[str, str] | None:
    """Return the SHA-256 of each file of a version's runtime, by its name in an archive; None if it is unknown."""
    if version == __version__:
        return _installed()
    try:
        lines = (RELEASES / f"{version}.sha256").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def release_list() -> str:
    """Return the text of the installed version's `runtimes/VERSION.sha256`."""
    return "".join(f"{digest}  {name}\n" for name, digest in _installed().items())


@cache
def _installed() -> Mapping[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in runtime_files().items()}


def _differences(packed: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(packed.keys() | expected.keys()):
        if name not in expected:
            yield f"{_shown(name)} is added"
        elif name not in packed:
            yield f"{name} is missing"
        elif packed[name] != expected[name]:
            yield f"{name} is changed"


def _manifest_problems(archive: Mar) -> Iterator[str]:
    """Yield what makes TorchServe run something else than the generated handler with the server's Python."""
    handler = archive.manifest.get("model", {}).get("handler")
    if handler != HANDLER_FILE:
        yield f"its manifest names the handler {handler!a:.100}: TorchServe runs that instead of {HANDLER_FILE}"
    kind = archive.manifest.get("runtime", "python")
    if kind != "python":
        yield f"its manifest names the runtime {kind!a:.100} instead of python"


def _shadows(archive: Mar) -> Iterator[str]:
    """Yield the files that Python would import, or run, in place of what they are named after."""
    for file in archive.files:
        top, _, rest = file.name.partition("/")
        if "__pycache__" in file.name.split("/"):
            yield f"{_shown(file.name)} is cached bytecode: Python can run it in place of the source"
        if (top == RUNTIME_PACKAGE and rest) or file.name == HANDLER_FILE:
            continue
        base = rest or top
        stem = base.removesuffix(".py") if base.endswith(".py") else base.partition(".")[0]
        if not base.endswith(_IMPORTABLE) or (rest and stem != "__init__"):
            continue
        module = top if rest else stem
        if module.isidentifier() and (problem := module_name_problem(module)) is not None:
            yield f"{_shown(file.name)}: {problem}"


def _shown(name: str) -> str:
    """Return an untrusted name without what a terminal would obey."""
    return name if name.isprintable() else ascii(name)


def _is_generated(handler: str, bundle: Bundle) -> bool:
    """Return whether a handler is the generated one; of another version's, only the code is compared."""
    from handlergen.archives.render import render_handler

    expected = render_handler(bundle.contract, bundle.settings, version=bundle.handlergen)
    return handler == expected or (bundle.handlergen != __version__ and _code(handler) == _code(expected))


def _code(source: str) -> str | None:
    """Return a dump of a module's code without docstrings and comments; None if it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)
