"""One server with what others do not have: two GPUs, tokens that expire soon, and metrics of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.archives import make_archive
from tests.histories import until

pytestmark = pytest.mark.e2e

NVIDIA_SMI = """#!/bin/sh
case "$*" in
*query-gpu=index*) echo index; echo 0; echo 1 ;;
*) echo "utilization.gpu [%], utilization.memory [%], memory.used [MiB]"; echo "0 %, 0 %, 400 MiB" ;;
esac
"""

METRICS = """
dimensions: []
ts_metrics: {}
model_metrics: {gauge: [{name: HandlerTime, unit: ms, dimensions: [ModelName, Level]}]}
"""


@pytest.fixture(scope="module")
def server(
    torchserve_module: Callable[..., Any], make_mar: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Two GPUs as far as TorchServe can tell: an nvidia-smi that says so comes first on the PATH."""
    home = tmp_path_factory.mktemp("settings")
    (home / "nvidia-smi").write_text(NVIDIA_SMI)
    (home / "nvidia-smi").chmod(0o755)
    (home / "metrics.yaml").write_text(METRICS)
    return torchserve_module(
        make_mar("echo", workers=2),
        make_archive(home, "plain", "def predict(inputs):\n    return inputs\n", devices="cpu"),
        directory=home,
        environ={"PATH": f"{home}:{os.environ['PATH']}"},
        token_expiration_min=0.05,
        other=(("metric_time_interval", "1"), ("model_metrics_auto_detect", "true")),
    )


def test_tokens_are_renewed_when_they_expire(server: Any) -> None:
    first = server.key()
    time.sleep(3.5)
    assert server.client.predict("echo", 1).json() == {"body": 1}
    assert server.client.models() == ["echo", "plain"]
    time.sleep(3.5)
    assert server.client.predict_grpc("echo", 1).json() == {"data": "1"}
    assert first != server.key()


def test_on_a_gpu_host_the_system_metrics_work_without_nvgpu(server: Any) -> None:
    assert server.client.describe("echo").placement == {"gpu:0": 1, "gpu:1": 1}
    until(lambda: all(worker.memory > 10 * 2**20 for worker in server.client.describe("echo").workers), within_s=60)
    assert "Traceback" not in server.log_text()
    assert "nvgpu" not in server.log_text()


def test_a_server_with_metrics_of_its_own_hears_nothing(server: Any) -> None:
    """It would log every line and drop it: model_metrics_auto_detect is off."""
    assert server.client.predict("plain", 1).json() == 1
    time.sleep(2)
    assert "handlergen_" not in httpx.get(f"{server.settings.metrics_address}/metrics", trust_env=False).text
