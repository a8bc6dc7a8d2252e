"""Every line of docs/guarantees.md names its proof, and the proof is there."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_every_promise_names_tests_that_exist() -> None:
    wrong = []
    for promise, _, proof in PROMISES:
        files = re.findall(r"`(?:tests/)?([\w/]*\w+\.py)(?:::(\w+))?`", proof)
        if not files and "`make soak`" not in proof and "`Makefile`" not in proof:
            wrong.append((promise, "no proof"))
        for file, test in files:
            found = [path for path in (ROOT / "tests").rglob("*.py") if str(path).endswith("/" + file)]
            if not found or (test and not any(f"def {test}(" in path.read_text("utf-8") for path in found)):
                wrong.append((promise, f"{file}::{test}"))
    assert wrong == []
