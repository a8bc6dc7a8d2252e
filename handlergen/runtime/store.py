"""`context.store`: named values that all hooks and workers of a model share, and that outlive them.

One SQLite file for each model, in the user's state directory, opened on first use. SQLite's write-ahead log keeps what
was saved when a worker is killed between two statements (sqlite.org/wal.html).
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .device.lock import STATE_DIR_VARIABLE, lock_directory

_BUSY_S = 10.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL)"


class Store:
    """Named values of one model. Each call is one transaction; threads and processes may call concurrently.

    Values are pickled. Only what a hook of this model saved is ever unpickled: the file's directory is private to the
    user.

    Args:
        path: The SQLite file; its directory is created when the store is first used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def save(self, name: str, value: Any, *, ttl_s: float | None = None) -> None:
        """Save a value under a name, and replace an earlier one.

        Args:
            name: The name.
            value: Anything that can be pickled.
            ttl_s: Seconds after which it expires; None for never.

        Raises:
            ValueError: `ttl_s` is not positive.
            sqlite3.OperationalError: The file cannot be written (disk full, say).
        """
        if ttl_s is not None and ttl_s <= 0:
            raise ValueError(f"ttl_s must be positive, not {ttl_s}")
        blob = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        now = time.time()
        with self._connection() as connection:
            connection.execute("DELETE FROM entries WHERE expires <= ?", (now,))
            expires = None if ttl_s is None else now + ttl_s
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (name, blob, expires))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value under a name, or `default` when there is none or it has expired."""
        query = "SELECT value FROM entries WHERE name = ? AND (expires IS NULL OR expires > ?)"
        row = self._connection().execute(query, (name, time.time())).fetchone()
        return default if row is None else pickle.loads(row[0])  # noqa: S301 - written by save, in a private file

    def delete(self, name: str) -> bool:
        """Delete a name; return False when there was none."""
        with self._connection() as connection:
            return connection.execute("DELETE FROM entries WHERE name = ?", (name,)).rowcount > 0

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection; a forked child opens its own (sqlite.org/howtocorrupt.html, 2.6)."""
        if getattr(self._local, "pid", None) != os.getpid():
            directory = self.path.parent
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(f"{directory} must be a directory of this user")
            if found.st_mode & 0o077:
                directory.chmod(0o700)
            self._local.connection = _open(self.path)
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, or create it.

    When several connections start a new file's write-ahead log, SQLite refuses all but one immediately, whatever the
    timeout (sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode"): they try again.
    """
    deadline = time.monotonic() + _BUSY_S
    while True:
        connection = sqlite3.connect(path, timeout=_BUSY_S)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return connection


def open_store(model: str, environ: Mapping[str, str] = os.environ) -> Store:
    """Return a model's store: under `HANDLERGEN_STATE_DIR`, else `XDG_STATE_HOME`, else `~/.local/state`.

    Where there is no home directory to write to (a container's user may have none), the store is beside the locks,
    until the container or the machine ends.
    """
    if named := environ.get(STATE_DIR_VARIABLE):
        base = Path(named).expanduser().absolute()
    elif named := environ.get("XDG_STATE_HOME"):
        base = Path(named) / "handlergen"
    else:
        home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - "~" where there is none
        base = Path(home, ".local", "state", "handlergen")
        nearest = next(path for path in (base, *base.parents) if os.path.exists(path))  # noqa: PTH110 - false if hidden
        if not base.is_absolute() or not os.access(nearest, os.W_OK):
            base = lock_directory(environ)
    return Store(base / "store" / f"{model}.sqlite")
