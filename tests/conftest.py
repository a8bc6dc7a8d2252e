"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and stores of these tests only: else they would take turns with whatever predicts on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


def pytest_configure() -> None:
    """A shell that starts the suite in the background has it ignore SIGINT, and so would all that it starts: the
    tests that press Ctrl-C would press it in vain. A handler of one's own is not inherited; the default is."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
