"""What goes into an archive: an explicit list of files, checked before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handlergen import __version__, runtime
from handlergen.archives.collecting import Collector, named_but_not_packed
from handlergen.archives.model_config import model_config
from handlergen.archives.render import render_handler
from handlergen.errors import HandlergenError
from handlergen.project.names import (
    HANDLER_FILE,
    MODEL_CONFIG_FILE,
    MODEL_STORE,
    REQUIREMENTS_FILE,
    RUNTIME_PACKAGE,
    check_model_name,
    check_version,
    clashes,
    module_name_problem,
    path_problem,
)
from handlergen.project.settings import shown, to_runtime
from handlergen.runtime.contract import CONTRACT_FILE, Bundle

if TYPE_CHECKING:
    from handlergen.inspection.project import Project

_FILE_REQUIREMENT = re.compile(r"\s*(-[rce]\b|--(requirement|constraint|editable)\b|\.{1,2}/|/|file:)")
"""Lines of a requirements file that point at a file or directory (pip's Requirements File Format)."""


@dataclass(frozen=True)
class StagedFile:
    """One file of an archive.

    Attributes:
        archive_path: Its place in the archive, `/` between the parts.
        origin: The file it is copied from, or its bytes when handlergen writes it.
    """

    archive_path: str
    origin: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.origin) if isinstance(self.origin, bytes) else self.origin.stat().st_size


@dataclass(frozen=True)
class Plan:
    """Everything an archive will hold.

    Attributes:
        files: By archive path; the manifest, which torch-model-archiver writes, is not among them.
        bundle: What `handlergen.json` says.
        warnings: What was left out or moved, and what the user should know of it.
    """

    files: tuple[StagedFile, ...]
    bundle: Bundle
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


def plan(project: Project, *, gpus: int = 0) -> list[StagedFile]:
    """The files of `project`'s archive; `make_plan` tells the rest."""
    return list(make_plan(project, gpus=gpus).files)


def make_plan(project: Project, *, gpus: int = 0, model_store: Path = Path(MODEL_STORE)) -> Plan:
    """Everything that goes into the archive of `project`, checked; nothing is written.

    Layout: the user's module or package in the root under its import name, `packages` in the root under their
    own names, extra files and weights at their place relative to the project (those from outside it under
    their bare names), and what handlergen adds: the handler, its runtime, `handlergen.json`,
    `model-config.yaml` and `requirements.txt`. Hidden files, caches and compiled files inside a directory
    are left out, and so are the archives of a model store.

    Args:
        project: The opened project.
        gpus: GPUs visible where the archive is made; matters only for `devices: auto`.
        model_store: Where the archive is to go; what lies there already is not packed into it.

    Raises:
        HandlergenError: A bad name, a missing file, two files of one name, a link that leads out of the
        project, a
            module that would shadow another. Names everything found, not just the first.
    """
    settings = project.settings
    check_model_name(settings.name)
    check_version(settings.version)
    collector = Collector(project.root, model_store)
    _collect_source(project, collector)
    for entry in settings.packages:
        _collect_package(entry, collector)
    for entry in settings.extra_files:
        collector.add_named(entry, "extra_files", patterns=True)
    if settings.weights:
        collector.add_named(settings.weights, "weights")
    for entry in project.contract.details.get("files", ()):  # what the source itself names: a flow's models
        collector.add_named(entry, project.contract.form)
    requirements = _requirements(project, collector)
    bundle = make_bundle(project)
    generated: list[tuple[str, bytes]] = [
        (HANDLER_FILE, render_handler(project.contract, settings, version=__version__).encode()),
        (CONTRACT_FILE, bundle.to_json().encode()),
        (MODEL_CONFIG_FILE, model_config(settings, gpus=gpus, has_requirements=bool(requirements)).encode()),
    ]
    if requirements:
        generated.append((REQUIREMENTS_FILE, requirements))
    files = [StagedFile(place, origin) for place, origin in collector.files.items()]
    files += [StagedFile(place, text) for place, text in generated]
    files += _runtime_files()
    problems = [*collector.problems, *_name_problems(files, collector)]
    if problems:
        raise HandlergenError(
            problems[0] if len(problems) == 1 else "\n".join(["cannot pack:", *_indented(problems)])
        )
    files.sort(key=lambda file: file.archive_path)
    forgotten = named_but_not_packed(collector.files, project.root)
    return Plan(
        tuple(files),
        bundle,
        (*collector.warnings, *collector.archives_left_out(), *forgotten, *_foreign_names(files)),
    )


def make_bundle(project: Project) -> Bundle:
    """What `handlergen.json` says of `project`."""
    settings = to_runtime(project.settings)
    return Bundle(handlergen=__version__, contract=project.contract, settings=settings)


def _collect_source(project: Project, collector: Collector) -> None:
    """The user's module at `NAME.py`, or the package at `NAME/`, in the archive's root."""
    place = project.contract.module.replace(".", "/")
    if project.is_package:
        place = place.split("/")[0]
        collector.add_tree(project.source, place)
    else:
        collector.add_file(project.source, f"{place}.py")
    collector.check_inside(project.source)
    collector.modules[place.split("/")[0]] = str(project.source.name)


def _collect_package(entry: str, collector: Collector) -> None:
    """A directory or `.py` file that becomes importable under its own name."""
    path = collector.locate(entry, "packages")
    if path is None:
        return
    if path.is_dir():
        collector.modules[path.name] = f"packages: {entry}"
        collector.add_tree(path, path.name)
    elif path.suffix == ".py":
        collector.modules[path.stem] = f"packages: {entry}"
        collector.add_file(path, path.name)
    else:
        collector.problems.append(f"packages: {entry} is neither a directory nor a .py file")


def _requirements(project: Project, collector: Collector) -> bytes | None:
    """The text of `requirements.txt`: requirements files (`*.txt`) as they are, other entries a line each."""
    parts = []
    for entry in project.settings.requirements:
        if not entry.endswith(".txt"):
            parts.append(f"{entry}\n".encode())
            continue
        path = collector.locate(entry, "requirements")
        if path is None or not path.is_file():
            continue
        # The same file may be listed under extra_files too, or lie in a listed directory: it is one and the
        # same.
        if collector.files.get(REQUIREMENTS_FILE) == path:
            del collector.files[REQUIREMENTS_FILE]
        text = path.read_bytes()
        parts.append(text if not text or text.endswith(b"\n") else text + b"\n")
    text = b"".join(parts)
    for line in text.decode(errors="replace").splitlines():
        if _FILE_REQUIREMENT.match(line):
            collector.problems.append(
                f"requirements: {line.strip()!r} names another file, which TorchServe's pip would not find; "
                "write what that file says, or bundle a package with `packages`"
            )
    return text if text.strip() else None


def _runtime_files() -> list[StagedFile]:
    """handlergen's runtime, every `.py` of it, as the package `handlergen_runtime`."""
    directory = Path(runtime.__file__).parent
    return [
        StagedFile(f"{RUNTIME_PACKAGE}/{path.relative_to(directory).as_posix()}", path)
        for path in sorted(directory.rglob("*.py"))
        if not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(directory).parts
        )
    ]


def _name_problems(files: list[StagedFile], collector: Collector) -> list[str]:
    """Everything wrong with the names of the archive's files, as lines of an error message."""
    problems = []
    importable = dict(collector.modules)
    for place in collector.files:
        if (problem := path_problem(place)) is not None:
            problems.append(f"{place!r} cannot be packed: {problem}")
        top, _, rest = place.partition("/")
        if not rest and top.endswith(".py"):
            importable.setdefault(top.removesuffix(".py"), top)
        elif rest == "__init__.py":
            importable.setdefault(top, f"{top}/")
    for name, origin in importable.items():
        # An extra .py file that is no identifier is never imported: only what can be imported can shadow.
        if (problem := module_name_problem(name)) is not None and (
            name in collector.modules or name.isidentifier()
        ):
            problems.append(f"{origin} cannot be packed as the module {name!r}: {problem}; rename it")
    for first, second, reason in clashes(file.archive_path for file in files):
        names = list(dict.fromkeys((first, second)))
        origins = ", ".join(_origin(place, files) for place in names)
        problems.append(f"{' and '.join(names)} {reason} in the archive: {origins}")
    return problems


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _foreign_names(files: list[StagedFile]) -> list[str]:
    """A warning when Java may be unable to unpack a file; tried with Java 17 under LC_ALL=C."""
    foreign = [file.archive_path for file in files if not file.archive_path.isascii()]
    if not foreign:
        return []
    return [
        f"{foreign[0]} has letters outside ASCII in its name: TorchServe can unpack it only where the locale is UTF-8 "
        "(LC_ALL=C.UTF-8)" + (f"; so have {len(foreign) - 1} more" if len(foreign) > 1 else "")
    ]


def _origin(place: str, files: list[StagedFile]) -> str:
    """Where the files of one archive path come from, for an error message."""
    found = [
        file.origin for file in files if file.archive_path == place or file.archive_path.startswith(place)
    ]
    texts = [shown(origin) if isinstance(origin, Path) else "handlergen's own" for origin in found[:2]]
    return " and ".join(dict.fromkeys(texts))
