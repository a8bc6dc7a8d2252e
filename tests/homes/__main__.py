"""`make homes`: tests/e2e/test_homes.py for every home, every TorchServe and every Python with a torch; a table.

    python -m tests.homes [--home NAME]... [--torchserve VERSION]... [--python EXECUTABLE]... [--json FILE]

The Pythons are this one and those of pyenv that have a torch, unless --python names others. pip installs each
TorchServe into a temporary directory. Exit status 1 when a cell fails, with the reasons above the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.homes.environments import describe, pythons
from tests.homes.homes import HOMES

SUITE = Path(__file__).resolve().parents[1] / "e2e" / "test_homes.py"
COLUMNS = ("json", "bytes", "form", "grpc", "batch", "error", "stream", "scaling", "kserve", "addresses", "description",
           "metrics", "log")  # fmt: skip
MARKS = {"passed": "yes", "skipped": "-", "failed": "NO"}


class Outcomes:
    """Collects how each test of a cell ended: the worst of both models'."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = re.fullmatch(r".*::test_(\w+)\[(.*?)(-worker|-process)?\]", report.nodeid)
        if test and (report.when == "call" or report.outcome != "passed"):
            column, cell, _ = test.groups()
            row = self.found.setdefault(cell, {})
            row[column] = max(report.outcome, row.get(column, ""), key=["", "skipped", "passed", "failed"].index)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", action="append", choices=HOMES, help="may be repeated; default: all")
    parser.add_argument("--torchserve", action="append", help="a version; may be repeated; default: all")
    parser.add_argument("--python", action="append", help="an executable; may be repeated")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON, too")
    chosen = parser.parse_args(arguments)
    environments = [describe(python) for python in chosen.python or pythons()]
    cells = {
        f"{name} {version} {found.python}": (name, version, found)
        for found in environments
        for name, home in HOMES.items()
        for version in home.versions
        if name in (chosen.home or HOMES) and version in (chosen.torchserve or home.versions)
    }
    os.environ["HANDLERGEN_HOMES"] = ",".join(cells)
    outcomes = Outcomes()
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(SUITE)], plugins=[outcomes])
    rows = [
        {
            **{"home": name, "torchserve": version, "python": found.version, "torch": found.torch},
            **{column: outcomes.found.get(cell, {}).get(column, "failed") for column in COLUMNS},
        }
        for cell, (name, version, found) in cells.items()
    ]
    print("\n" + table(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return int(any("failed" in row.values() for row in rows))


def table(rows: Sequence[dict[str, str]]) -> str:
    """As Markdown."""
    heads = list(rows[0]) if rows else []
    lines = [heads, ["---"] * len(heads), *([MARKS.get(cell, cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
