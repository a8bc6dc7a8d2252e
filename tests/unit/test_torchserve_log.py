"""Lines that TorchServe's worker prints for each batch are dropped, and nothing else is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.protocol import otf_message_handler as protocol

from handlergen.runtime.torchserve import frontend as torchserve_log

# TorchServe leaves the file open when it has read it (ts/metrics/metric_cache_abstract.py).
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO name=.*metrics.yaml.*:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _without_lines(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    root = logging.getLogger()
    before = list(root.filters)
    torchserve_log.leave_out_batch_lines(None)
    yield
    root.filters[:] = before


def torchserves_metrics(directory: Path) -> MetricsCacheYamlImpl:
    config = directory / "metrics.yaml"
    config.write_text("mode: prometheus\ndimensions:\nts_metrics:\nmodel_metrics:\n")
    metrics = MetricsCacheYamlImpl(config_file_path=str(config))
    metrics.model_name = "model"
    return metrics


def test_torchserves_own_reading_tells_no_batch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_retrieve_buffer", lambda _connection, _length: b"I")
    monkeypatch.setattr(protocol, "_retrieve_inference_msg", lambda _connection: [])
    assert protocol.retrieve_msg(None) == (b"I", [])
    assert not caplog.records


def test_all_other_lines_pass(caplog: pytest.LogCaptureFixture) -> None:
    protocol.logging.info("Frontend disconnected.")
    protocol.logging.info("%d visitors", 2)
    protocol.logging.warning("Unable to serialize model output.")
    logging.info(torchserve_log._BATCH_LINE, 1)  # somebody else's
    assert [record.getMessage() for record in caplog.records] == [
        "Frontend disconnected.",
        "2 visitors",
        "Unable to serialize model output.",
        "Backend received inference at: 1",
    ]


def test_gauges_of_the_last_batch_come_once_a_second_and_other_metrics_always(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 100.0
    monkeypatch.setattr("handlergen.runtime.torchserve.frontend.time.monotonic", lambda: now)
    metrics = torchserves_metrics(tmp_path)
    torchserve_log.leave_out_batch_lines(metrics)

    def told() -> list[str]:
        caplog.clear()
        for name in ("HandlerTime", "PredictionTime", "Own"):
            metrics.add_time(name, 1.5, None, "ms")
        return [record.getMessage().split(".")[0].removeprefix("[METRICS]") for record in caplog.records]

    assert told() == ["HandlerTime", "PredictionTime", "Own"]
    assert told() == ["Own"]
    now += 1.0
    assert told() == ["HandlerTime", "PredictionTime", "Own"]


def test_asking_twice_wraps_once(tmp_path: Path) -> None:
    metrics = torchserves_metrics(tmp_path)
    torchserve_log.leave_out_batch_lines(metrics)
    before = list(logging.getLogger().filters), metrics.add_time
    torchserve_log.leave_out_batch_lines(metrics)
    assert (logging.getLogger().filters, metrics.add_time) == before


def test_those_gauges_are_what_torchserve_tells() -> None:
    """With other names they would be printed for every batch, unnoticed."""
    package = Path(str(protocol.__file__)).parent.parent
    prediction, handler = package / "service.py", package / "torch_handler" / "base_handler.py"
    assert 'PREDICTION_METRIC = "PredictionTime"' in prediction.read_text()
    assert '"HandlerTime"' in handler.read_text()
    assert torchserve_log._GAUGES == ("HandlerTime", "PredictionTime")
