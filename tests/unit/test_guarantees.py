"""Every line of docs/guarantees.md names its proof, and the proof is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISED, _ = (ROOT / "docs" / "guarantees.md").read_text("utf-8").split("## Figures")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PROMISED.splitlines()
    if line.startswith("| ") and line.count("|") == 4
]
PROMISES = [row for row in ROWS if row[0] not in ("", "guarantee", "---")]


def test_promises_are_found() -> None:
    assert len(PROMISES) > 40


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0][:40])
def test_a_promise_names_tests_that_exist(row: list[str]) -> None:
    files = re.findall(r"`(?:tests/)?([\w/]*\w+\.py)(?:::(\w+))?`", row[2])
    assert files or "`make soak`" in row[2] or "`Makefile`" in row[2], row
    for file, test in files:
        found = [path for path in (ROOT / "tests").rglob("*.py") if str(path).endswith("/" + file)]
        assert found, file
        assert not test or any(f"def {test}(" in path.read_text("utf-8") for path in found), (file, test)
