"""What the last server of a configuration had: each model's default version, and each version's archive and workers.

TorchServe saves it itself unless it is started with `--ncs`: a file in LOG_LOCATION/config when it has started, after
every change through a management API, curl's included, and before it exits (SnapshotManager.java). Such a snapshot is a
properties file, with the models as JSON under `model_snapshot`. TorchServe reads it only when it is started without
`--ts-config`, which `serve` passes.

A record beside the state file has what a snapshot lacks: the archives that the last READY server was started with, and,
while a server starts, what it has to restore. The first snapshot of a server has the archives' own numbers of workers:
when that server dies before its workers are restored, the record still has the state of the server before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from handlergen.server.launching import state_path, write_private
from handlergen.server.model_store import StoredArchive
from handlergen.server.property_text import parse_entries, read_text

KEPT_SNAPSHOTS = 20

_SNAPSHOT = re.compile(r"\d{17}-(startup|snapshot|shutdown)\.cfg")

Fingerprints = Mapping[str, Mapping[str, str]]
"""Model name -> version -> fingerprint of its archive."""


@dataclass(frozen=True)
class RememberedVersion:
    """One version of a model as TorchServe last described it.

    Attributes:
        archive: File name in the model store.
        workers: TorchServe's `minWorkers`; 0 is a number of workers, too.
        default: Whether requests that name no version went to this one.
    """

    archive: str
    workers: int
    default: bool


@dataclass(frozen=True)
class LastServer:
    """The models of a configuration's last server.

    Attributes:
        taken: When TorchServe described them, in seconds since the epoch.
        models: Model name -> version -> its state.
        load_models: What config.properties said of it when that server started.
        archives: The archives that `serve` found when it last started a server that became READY.
    """

    taken: float
    models: Mapping[str, Mapping[str, RememberedVersion]]
    load_models: str
    archives: Fingerprints

    def default(self, model: str) -> str | None:
        """Return a model's default version; None when the server did not have the model."""
        return next((version for version, was in self.models.get(model, {}).items() if was.default), None)

    def workers(self, model: str, version: str, archive: StoredArchive) -> int | None:
        """Return a version's number of workers; None when it had none, or if its archive was replaced since."""
        was = self.models.get(model, {}).get(version)
        return was.workers if was is not None and self.unchanged(model, version, archive) else None

    def unchanged(self, model: str, version: str, archive: StoredArchive) -> bool:
        """Return whether an archive is the one that the server had."""
        started_with = self.archives.get(model, {}).get(version)
        if started_with is not None:
            return archive.fingerprint == started_with
        was = self.models.get(model, {}).get(version)  # registered at run time: not in the record
        return was is not None and was.archive == archive.path.name and archive.path.stat().st_mtime <= self.taken


def last_server(config: Path, logs: Path) -> LastServer | None:
    """Return what the last server of a configuration had; None when nothing is known of it.

    Args:
        config: Absolute path of config.properties.
        logs: The server's log directory.
    """
    record = _read_record(config)
    if record is not None and record.models:
        return record  # the server that was to restore it did not become READY
    snapshots = _snapshots(config, logs)
    if not snapshots:
        return None
    newest = snapshots[-1][1]
    return replace(newest, load_models=record.load_models, archives=record.archives) if record else newest


def keep_until_ready(config: Path, last: LastServer) -> None:
    """Record what a server that is about to start has to restore. Raises OSError."""
    write_private(_record_path(config), asdict(last))


def record_ready(config: Path, logs: Path, load_models: str, archives: Fingerprints) -> None:
    """Record that a server is READY and has everything restored: its snapshots count from now on. Raises OSError.

    Older snapshots of the configuration are removed, but for the newest 20.
    """
    write_private(_record_path(config), asdict(LastServer(0.0, {}, load_models, archives)))
    for path, _ in _snapshots(config, logs)[:-KEPT_SNAPSHOTS]:
        with suppress(OSError):  # another user's
            path.unlink()


def prepare_directory(logs: Path) -> None:
    """Create the directory of the snapshots for this user only: they hold keystore_pass and resolved variables."""
    with suppress(OSError):  # TorchServe logs that it cannot save them
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "config").mkdir(exist_ok=True)
        (logs / "config").chmod(0o700)


def _snapshots(config: Path, logs: Path) -> list[tuple[Path, LastServer]]:
    """Return the readable snapshots of a configuration, the oldest first."""
    found = []
    for path in (logs / "config").glob("*.cfg"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # half written, or another program's
            snapshot = _read_snapshot(path, config) if _SNAPSHOT.fullmatch(path.name) else None
            if snapshot is not None:
                found.append((path, snapshot))
    # Within seconds the name decides: it has the time before the models were described, so of two saved at once the
    # later name has both changes. Else not the name, which is in local time.
    return sorted(found, key=lambda item: (item[1].taken // 2, item[0].name))


def _read_snapshot(path: Path, config: Path) -> LastServer | None:
    """Return the models of a snapshot; None when it is another configuration's. Raises what a broken file causes."""
    entries = {entry.key: entry.value for entry in parse_entries(read_text(path))}
    # The file as it was named on the command line, in its directory. Configurations may share a log directory.
    if (config.parent / entries["tsConfigFile"]).resolve() != config:
        return None
    snapshot = json.loads(entries["model_snapshot"])
    models = {
        model: {
            version: RememberedVersion(state["marName"], int(state["minWorkers"]), state["defaultVersion"] is True)
            for version, state in versions.items()
        }
        for model, versions in snapshot["models"].items()
    }
    return LastServer(snapshot["created"] / 1000, models, entries.get("load_models", ""), {})


def _record_path(config: Path) -> Path:
    return state_path(config).with_name(f"{config.name}.last-server.json")


def _read_record(config: Path) -> LastServer | None:
    try:
        raw: dict[str, Any] = json.loads(_record_path(config).read_text("utf-8"))
        models = {
            model: {version: RememberedVersion(**state) for version, state in versions.items()}
            for model, versions in raw["models"].items()
        }
        return LastServer(raw["taken"], models, raw["load_models"], raw["archives"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
