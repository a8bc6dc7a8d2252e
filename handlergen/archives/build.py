"""Build `NAME.mar` in the model store from a project, reproducible byte for byte."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.archives.model_config import gpus_for, worker_layout
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
        size: Its size in bytes.
        sha256: SHA-256 of the whole file, in hexadecimal.
        files: Its files, without the manifest.
        contract: The hooks that inspection found.
        settings: Resolved settings.
        placement: Where the stages of a request run, and why.
        workers: Number of workers that TorchServe starts.
        device_type: `cpu`, `gpu`, or None for whichever the server has.
        device_ids: GPUs that the workers are spread over, or None for TorchServe's own order.
        warnings: What looks wrong but is allowed.
        signature: The archive's signature, if it was signed.
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

    The archive appears complete or not at all. Nothing else in the model store and the temp directory is changed.

    Args:
        source: A `.py` file, a package directory, or a directory with handlergen.yaml.
        model_store: Directory of the archives; created if it does not exist.
        force: Replace an archive with that name.
        verify: Read the archive back before it gets its name: check every file's CRC-32, compare its SHA-256 with that
            of its origin, and check that the archive is reproducible.
        sign: File of an Ed25519 private key (see `handlergen.archives.signing`); the signature is written beside the
            archive.
        progress: Called now and then while contents are written.
        environ: Environment variables for settings (`HANDLERGEN_*`); those of this process if None.
        count_gpus: Counts this machine's GPUs, for `devices: auto`; `visible_gpus` if None.
        overrides: Settings that override file and environment.

    Raises:
        ContractError: The module does not meet the contract.
        HandlergenError: The archive cannot be written for any other reason.
    """
    return archive_project(
        open_project(source, overrides=overrides, environ=environ),
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
    file: str | None = None,
    force: bool = False,
    verify: bool = False,
    sign: Path | str | None = None,
    progress: Progress | None = None,
    count_gpus: Callable[[], int] | None = None,
) -> ArchiveResult:
    """Write the archive of an open project; see `archive`. `file` is its name in the model store, NAME.mar if None."""
    target = target_path(project, model_store, file=file, force=force)
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
    layout = worker_layout(project.settings, gpus=gpus)
    warnings = (*project.warnings, *plan.warnings)
    if stale:
        warnings += (
            f"{signature_path(target)} is older than the archive: it is valid only if the archive is still the same, "
            "byte for byte; --sign writes a new one",
        )
    return ArchiveResult(
        path=target,
        size=target.stat().st_size,
        sha256=sha256,
        files=plan.files,
        contract=project.contract,
        settings=project.settings,
        placement=project.placement,
        workers=layout.workers,
        device_type=layout.device_type,
        device_ids=layout.device_ids,
        warnings=warnings,
        signature=signature,
    )


def target_path(project: Project, model_store: Path | str, *, file: str | None = None, force: bool) -> Path:
    """Return the path of the archive.

    Raises:
        HandlergenError: There is something that must not be replaced.
    """
    store = Path(model_store)
    target = store / (file or f"{project.settings.name}.mar")
    if store.exists() and not store.is_dir():
        raise HandlergenError(f"the model store {store} is not a directory", hint="choose another with --model-store")
    if target.is_dir() and not target.is_symlink():
        raise HandlergenError(f"{target} is a directory, not an archive", hint="move it, or choose another --name")
    if os.path.lexists(target) and not force:
        raise _exists(target)
    return target


def _exists(target: Path) -> HandlergenError:
    return HandlergenError(f"{target} exists already", hint="--force replaces it; --name gives the model another name")


def _advice(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space there and in {tempfile.gettempdir()}, or set TMPDIR to another directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a directory that you may write to with --model-store"
    return None
