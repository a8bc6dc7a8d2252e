"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and stores of these tests only: else they would take turns with whatever predicts on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield
