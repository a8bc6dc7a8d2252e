"""What is recorded about updates of a server's models: `.handlergen/CONFIG.updates.json`, beside the configuration.

The record says what was intended; how far it got is also seen from the server and the model store. So a command that
was killed at any point leaves nothing that the same command could not go on from.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from handlergen.errors import HandlergenError, ServerError
from handlergen.project.settings import shown
from handlergen.server.launching import STATE_DIR, exclusive, write_private

Step = Literal["archive", "register", "load", "shadow", "switch", "retire"]
"""What an update is doing: `retire` is all that follows the switch."""


@dataclass(frozen=True)
class Replacement:
    """An update or rollback that has begun.

    Attributes:
        action: `update` or `rollback`: the verb that goes on with it.
        old, new: Versions: the default one when it began, and the one to become the default.
        sha256: Of the new version's archive, in hexadecimal.
        origin: Where that archive was: `new` (not in the store), `previous` (in STORE/.previous), `store`.
        registered: The new version was registered before.
        workers: How many the new version gets.
        keep: The old version stays registered.
        step: The last one that was begun.
    """

    action: Literal["update", "rollback"]
    old: str
    new: str
    sha256: str
    origin: Literal["new", "previous", "store"]
    registered: bool
    workers: int
    keep: bool
    step: Step = "archive"


@dataclass(frozen=True)
class ModelRecord:
    """What is recorded about one model.

    Attributes:
        previous: The version that `rollback` makes the default; None: there was no update.
        kept: That version stays registered because of `keep`.
        pending: What has begun and not ended.
    """

    previous: str | None = None
    kept: bool = False
    pending: Replacement | None = None


@dataclass(frozen=True)
class UnfinishedUpdate:
    """An update that runs, or was interrupted.

    Attributes:
        pid: The process that works on it; None: it was interrupted.
    """

    model: str
    replacement: Replacement
    pid: int | None


class UpdateRecords:
    """The records of all models of one server, by name.

    Args:
        config: The server's configuration.
    """

    def __init__(self, config: Path) -> None:
        self._config = config.resolve()
        self._path = self._config.parent / STATE_DIR / f"{config.name}.updates.json"
        self._lock = self._path.with_suffix(".lock")

    def read(self, model: str) -> ModelRecord:
        """Return a model's record; an empty one when there is none."""
        found = self._read().get(model, {})
        pending = found.get("pending")
        return ModelRecord(found.get("previous"), bool(found.get("kept")), Replacement(**pending) if pending else None)

    def write(self, model: str, record: ModelRecord) -> None:
        """Replace a model's record, atomically; call it with the lock held. Raises OSError."""
        write_private(self._path, {**self._read(), model: asdict(record)})

    def unfinished(self) -> list[UnfinishedUpdate]:
        """Return the updates that run or were interrupted."""
        records = ((model, self.read(model)) for model in sorted(self._read()))
        pid = self._holder()
        return [UnfinishedUpdate(model, record.pending, pid) for model, record in records if record.pending]

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock on this server's updates. Raises ServerError when another process holds it."""
        return exclusive(self._lock, self._is_running)

    def _is_running(self) -> ServerError:
        return ServerError(
            f"another update or rollback is running on {shown(self._config)} (process {self._holder() or '?'})",
            hint="wait until it is done, or stop it with Ctrl-C; `handlergen status` shows its step",
        )

    def _holder(self) -> int | None:
        """Return the process that holds the lock."""
        try:
            with self._lock.open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(handle.read() or 0) or None
        except (OSError, ValueError):
            pass
        return None

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise HandlergenError(
                f"{shown(self._path)} cannot be read: {error}",
                hint="remove the file: no rollback is possible then, and an interrupted update is forgotten",
            ) from error
        return found if isinstance(found, dict) else {}
