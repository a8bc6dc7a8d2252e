"""The steps that replace a running model's default version by another archive, and their undoing.

The archive is placed in the model store, registered beside the running version and loaded; then it becomes the default;
then the old version answers what it has and is unregistered, and its archive moves to `STORE/.previous/`, which
TorchServe does not read (ModelServer.initModelStore skips hidden files). Each step is recorded before it begins
(`update_state`) and looks first at what is there, so it can be taken again after a kill at any point.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from handlergen.archives.mar import sha256_of
from handlergen.archives.signing import signature_path
from handlergen.client import Client, ModelStatus
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed, ServerError
from handlergen.project.settings import shown
from handlergen.server.lifecycle import RunningServer
from handlergen.server.model_store import find_archive, readable_archives
from handlergen.server.readiness import ServerLogs, check_workers
from handlergen.server.shadow import ShadowReport, shadow
from handlergen.server.update_state import ModelRecord, Replacement, Step, UpdateRecords

Say = Callable[[str], None]
"""Receives a sentence about each step, and about what takes long."""

PREVIOUS = ".previous"
"""Directory in the model store with the archives that a rollback may need."""

_CONFLICT = (400, 409)


@dataclass(frozen=True)
class Shadow:
    """A share of live requests that the new version answers too before the switch.

    Attributes:
        share: Above 0, at most 1.
        seconds: How long; 600 at most.
        max_different: The share of different answers above which the update stops; None: differences are reported only.
    """

    share: float
    seconds: float = 30.0
    max_different: float | None = None


@dataclass(frozen=True)
class Offer:
    """A version and its archive, which need not be in the store yet."""

    version: str
    path: Path
    sha256: str


class Replacing:
    """The steps for one model.

    Args:
        records: Its lock must be held.
        timeout: Seconds until the new version's workers must be READY.
        drain_s: Seconds that the old version has for its requests.

    Attributes:
        store: The model store.
        staging: A hidden file in it, for an archive that is being written.
        record: What is recorded about the model.
    """

    def __init__(
        self,
        running: RunningServer,
        client: Client,
        name: str,
        records: UpdateRecords,
        *,
        say: Say,
        timeout: float,
        drain_s: float,
    ) -> None:
        self.running = running
        self._client = client
        self.name = name
        self._records = records
        self.say = say
        self._timeout = timeout
        self._drain_s = drain_s
        self.store = running.directory / running.settings.model_store
        self.staging = self.store / f".update-{name}.mar"
        self.record = records.read(name)
        self._logs = ServerLogs(running.log_directory)

    def default(self) -> ModelStatus:
        return self._client.describe(self.name)

    def versions(self) -> set[str]:
        """Return the registered versions."""
        return {status.version for status in self._client.versions(self.name)}

    def stored(self, version: str) -> Path:
        """Return the archive of a version in the store or in `.previous`; raise ServerError without one."""
        found = self.find(version) or find_archive(self.store / PREVIOUS, self.name, version)
        if found is None:
            raise ServerError(
                f"the archive of {self.name} {version} is neither in {shown(self.store)} nor in "
                f"{shown(self.store / PREVIOUS)}",
                hint=f"`handlergen update {self.name} ARCHIVE` updates to any archive of the model",
            )
        return found

    def planned(self, action: Literal["update", "rollback"], offer: Offer, *, keep: bool) -> Replacement:
        """Return what is to be done."""
        default = self.default()
        here = self.find(offer.version) is not None
        return Replacement(
            action=action,
            old=default.version,
            new=offer.version,
            sha256=offer.sha256,
            origin="store" if here else "previous" if action == "rollback" else "new",
            registered=offer.version in self.versions(),
            workers=max(1, default.min_workers),
            keep=keep,
        )

    def replace(self, plan: Replacement, archive: Path, compared: Shadow | None = None) -> ShadowReport | None:
        """Take all steps; return how answers compared.

        Raises:
            ModuleFailed, ServerError: Before the switch: all is as it was, or the message says what is not. Or the old
                version has not answered its requests in time.
        """
        self._write(replace(self.record, pending=plan))
        report = None
        try:
            file = self._place(plan, archive)
            self._step("register")
            self._register(plan, file)
            self._step("load")
            self._load(plan)
            if compared is not None:
                self._step("shadow")
                report = self._compare(plan, compared)
        except (HandlergenError, OSError) as error:
            raise self._failed(plan, error) from error
        self._step("switch")
        self._client.set_default(self.name, plan.new)
        self.say(f"{self.name} {plan.new} is the default now")
        self._retire(plan)
        return report

    def finish(self) -> Replacement | None:
        """Finish a replacement that ended after its switch; return it, or None if there is none."""
        pending = self.record.pending
        if pending is None or self.default().version != pending.new:
            return None
        self.say(f"going on with the {pending.action} to {self.name} {pending.new}, which is the default already")
        self._retire(pending)
        return pending

    def undo(self, plan: Replacement) -> None:
        """Remove what a replacement has added before its switch. Raises what `Client.unregister` does."""
        if plan.new in self.versions() and not plan.registered:
            self._client.unregister(self.name, version=plan.new, drain_s=0)
        file = self.find(plan.new)
        if file is not None and plan.origin == "new":
            _remove(file)
        elif file is not None and plan.origin == "previous":
            self._set_aside(file, plan.new)
        self.staging.unlink(missing_ok=True)
        self._write(replace(self.record, pending=None))

    def _place(self, plan: Replacement, archive: Path) -> Path:
        """Bring the new version's archive into the store, complete or not at all."""
        file = self.find(plan.new)
        if file is None:
            again = plan.origin == "previous"
            file = self._free(self.store / archive.name, plan.new) if again else self._own_file(plan.new)
            signature = signature_path(archive)
            if again:
                if signature.exists():
                    signature.replace(signature_path(file))
                archive.replace(file)
            else:
                if archive != self.staging:
                    shutil.copyfile(archive, self.staging)
                    if signature.exists():
                        shutil.copyfile(signature, signature_path(file))
                self.staging.replace(file)
            self.say(f"placed {shown(file)}")
        self.staging.unlink(missing_ok=True)
        return file

    def _register(self, plan: Replacement, file: Path) -> None:
        if plan.new in self.versions():
            return
        try:
            self._client.grpc_management.register(file.name)
        except RequestFailed as error:
            # An earlier command may have been ended while TorchServe was registering for it.
            if error.status not in _CONFLICT or plan.new not in self.versions():
                raise
        self.say(f"registered {self.name} {plan.new} beside {plan.old}")

    def _load(self, plan: Replacement) -> None:
        """Wait until as many workers are READY as the old version has."""
        last = ""

        def watch(status: ModelStatus) -> None:
            nonlocal last
            check_workers(self._logs, (self.name, plan.new))
            text = f"{self.name} {plan.new}: {status.ready_workers}/{status.min_workers} workers READY"
            if text != last:
                last = text
                self.say(text)

        own = self._client.describe(self.name, version=plan.new).min_workers
        # Workers that are ended while they load look like failures, so surplus ones load first.
        for workers in dict.fromkeys((max(own, plan.workers), plan.workers)):
            self._client.scale(self.name, workers, version=plan.new, timeout=self._timeout, progress=watch)

    def _compare(self, plan: Replacement, wanted: Shadow) -> ShadowReport:
        last = -1

        def watch(report: ShadowReport) -> None:
            nonlocal last
            if report.compared // 100 > last // 100:
                self.say(f"shadow: {report.compared} answers compared, {report.different} different")
            last = report.compared

        self.say(f"shadow: {wanted.share:.0%} of the requests to {plan.old} for {wanted.seconds:g} s")
        report = shadow(
            self._client, self.name, plan.old, plan.new, share=wanted.share, seconds=wanted.seconds, progress=watch
        )
        if report.failed:
            first = report.differences[0]
            raise ServerError(
                f"{self.name} {plan.new} failed at a request that {plan.old} answers: {first.request}\n"
                f"answer of {plan.old}: {first.places[0][1]}\nanswer of {plan.new}: {first.places[0][2]}",
            )
        if wanted.max_different is not None and not report.compared:
            raise ServerError(
                f"no answer of {self.name} {plan.new} was compared in {wanted.seconds:g} s: how many differ is unknown",
                hint="send requests meanwhile, compare for longer with --shadow-for, or leave out --max-different",
            )
        if wanted.max_different is not None and report.different > wanted.max_different * report.compared:
            shown_places = [f"{path}: {old} != {new}" for each in report.differences for path, old, new in each.places]
            raise ServerError(
                f"{self.name} {plan.new} answers {report.different} of {report.compared} requests differently, more "
                f"than {wanted.max_different:.3%}\n" + "\n".join(shown_places)
            )
        return report

    def _retire(self, plan: Replacement) -> None:
        """Let the old version answer what it has, unregister it, and set its archive aside."""
        self._step("retire")
        before = self.record.previous if self.record.kept else None
        leaving = [] if plan.keep else [plan.old]
        leaving += [before] if before not in (None, plan.old, plan.new) else []
        for version in leaving:
            file = self.find(version)
            # First, because from now on no server must start with it. A list in load_models may need the file; there
            # `serve` knows what was replaced (`starting_models`).
            if file is not None and self.running.settings.load_models.lower() == "all":
                self._set_aside(file, version)
            if version not in self.versions():
                continue
            self.say(f"{self.name} {version}: waiting until its requests are answered")
            try:
                self._client.unregister(self.name, version=version, drain_s=self._drain_s, notice=self.say)
            except HandlergenError as error:
                raise ServerError(
                    f"{self.name} {plan.new} is the default and serves, but {version} could not be unregistered: "
                    f"{error.message}",
                    hint="the same command tries it again; --drain sets how long to wait",
                ) from error
            self.say(f"unregistered {self.name} {version}")
        self._write(ModelRecord(previous=plan.old, kept=plan.keep))
        for archive in readable_archives(self.store / PREVIOUS):
            # A file with another name was not written by an update; it may be the only copy.
            ours = archive.path.name == self._own_file(archive.version).name
            if ours and archive.name == self.name and archive.version != plan.old:
                _remove(archive.path)

    def _failed(self, plan: Replacement, error: HandlergenError | OSError) -> HandlergenError:
        """Undo what was done, and return the error to raise."""
        message = error.message if isinstance(error, HandlergenError) else str(error)
        hint = error.hint if isinstance(error, HandlergenError) else None
        try:
            self.undo(plan)
            message += f"\n{self.name} {plan.old} goes on serving; {plan.new} was removed from the server"
        except (HandlergenError, OSError) as second:
            message += (
                f"\n{self.name} {plan.old} goes on serving; {plan.new} could not be removed from the server ({second})"
                f": `handlergen rollback {self.name}` tries it again"
            )
        if isinstance(error, ModuleFailed):
            hint = "correct the source and run the same command again" if plan.action == "update" else hint
            return ModuleFailed(message, traceback=error.traceback, hint=hint)
        return ServerError(message, hint=hint)

    def has_bytes(self, offer: Offer) -> bool:
        """Return whether the store's archive of that version is the same."""
        file = self.find(offer.version)
        return file is not None and sha256_of(file) == offer.sha256

    def find(self, version: str) -> Path | None:
        return find_archive(self.store, self.name, version)

    def _own_file(self, version: str) -> Path:
        return self.store / f"{self.name}-{version}.mar"

    def _free(self, path: Path, version: str) -> Path:
        """Return a path for a version's archive that replaces no archive of the user's own."""
        return path.with_name(self._own_file(version).name) if path.exists() else path

    def _set_aside(self, file: Path, version: str) -> None:
        """Move an archive, and its signature, to `.previous`."""
        (self.store / PREVIOUS).mkdir(exist_ok=True)
        target = self._free(self.store / PREVIOUS / file.name, version)
        with suppress(FileNotFoundError):
            signature_path(file).replace(signature_path(target))
        file.replace(target)

    def _step(self, step: Step) -> None:
        """Record that a step begins."""
        assert self.record.pending is not None
        self._write(replace(self.record, pending=replace(self.record.pending, step=step)))

    def _write(self, record: ModelRecord) -> None:
        self._records.write(self.name, record)
        self.record = record


def _remove(archive: Path) -> None:
    signature_path(archive).unlink(missing_ok=True)
    archive.unlink(missing_ok=True)
