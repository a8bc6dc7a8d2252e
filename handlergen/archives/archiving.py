"""A project to `NAME.mar` in the model store, through torch-model-archiver, reproducible byte for byte."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.archives.model_config import gpus_for, placement
from handlergen.archives.packing import Progress, manifest, publish
from handlergen.archives.signing import Signature, read_private_key, signature_path
from handlergen.archives.signing import sign as sign_archive
from handlergen.archives.staging import StagedFile, make_plan
from handlergen.errors import HandlergenError
from handlergen.inspection.project import Project, open_project
from handlergen.inspection.stage_rule import Placement
from handlergen.project.names import MODEL_STORE
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract


@dataclass(frozen=True)
class ArchiveResult:
    """An archive that was written.

    Attributes:
        path: The `.mar` file.
        size: Its bytes.
        sha256: Of the whole file, in hexadecimal.
        files: What it holds besides the manifest, by archive path.
        contract: What was found in the module.
        settings: As they were resolved.
        placement: Where the stages of a request run, and why.
        workers: Workers that TorchServe starts.
        device_type: `cpu`, `gpu`, or None for whatever the server has.
        device_ids: GPUs the workers take in turn, or None for TorchServe's own order.
        warnings: What the user should know.
        signature: What it was signed with, if it was.
    """

    path: Path
    size: int
    sha256: str
    files: tuple[StagedFile, ...]
    contract: Contract
    settings: Settings
    placement: Placement
    workers: int
    device_type: str | None
    device_ids: tuple[int, ...] | None
    warnings: tuple[str, ...]
    signature: Signature | None = None


def archive(
    source: Path | str,
    *,
    model_store: Path | str = MODEL_STORE,
    force: bool = False,
    verify: bool = False,
    sign: Path | str | None = None,
    progress: Progress | None = None,
    environ: Mapping[str, str] | None = None,
    count_gpus: Callable[[], int] | None = None,
    **overrides: Any,
) -> ArchiveResult:
    """Write `source` to `MODEL_STORE/NAME.mar`.

    The file appears complete or not at all; nothing else in the model store or the temp directory is touched.

    Args:
        source: A `.py` file, a package directory, or a directory with handlergen.yaml.
        model_store: Directory of the archives; made when it is missing.
        force: Replace an archive of that name.
        verify: Read the written archive back before it gets its name: every file's CRC-32, its SHA-256 against that
            of its origin, and the normal form.
        sign: An Ed25519 private key (see `handlergen.archives.signing`): write the archive's signature beside it.
        progress: Called now and then while contents are written.
        environ: Environment variables for settings (`HANDLERGEN_*`); the process's own when None.
        count_gpus: How many GPUs this machine offers, for `devices: auto`; `visible_gpus` when None.
        overrides: Settings that win over file and environment.

    Raises:
        ContractError: The module does not meet the contract.
        HandlergenError: Anything else that stops it; says what.
    """
    project = open_project(source, overrides=overrides, environ=environ)
    return archive_project(
        project,
        model_store=model_store,
        force=force,
        verify=verify,
        sign=sign,
        progress=progress,
        count_gpus=count_gpus,
    )


def archive_project(
    project: Project,
    *,
    model_store: Path | str = MODEL_STORE,
    force: bool = False,
    verify: bool = False,
    sign: Path | str | None = None,
    progress: Progress | None = None,
    count_gpus: Callable[[], int] | None = None,
) -> ArchiveResult:
    """`archive` for a project that is already open."""
    target = target_path(project, model_store, force=force)
    key = read_private_key(sign) if sign is not None else None
    stale = key is None and signature_path(target).exists()
    gpus = gpus_for(project.settings, count_gpus)
    plan = make_plan(project, gpus=gpus, model_store=Path(model_store))
    try:
        sha256 = publish(
            plan,
            target,
            manifest=manifest(plan, project.settings),
            deflated=project.settings.compression == "deflated",
            force=force,
            verify=verify,
            progress=progress,
        )
        signature = sign_archive(target, key, sha256=sha256) if key is not None else None
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        # Any of these is about this machine (disk full, no permission), not about the project.
        raise HandlergenError(f"{target} could not be written: {error}", hint=_advice(error)) from error
    place = placement(project.settings, gpus=gpus)
    warnings = (*project.warnings, *plan.warnings)
    if stale:
        warnings += (
            f"{signature_path(target)} was there before: it counts only if the archive is still the same, byte for "
            "byte; --sign writes it anew",
        )
    return ArchiveResult(
        path=target,
        size=target.stat().st_size,
        sha256=sha256,
        files=plan.files,
        contract=project.contract,
        settings=project.settings,
        placement=project.placement,
        workers=place.workers,
        device_type=place.device_type,
        device_ids=place.device_ids,
        warnings=warnings,
        signature=signature,
    )


def target_path(project: Project, model_store: Path | str, *, force: bool) -> Path:
    """Where the archive goes.

    Raises:
        HandlergenError: Something is there that must not be replaced.
    """
    store = Path(model_store)
    target = store / f"{project.settings.name}.mar"
    if store.exists() and not store.is_dir():
        raise HandlergenError(
            f"the model store {store} is not a directory", hint="choose another with --model-store"
        )
    if target.is_dir() and not target.is_symlink():
        raise HandlergenError(
            f"{target} is a directory, not an archive", hint="move it, or choose another --name"
        )
    if os.path.lexists(target) and not force:
        raise _exists(target)
    return target


def _exists(target: Path) -> HandlergenError:
    return HandlergenError(
        f"{target} exists already", hint="--force replaces it; --name gives the model another name"
    )


def _advice(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space there and in {tempfile.gettempdir()}, or set TMPDIR to another directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a directory that you may write to with --model-store"
    return None
