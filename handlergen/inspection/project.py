"""Projects: from a SOURCE on the command line to source, settings and contract, all checked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from handlergen.errors import ContractError, HandlergenError, Problem
from handlergen.inspection.findings import Findings
from handlergen.inspection.forms import FORMS as FORM_INSPECTORS
from handlergen.inspection.reading import read_source
from handlergen.inspection.stage_rule import Placement, place
from handlergen.inspection.thread_bound import thread_warnings
from handlergen.project.contradictions import contradictions
from handlergen.project.names import check_model_name, module_name_problem
from handlergen.project.settings import AUTO_FILES, SETTINGS, SETTINGS_FILE, Settings, read_settings, shown
from handlergen.project.truss import CONFIG_FILE, Truss, is_truss
from handlergen.project.weights_file import weights_format
from handlergen.project.yaml_source import read_yaml
from handlergen.runtime.contract import Contract
from handlergen.runtime.forms.table import FORMS

_DEFAULT_SOURCE = "model.py"
_NOT_A_SOURCE = ("conftest.py", "setup.py", "__init__.py")


@dataclass(frozen=True)
class Project:
    """A source that is ready to be packed or run.

    Attributes:
        root: Absolute directory that paths in `settings` are relative to; paths outside it are absolute.
        source: Absolute path of the `.py` file or the package directory.
        is_package: Whether `source` is a directory.
        settings: Resolved: `name`, `form`, `batch`, `predictor`, `stages` and `weights_format` are filled in.
        contract: The hooks that inspection found.
        placement: Where the stages run, and why.
        warnings: What looks wrong but is allowed.
        uses: Files and directories that the source imports from, to be packed in their place relative to `base`.
        missing: Warnings of data files that the source names, which an archive would not contain.
    """

    root: Path
    source: Path
    is_package: bool
    settings: Settings
    contract: Contract
    placement: Placement
    warnings: tuple[str, ...] = ()
    uses: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def base(self) -> Path:
        """The directory that becomes the archive's root for what the source imports."""
        return self.root if "." in self.contract.module else self.source.parent


@dataclass(frozen=True)
class _Location:
    """The source that SOURCE means, its settings file, and the default for the model's name."""

    source: Path
    root: Path
    settings_file: Path | None
    default_name: str
    warnings: tuple[str, ...] = ()
    truss: Truss | None = None


def open_project(
    source: Path | str, *, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Project:
    """Read a project: its settings, then its source. The user's code is not imported.

    A directory with `handlergen.yaml` is read with it; its `source:` names the file or package, by default the
    only `.py` file, else `model.py`, or the directory itself when it is a package. A `.py` file or a package
    named directly uses the `handlergen.yaml` beside it only if that file's source is this one. Paths in the
    file are relative to it. Paths in `overrides` are relative to the project, or, if they do not exist there, to the
    current directory. A Truss directory's `config.yaml` sets settings too; `handlergen.yaml` beside it overrides them.

    Args:
        source: A `.py` file, a package directory, a directory with `handlergen.yaml`, or a Truss directory.
        overrides: Settings that override file and environment; None values are skipped.
        environ: The environment; `os.environ` if None.

    Raises:
        HandlergenError: SOURCE is none of these.
        ContractError: With every problem of the settings and the source.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    chosen = given.pop("source", None) or environ.get("HANDLERGEN_SOURCE")
    where = _find(absolute(Path(source)), chosen)
    defaults = where.truss.as_defaults() if where.truss else None
    settings, problems = read_settings(where.settings_file, environ=environ, overrides=given, defaults=defaults)
    settings = _with_paths(settings, where, set(given))
    if not settings.name:
        settings = dataclasses.replace(settings, name=where.default_name)
        try:
            check_model_name(where.default_name)
        except HandlergenError as error:
            problems.append(Problem(shown(where.source), 0, error.message, f"To set one, {error.hint}."))
    problems += _file_problems(where, settings, set(given))
    findings = read_source(where.source, settings=settings, root=where.root, truss=where.truss)
    problems += findings.problems
    if problems or findings.contract is None:
        raise ContractError(sorted(dict.fromkeys(problems)))
    return _resolved(where, settings, findings, findings.contract)


def recognised_sources(directory: Path) -> list[Path]:
    """Return the directory if it is a package, else its modules and packages, as far as they look like a source.

    A form is recognised in them, or they have a hook beside a predict that may be in the weights.
    """
    packages = sorted(path.parent for path in directory.glob("[!.]*/__init__.py"))
    found = []
    for path in [directory] if (directory / "__init__.py").is_file() else [*_modules(directory), *packages]:
        source = read_source(path, settings=Settings(), root=path.parent).source
        if source is None:
            continue
        if source.module.bindings.keys() & {"preprocess", "postprocess"} or any(
            form.recognise(source) for form in FORM_INSPECTORS
        ):
            found.append(path)
    return found


def _modules(directory: Path) -> list[Path]:
    """Return the `.py` files of a directory that may be a source."""
    return sorted(path for path in directory.glob("*.py") if path.name not in _NOT_A_SOURCE)


def _resolved(where: _Location, settings: Settings, findings: Findings, contract: Contract) -> Project:
    weights = where.root / settings.weights if settings.weights else None
    assert findings.source is not None  # there is a contract
    placed = place(findings.source, contract, settings)
    if placed.problems:
        raise ContractError(sorted(placed.problems))
    settings = dataclasses.replace(
        settings,
        form=contract.form,
        extra_files=findings.source.settings.extra_files,
        predictor=placed.predictor,
        stages=placed.stages,
        batch=FORMS[contract.form].batch if settings.batch == "auto" else settings.batch,
        weights_format=settings.weights_format or (weights_format(weights) if weights else None),
    )
    device_bytes = psutil.virtual_memory().total if settings.devices == "cpu" else None
    weights_bytes = weights.stat().st_size if weights else None
    odd = contradictions(settings, weights_bytes=weights_bytes, device_bytes=device_bytes)
    bound = thread_warnings(findings.source, contract)
    warnings = tuple(dict.fromkeys((*where.warnings, *findings.warnings, *placed.warnings, *bound, *odd)))
    return Project(
        where.root,
        where.source,
        where.source.is_dir(),
        settings,
        contract,
        placed,
        warnings,
        findings.uses,
        findings.missing,
    )


def _find(path: Path, chosen: str | None) -> _Location:
    """Find the source that SOURCE (an absolute path) means; `chosen` is the `source` of a flag or the environment."""
    if not path.exists():
        hint = "Name a .py file, a package directory, or a directory with handlergen.yaml."
        raise HandlergenError(f"{shown(path)} does not exist", hint=hint)
    if path.is_file():
        if path.name == SETTINGS_FILE or (path.name == CONFIG_FILE and is_truss(path.parent)):
            return _find(path.parent, chosen)
        if path.suffix == ".mar":
            raise HandlergenError(f"{shown(path)} is already an archive", hint="Show it with: handlergen inspect")
        if path.suffix != ".py":
            raise HandlergenError(f"{shown(path)} is not a .py file", hint="Name the module that has predict.")
        return _beside(path)
    settings_file = path / SETTINGS_FILE
    named = chosen or (_source_setting(settings_file) if settings_file.is_file() else None)
    used = settings_file if settings_file.is_file() else None
    if not named and is_truss(path):
        truss = Truss(path)
        return _Location(truss.package or truss.module, path, used, path.name, tuple(truss.warnings), truss)
    if used:
        target = _source_of(path, named)
        return _Location(target, path.parent if target == path else path, used, path.name)
    if (path / "__init__.py").is_file():
        return _beside(path)
    if chosen:
        return _Location(_source_of(path, chosen), path, None, path.name)
    candidates = [shown(file) for file in _modules(path)]
    hint = f"Name the module: {' or '.join(candidates[:3])}" if candidates else "Start with: handlergen init DIR"
    raise HandlergenError(f"{shown(path)} has neither {SETTINGS_FILE} nor __init__.py", hint=hint)


def _beside(path: Path) -> _Location:
    """Locate a file or package that is named directly; `handlergen.yaml` beside it counts only if it names it."""
    settings_file = path.parent / SETTINGS_FILE
    default_name = path.stem if path.is_file() else path.name
    plain = _Location(path, path.parent, None, default_name)
    if not settings_file.is_file():
        return plain
    try:
        target = _source_of(path.parent, _source_setting(settings_file))
    except HandlergenError:
        target = None
    if target == path:
        return dataclasses.replace(plain, settings_file=settings_file)
    why = f"its source is {shown(target)}" if target else f"it does not name {path.name} as its source"
    return dataclasses.replace(plain, warnings=(f"{shown(settings_file)} is not used for {shown(path)}: {why}",))


def _source_setting(settings_file: Path) -> str | None:
    value = read_yaml(settings_file, shown=shown(settings_file)).values.get("source")
    return value if isinstance(value, str) and value.strip() else None


def _source_of(directory: Path, named: str | None) -> Path:
    """Return the source of a directory with settings."""
    if named:
        path = absolute(directory / named)
        if not path.exists():
            hint = f"handlergen looks for it in {shown(directory)}."
            raise HandlergenError(f"source: {named} does not exist", hint=hint)
        if path.is_file() and path.suffix != ".py":
            raise HandlergenError(f"source: {named} is not a .py file", hint="Name the module that has predict.")
        if path.is_dir() and not (path / "__init__.py").is_file():
            raise HandlergenError(f"source: {named} is not a package", hint=f"Add {named}/__init__.py.")
        return path
    if (directory / "__init__.py").is_file():
        return directory
    candidates = [path for path in _modules(directory) if not path.name.startswith("test_")]
    if len(candidates) == 1:
        return candidates[0]
    if (directory / _DEFAULT_SOURCE).is_file():
        return directory / _DEFAULT_SOURCE
    if not candidates:
        hint = "Write model.py, or name it: `source:` in handlergen.yaml."
        raise HandlergenError(f"{shown(directory)} has no .py file", hint=hint)
    names = ", ".join(path.name for path in candidates)
    hint = f"Name the one that has predict: `source: {candidates[0].name}` in handlergen.yaml."
    raise HandlergenError(f"{shown(directory)} has several .py files: {names}", hint=hint)


def _with_paths(settings: Settings, where: _Location, given: set[str]) -> Settings:
    """Make every path of the settings relative to the root, or absolute if it is outside."""
    base = where.settings_file.parent if where.settings_file else where.root

    def one(entry: str, *, flag: bool) -> str:
        path = absolute(base / entry)
        if flag and not path.exists() and absolute(Path(entry)).exists():
            path = absolute(Path(entry))
        return path.relative_to(where.root).as_posix() if path.is_relative_to(where.root) else str(path)

    changes: dict[str, Any] = {"source": one(str(where.source), flag=False)}
    if settings.weights:
        changes["weights"] = one(settings.weights, flag="weights" in given)
    for key in ("extra_files", "packages"):
        changes[key] = tuple(
            entry if key == "extra_files" and entry == AUTO_FILES else one(entry, flag=key in given)
            for entry in getattr(settings, key)
        )
    changes["requirements"] = tuple(
        one(entry, flag="requirements" in given) if entry.endswith(".txt") else entry for entry in settings.requirements
    )
    return dataclasses.replace(settings, **changes)


def _file_problems(where: _Location, settings: Settings, given: set[str]) -> list[Problem]:
    problems = []
    module = where.source.name if where.source.is_dir() else where.source.stem
    reason = module_name_problem(module)
    if reason:
        what = f"the module cannot be named {module!r}: {reason}"
        problems.append(Problem(shown(where.source), 0, what, "Rename it."))
    if settings.weights and not (where.root / settings.weights).is_file():
        path = where.root / settings.weights
        what = "this is a directory" if path.is_dir() else "there is no such file"
        file, line = f"option {SETTINGS['weights'].flag}", 0
        if where.settings_file and "weights" not in given:
            file = shown(where.settings_file)
            line = read_yaml(where.settings_file, shown=file).lines.get("weights", 0)
        problems.append(Problem(file, line, f"the weights {shown(path)}: {what}", "Name the weights file."))
    return problems


def absolute(path: Path) -> Path:
    """Return the absolute path without `..`; links are not followed, because the path counts that the user wrote."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links and change names
