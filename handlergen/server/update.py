"""Replace the default version of a running model by another archive, and go back. `replacing` has the steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from handlergen.archives.build import archive_project
from handlergen.archives.mar import sha256_of
from handlergen.client import Client, ModelStatus
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.inspection.project import open_project
from handlergen.project.settings import shown
from handlergen.server.configuration import change_command, handlergen_command
from handlergen.server.lifecycle import running_server
from handlergen.server.model_store import audit_warnings, read_archive, readable_archives
from handlergen.server.replacing import PREVIOUS, Offer, Replacing, Say, Shadow
from handlergen.server.shadow import ShadowReport
from handlergen.server.update_state import Replacement, UpdateRecords

Action = Literal["updated", "rolled back", "unchanged", "undone"]


@dataclass(frozen=True)
class UpdateReport:
    """The outcome of an update or a rollback.

    Attributes:
        action: `unchanged`: the default version has these bytes already; `undone`: an unfinished update was removed.
        old, new: Versions; `new` is the default now. They are equal when nothing changed.
        archive: The archive of the default version; None if it is not in the store.
        status: The default version's.
        kept: The old version is still registered.
        shadow: How the answers compared; None without a shadow.
    """

    action: Action
    name: str
    old: str
    new: str
    archive: Path | None
    status: ModelStatus
    kept: bool = False
    shadow: ShadowReport | None = None
    warnings: tuple[str, ...] = ()


def update(
    name: str,
    source: Path | str,
    *,
    config: Path | str = "config.properties",
    keep: bool = False,
    shadow: Shadow | None = None,
    timeout: float = 600.0,
    drain_s: float = 30.0,
    progress: Say | None = None,
    **overrides: Any,
) -> UpdateReport:
    """Replace the default version of a running model; no request is lost.

    Args:
        name: The model.
        source: An archive of it (`.mar`), or what `archive` accepts. A source is archived under its own version if
            that is neither registered nor in the store, else under the next one.
        config: The configuration of the server, which `serve` has started.
        keep: Leave the old version registered, so that a rollback is only a switch.
        shadow: Compare answers to live requests before the switch.
        timeout: Seconds until the new version's workers must be READY.
        drain_s: Seconds that the old version has for its requests after the switch.
        progress: Called with a sentence about each step.
        overrides: Settings for a source, `version` among them, but not `config`, which handlergen.yaml sets.

    Raises:
        ModuleFailed: The new version cannot be loaded; the old one goes on serving, and the new one is removed.
        ServerError: No server runs, the model API is off, another update runs, the new version is not READY in time or
            fails in the shadow (it is removed). Or the old version has not answered its requests in time: the new one
            serves then, and the same call waits again.
        HandlergenError: The source cannot be archived, or the archive is another model's, or its version is taken.
    """
    path = Path(source)
    if path.suffix == ".mar" and any(value is not None for value in overrides.values()):
        raise HandlergenError(f"{path} is an archive: its settings cannot be changed", hint="archive its source again")
    with _opened(config, name, progress, timeout=timeout, drain_s=drain_s) as work:
        finished = work.finish()
        pending = work.record.pending
        if pending is not None and pending.action == "update":
            offer = _offer(work, path, {**overrides, "version": overrides.get("version") or pending.new})
            if (offer.version, offer.sha256) == (pending.new, pending.sha256):
                work.say(f"going on with the update of {name} from {pending.old} to {pending.new}")
                pending = replace(pending, keep=keep)
                return _report(work, "updated", pending, work.replace(pending, offer.path, shadow))
        if pending is not None:
            work.say(f"the unfinished {pending.action} to {pending.new} is undone first")
            work.undo(pending)
        chosen = _choose(work, path, overrides)
        if chosen is None:
            return _report(work, "updated" if finished else "unchanged", finished)
        plan = work.planned("update", chosen, keep=keep)
        return _report(work, "updated", plan, work.replace(plan, chosen.path, shadow))


def rollback(
    name: str,
    *,
    config: Path | str = "config.properties",
    keep: bool = False,
    timeout: float = 600.0,
    drain_s: float = 30.0,
    progress: Say | None = None,
) -> UpdateReport:
    """Make the version that the last update or rollback replaced the default again; twice: forth and back.

    An update that was interrupted before its switch is removed instead. See `update` for the arguments.

    Raises:
        ServerError: As `update`; or there is nothing to go back to.
    """
    with _opened(config, name, progress, timeout=timeout, drain_s=drain_s) as work:
        pending, default = work.record.pending, work.default().version
        if pending is not None and pending.action == "update" and default != pending.new:
            work.undo(pending)
            return _report(work, "undone", None)
        if pending is not None and pending.action == "rollback":
            if work.finish() is None:
                work.replace(replace(pending, keep=keep), work.stored(pending.new))
            return _report(work, "rolled back", pending)
        target = pending.old if pending is not None else work.record.previous
        if target is None or target == default:
            raise ServerError(
                f"there is nothing to roll back: {name} {default} has replaced no other version on this server",
                hint=f"`handlergen update {name} ARCHIVE` makes another version the default",
            )
        offer = Offer(target, work.stored(target), "")
        plan = work.planned("rollback", offer, keep=keep)
        work.replace(plan, offer.path)
        return _report(work, "rolled back", plan)


@contextmanager
def _opened(
    config: Path | str, name: str, progress: Say | None, *, timeout: float, drain_s: float
) -> Iterator[Replacing]:
    """Yield the steps for one model of a running server, with the lock on its updates held."""
    path = Path(config)
    running = running_server(path)
    if running is None:
        raise ServerError(
            f"no server started by `handlergen serve` is running on {shown(path)}",
            hint=f"`{handlergen_command('serve', path)}` starts it with the archives in its model store",
        )
    records = UpdateRecords(path)
    with running.client() as client:
        _require_model_api(client, path)
        try:
            client.describe(name)
        except RequestFailed as error:
            if error.status != 404:
                raise
            raise ServerError(
                f"the server has no model {name} to replace: it has {', '.join(client.models()) or 'none'}",
                hint="for a new model: `handlergen archive SOURCE`, then restart the server",
            ) from error
        with records.locked():
            say = progress or (lambda _text: None)
            yield Replacing(running, client, name, records, say=say, timeout=timeout, drain_s=drain_s)


def _require_model_api(client: Client, config: Path) -> None:
    """Raise ServerError if models cannot be registered; nothing is changed."""
    try:
        client.grpc_management.register("")
    except RequestFailed as error:
        if error.status not in (400, 403):
            raise
        if "Model API disabled" not in error.message:  # it is on, and misses the archive's name
            return
    raise ServerError(
        f"the server does not allow models to be registered: it was started with enable_model_api=false "
        f"({shown(config)})",
        hint=f"set enable_model_api=true (`{change_command('--model-api', config)}`), then restart the server: "
        f"`{handlergen_command('stop', config)}`, `{handlergen_command('serve', config)}`",
    )


def _report(
    work: Replacing, action: Action, plan: Replacement | None, compared: ShadowReport | None = None
) -> UpdateReport:
    """Return the outcome; `plan` is None when the default version is as it was."""
    status = work.default()
    archive = work.find(status.version)
    warnings = []
    listed = [part.rpartition("=")[2].strip() for part in work.running.settings.load_models.split(",")]
    if archive is not None and [each.lower() for each in listed] != ["all"] and archive.name not in listed:
        warnings.append(
            f"`handlergen serve` starts {archive.name} again; TorchServe itself starts what load_models in "
            f"{shown(Path(work.running.state.config))} names, which should be {archive.name}"
        )
    old, new = (plan.old, plan.new) if plan is not None else (status.version, status.version)
    kept = old != new and old in work.versions()
    return UpdateReport(action, work.name, old, new, archive, status, kept, compared, tuple(warnings))


def next_version(version: str, taken: Set[str]) -> str:
    """Return the version with its last number increased until it is free: 1.0 -> 1.1, v1 -> v2, beta -> beta-2."""
    while version in taken:
        numbers = list(re.finditer(r"\d+", version))
        if not numbers:
            version += "-2"
            continue
        start, end = numbers[-1].span()
        version = f"{version[:start]}{int(version[start:end]) + 1}{version[end:]}"
    return version


def _offer(work: Replacing, source: Path, overrides: dict[str, Any]) -> Offer:
    """Return what an archive or a source offers; a source is archived into a hidden file in the store."""
    if source.suffix == ".mar":
        archive = read_archive(source)
        _require_name(work.name, archive.name, source)
        for warning in audit_warnings(source) if archive.settings is not None else ():
            work.say(f"Warning: {warning}")
        return Offer(archive.version, source, sha256_of(source))
    project = open_project(source, overrides=overrides)
    _require_name(work.name, project.settings.name, source)
    written = archive_project(project, model_store=work.store, file=work.staging.name, force=True)
    for warning in written.warnings:
        work.say(f"Warning: {warning}")
    return Offer(project.settings.version, written.path, written.sha256)


def _choose(work: Replacing, source: Path, overrides: dict[str, Any]) -> Offer | None:
    """Return what to update to; None if the default version has the same bytes.

    Raises:
        HandlergenError: The version is taken by another archive.
    """
    default = work.default().version
    stored = [*readable_archives(work.store), *readable_archives(work.store / PREVIOUS)]
    taken = work.versions() | {archive.version for archive in stored if archive.name == work.name}
    if source.suffix == ".mar" or overrides.get("version") is not None:
        offer = _offer(work, source, overrides)
        if offer.version not in work.versions() and work.find(offer.version) is None:
            return offer
        if not work.has_bytes(offer):
            raise HandlergenError(
                f"{work.name} {offer.version} is registered or in {shown(work.store)} with other contents",
                hint=f"archive the source with another version: `handlergen update {work.name} SOURCE --version "
                f"{next_version(offer.version, taken)}`",
            )
        return None if offer.version == default else offer
    project = open_project(source, overrides=overrides)
    version = project.settings.version
    if version in taken and project.settings.name == work.name:
        if work.has_bytes(_offer(work, source, {**overrides, "version": default})):
            work.staging.unlink(missing_ok=True)
            return None
        version = next_version(version, taken)
    return _offer(work, source, {**overrides, "version": version})


def _require_name(wanted: str, found: str, source: Path) -> None:
    if found != wanted:
        raise HandlergenError(
            f"{shown(source)} is the model {found}, not {wanted}",
            hint=f"`handlergen update {found} ...` updates that model; the variable HANDLERGEN_NAME={wanted} gives "
            "a source that name",
        )
