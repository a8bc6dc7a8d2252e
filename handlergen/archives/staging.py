"""The plan of an archive: an explicit list of its files, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handlergen import __version__
from handlergen.archives.audit import runtime_files
from handlergen.archives.collecting import Collector
from handlergen.archives.model_config import model_config
from handlergen.archives.render import render_handler
from handlergen.archives.requirements import CONSTRAINTS_FILE, Requirements
from handlergen.errors import HandlergenError
from handlergen.project.examples import examples_of_project
from handlergen.project.names import (
    HANDLER_FILE,
    MODEL_CONFIG_FILE,
    MODEL_STORE,
    REQUIREMENTS_FILE,
    check_model_name,
    check_version,
    clashes,
    module_name_problem,
    path_problem,
)
from handlergen.project.settings import shown, to_runtime
from handlergen.runtime.contract import CONTRACT_FILE, Bundle
from handlergen.runtime.examples import to_files

if TYPE_CHECKING:
    from handlergen.inspection.project import Project


@dataclass(frozen=True)
class StagedFile:
    """One file of an archive.

    Attributes:
        archive_path: Its path in the archive, with `/` between the parts.
        origin: The file to copy, or the content of a file that handlergen generates.
    """

    archive_path: str
    origin: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.origin) if isinstance(self.origin, bytes) else self.origin.stat().st_size


@dataclass(frozen=True)
class Plan:
    """The planned contents of an archive.

    Attributes:
        files: Sorted by archive path; without the manifest, which torch-model-archiver writes.
        bundle: The content of `handlergen.json`.
        warnings: Files that are left out or moved, or may fail on the server.
    """

    files: tuple[StagedFile, ...]
    bundle: Bundle
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return sum(file.size for file in self.files)


def make_plan(project: Project, *, gpus: int = 0, model_store: Path = Path(MODEL_STORE)) -> Plan:
    """Collect and check the files of a project's archive; nothing is written.

    In the archive's root are the user's module or package under its import name, `packages` under their own names, and
    handlergen's files: the handler, its runtime, `handlergen.json`, `model-config.yaml` and `requirements.txt`. What
    the module imports (`Project.uses`), extra files and weights keep their path relative to the project; those outside
    the project go into the root. Hidden files, caches and compiled files inside a directory are left out, and so are
    the archives of a model store.

    Args:
        project: The opened project.
        gpus: See `worker_layout`.
        model_store: The directory that the archive is written to; the archives in it are not packed.

    Raises:
        HandlergenError: An invalid name, a missing file, two files with one name, a link that leads out of the project,
            a module that would shadow another. The message lists all problems.
    """
    settings = project.settings
    check_model_name(settings.name)
    check_version(settings.version)
    collector = Collector(project.root, model_store, follow_links=settings.follow_links)
    _collect_source(project, collector)
    for entry in settings.packages:
        _collect_package(entry, collector)
    for entry in settings.extra_files:
        collector.add_named(entry, "extra_files", patterns=True)
    if settings.weights:
        collector.add_named(settings.weights, "weights")
    for entry in project.contract.details.get("files", ()):  # the models of a flow
        collector.add_named(entry, project.contract.form)
    for path in project.uses:
        add = collector.add_tree if path.is_dir() else collector.add_file
        add(path, path.relative_to(project.base).as_posix())
    required = _requirements(project, collector)
    requirements = required.text()
    constraints = "".join(f"{line}\n" for line in required.constraints).encode()
    bundle = make_bundle(project)
    config = model_config(settings, gpus=gpus, has_requirements=bool(requirements))
    examples = examples_of_project(project.root, settings.examples)
    files = [
        *(StagedFile(place, origin) for place, origin in collector.files.items()),
        StagedFile(HANDLER_FILE, render_handler(project.contract, settings, version=__version__).encode()),
        StagedFile(CONTRACT_FILE, bundle.to_json().encode()),
        StagedFile(MODEL_CONFIG_FILE, config.encode()),
        *([StagedFile(REQUIREMENTS_FILE, requirements)] if requirements else []),
        *([StagedFile(CONSTRAINTS_FILE, constraints)] if constraints else []),
        *(StagedFile(place, path) for place, path in runtime_files().items()),
        *(StagedFile(place, body) for place, body in to_files(examples).items()),
    ]
    problems = [*collector.problems, *_name_problems(files, collector)]
    if problems:
        several = "\n  ".join(["cannot pack:", *problems])
        raise HandlergenError(problems[0] if len(problems) == 1 else several)
    files.sort(key=lambda file: file.archive_path)
    warnings = [
        *collector.warnings,
        *required.warnings,
        *collector.archives_left_out(),
        *project.missing,
        *_foreign_names(files),
    ]
    return Plan(tuple(files), bundle, tuple(warnings))


def make_bundle(project: Project) -> Bundle:
    """Return the content of `handlergen.json`."""
    return Bundle(__version__, project.contract, to_runtime(project.settings))


def _collect_source(project: Project, collector: Collector) -> None:
    """Collect the user's module as `NAME.py`, or the package as `NAME/`, in the archive's root."""
    place = project.contract.module.replace(".", "/")
    top = place.split("/")[0]
    if project.is_package:
        collector.add_tree(project.source, top)
    else:
        collector.add_file(project.source, f"{place}.py")
    collector.check_inside(project.source)
    collector.modules[top] = project.source.name


def _collect_package(entry: str, collector: Collector) -> None:
    """Collect a directory or `.py` file that is importable under its own name."""
    path = collector.locate(entry, "packages")
    if path is None:
        return
    if path.is_dir() or path.suffix == ".py":
        collector.modules[path.name if path.is_dir() else path.stem] = f"packages: {entry}"
        (collector.add_tree if path.is_dir() else collector.add_file)(path, path.name)
    else:
        collector.problems.append(f"packages: {entry} is neither a directory nor a .py file")


def _requirements(project: Project, collector: Collector) -> Requirements:
    """Read the requirements: the lines of requirements files (`*.txt`), and single ones."""
    found = Requirements()
    for entry in project.settings.requirements:
        if not entry.endswith(".txt"):
            found.add(entry, "requirements")
            continue
        path = collector.locate(entry, "requirements")
        if path is None or not path.is_file():
            continue
        # The file may be listed under extra_files too, or be in a listed directory.
        if collector.files.get(REQUIREMENTS_FILE) == path:
            del collector.files[REQUIREMENTS_FILE]
        found.add_file(path)
    collector.problems += found.problems
    return found


def _name_problems(files: list[StagedFile], collector: Collector) -> list[str]:
    """Return the problems of the names of the archive's files."""
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
        # An extra .py file whose name is not an identifier is never imported, so that it shadows nothing.
        if (problem := module_name_problem(name)) is not None and (name in collector.modules or name.isidentifier()):
            problems.append(f"{origin} cannot be packed as the module {name!r}: {problem}; rename it")
    for first, second, reason in clashes(file.archive_path for file in files):
        names = list(dict.fromkeys((first, second)))
        origins = ", ".join(_origin(place, files) for place in names)
        problems.append(f"{' and '.join(names)} {reason} in the archive: {origins}")
    return problems


def _foreign_names(files: list[StagedFile]) -> list[str]:
    """Warn of file names that Java may be unable to unpack (tried with Java 17 and LC_ALL=C)."""
    foreign = [file.archive_path for file in files if not file.archive_path.isascii()]
    more = f"; {len(foreign) - 1} more have such names" if len(foreign) > 1 else ""
    return [
        f"{place} has non-ASCII letters in its name: TorchServe can unpack it only if the locale is UTF-8 "
        f"(LC_ALL=C.UTF-8){more}"
        for place in foreign[:1]
    ]


def _origin(place: str, files: list[StagedFile]) -> str:
    """Return the origins of the files with an archive path, for messages."""
    found = [file.origin for file in files if file.archive_path == place or file.archive_path.startswith(place)]
    texts = [shown(origin) if isinstance(origin, Path) else "handlergen's own" for origin in found[:2]]
    return " and ".join(dict.fromkeys(texts))
