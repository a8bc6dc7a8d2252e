"""The store: values between hooks, workers and their deaths."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlergen.runtime import store as store_module
from handlergen.runtime.store import Store, open_store

WRITER = """
import os, sys
from pathlib import Path
from handlergen.runtime.store import Store
store = Store(Path(sys.argv[1]))
store.save("kept", {"n": 1})
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "s" / "m.sqlite")
    yield found
    _close(found)


def _close(store: Store) -> None:
    store._connection().close()


def test_a_store_that_another_process_is_just_beginning(tmp_path: Path) -> None:
    """SQLite refuses to begin the write-ahead log beside another's transaction at once, whatever the time-out."""
    other = sqlite3.connect(tmp_path / "m.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    ending = threading.Timer(0.5, other.commit)
    ending.start()
    store = Store(tmp_path / "m.sqlite")
    store.save("x", 1)
    ending.join()
    assert store.get("x") == 1
    other.close()
    _close(store)


def test_save_get_delete(store: Store) -> None:
    assert store.get("x") is None
    assert store.get("x", 7) == 7
    store.save("x", {"a": (1, b"2")})
    assert store.get("x") == {"a": (1, b"2")}
    store.save("x", None)
    assert store.get("x", 7) is None
    assert store.delete("x") is True
    assert store.delete("x") is False
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_time_to_live(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(store_module.time, "time", lambda: now)
    store.save("x", 1, ttl_s=5)
    store.save("for ever", 2)
    now = 1004.9
    assert store.get("x") == 1
    now = 1005.0
    assert store.get("x", "gone") == "gone"
    assert store.get("for ever") == 2
    with pytest.raises(ValueError, match="positive"):
        store.save("x", 1, ttl_s=0)


def test_a_killed_process_leaves_what_it_saved(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    assert subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False).returncode == -9
    store = Store(path)
    assert store.get("kept") == {"n": 1}
    _close(store)


def test_threads_share_it(store: Store) -> None:

    def save(number: int) -> None:
        store.save(f"n{number}", number)
        _close(store)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.get(f"n{number}") for number in range(8)] == list(range(8))


def test_where_it_lives(tmp_path: Path) -> None:
    assert open_store("m", {"HANDLERGEN_STATE_DIR": str(tmp_path)}).path == tmp_path / "store" / "m.sqlite"
    found = open_store("m", {"XDG_STATE_HOME": str(tmp_path)}).path
    assert found == tmp_path / "handlergen" / "store" / "m.sqlite"
