"""The worker's line for each batch is dropped, and nothing else is."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from handlergen.runtime import torchserve_log


@pytest.fixture(autouse=True)
def _filtered() -> object:
    torchserve_log.leave_out_batch_lines()
    yield
    logging.getLogger().removeFilter(torchserve_log._is_news)


def test_only_the_batch_line_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logging.info(torchserve_log._BATCH_LINE, 1_700_000_000.0)
    logging.info("Backend received a visitor")
    logging.getLogger("user").info("Backend received inference at: once, by hand")
    assert [record.getMessage() for record in caplog.records] == [
        "Backend received a visitor",
        "Backend received inference at: once, by hand",
    ]


def test_it_is_the_line_that_torchserve_logs() -> None:
    """A TorchServe with another text would bring the line back unnoticed."""
    found = importlib.util.find_spec("ts")
    assert found is not None
    assert found.origin is not None
    text = (Path(found.origin).parent / "protocol" / "otf_message_handler.py").read_text()
    assert f'logging.info("{torchserve_log._BATCH_LINE}"' in text


def test_asking_twice_filters_once() -> None:
    torchserve_log.leave_out_batch_lines()
    assert logging.getLogger().filters.count(torchserve_log._is_news) == 1
