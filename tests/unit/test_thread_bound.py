"""What is bound to a thread: `check` warns of it, and the log says what to do about the error that Python raises."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.inspection.project import open_project

TOWNS = """
import sqlite3

DB = sqlite3.connect("towns.db"OPTION)

def name_of(code):
    return DB.execute("SQL towns where code = ?", (code,)).fetchone()[0]

def load(context):
    return name_of

def preprocess(data):
    return data["code"], name_of(data["code"])

def predict(inputs, model):
    code, before = inputs
    return [before, model(code)]
"""
IN_A_HOOK = """
import asyncio, signal, threading
LOCAL = threading.local()
LOCAL.x = 1
{} preprocess(data):
    {}
    return data

def predict(inputs):
    return inputs
"""


def towns(tmp_path: Path, *, option: str = "", sql: str = "select name from") -> Any:
    (tmp_path / "towns.py").write_text(TOWNS.replace("OPTION", option).replace("SQL", sql))
    return open_project(tmp_path / "towns.py", environ={})


def test_a_connection_of_the_module_is_told(tmp_path: Path) -> None:
    (warning,) = towns(tmp_path).warnings
    assert "towns.py:7: preprocess uses DB (through name_of), which is bound to a thread" in warning
    assert "check_same_thread=False" in warning


def test_a_connection_that_threads_share_is_not(tmp_path: Path) -> None:
    assert towns(tmp_path, option=", check_same_thread=False").warnings == ()
    assert towns(tmp_path, option=", check_same_thread=True").warnings


def test_a_select_changes_nothing(tmp_path: Path) -> None:
    assert towns(tmp_path).placement.stages == "worker"
    assert towns(tmp_path, sql="delete from").placement.stages == "predictor"


@pytest.mark.parametrize(
    ("keyword", "line", "named"),
    [
        ("def", "signal.signal(signal.SIGALRM, print)", "signal.signal"),
        ("def", "asyncio.get_event_loop()", "asyncio.get_event_loop"),
        ("async def", "asyncio.get_event_loop()", None),
        ("def", "data += LOCAL.x", "LOCAL"),
        ("def", "asyncio.run(None)", None),
    ],
)
def test_calls_and_values_in_a_hook(tmp_path: Path, keyword: str, line: str, named: str | None) -> None:
    (tmp_path / "bound.py").write_text(IN_A_HOOK.format(keyword, line))
    warnings = [
        each for each in open_project(tmp_path / "bound.py", environ={}).warnings if "bound to a thread" in each
    ]
    assert len(warnings) == (named is not None)
    assert named is None or f"preprocess uses {named}, which is bound to a thread" in warnings[0]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("data = DB.execute('select 1').fetchone()", "check_same_thread=False"),
        ("signal.signal(signal.SIGALRM, signal.SIG_DFL)", "Call it where the module is imported"),
        ("asyncio.get_event_loop()", "asyncio.get_running_loop()"),
        ("raise ValueError('signal of something else')", None),
    ],
)
def test_the_log_says_what_to_do(
    model: Callable[..., Any], caplog: pytest.LogCaptureFixture, line: str, hint: str | None
) -> None:
    source = (
        "import asyncio, signal, sqlite3\nDB = sqlite3.connect(':memory:')\n"
        "def preprocess(data):\n    {}\n    return 1\n"
    )
    loaded = model(source.format(line) + "def predict(inputs): return inputs\n")
    with caplog.at_level("DEBUG"):
        loaded.batch([1, 2])
    assert caplog.text.count("Hint: hooks run in several threads") == (2 if hint else 0)
    assert hint is None or hint in caplog.text


def test_towns_by_one_and_with_the_connection_shared(tmp_path: Path, model: Callable[..., Any]) -> None:
    with sqlite3.connect(tmp_path / "towns.db") as db:
        db.execute("create table towns (code text, name text)")
        db.execute("insert into towns values ('1', 'Tokyo')")
    text = TOWNS.replace("SQL", "select name from").replace('"towns.db"OPTION', f"{str(tmp_path / 'towns.db')!r}")
    assert model(text).predict({"code": "1"}) == ["Tokyo", "Tokyo"]
    shared = model(text.replace("towns.db'", "towns.db', check_same_thread=False"))
    assert [each.value for each in shared.batch([{"code": "1"}] * 2)] == [["Tokyo", "Tokyo"]] * 2
