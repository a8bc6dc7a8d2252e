"""Golden files: what handlergen writes, compared with what it is known to write.

`pytest tests/golden --update-golden` writes the files anew; read the difference before you commit it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """`golden(path, text)`: `text` is what stands in the golden file at `path`, or becomes it."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden", default=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; pytest tests/golden --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: --update-golden accepts the new text"

    return check
