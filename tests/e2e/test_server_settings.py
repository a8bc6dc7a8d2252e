"""One server with what others do not have: two GPUs, tokens that expire soon, and metrics of its own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_a_token_that_ended_is_renewed_and_the_request_sent_again(server: Any) -> None:
    """The client takes the token for valid, as with a clock that is slow; many threads notice at once."""
    calls: list[Callable[[], Any]] = [
        lambda: server.client.predict("echo", 1).json() == {"body": 1},
        lambda: b"".join(server.client.stream("echo", 1)) == b'{"body": 1}',
        lambda: server.client.models() == ["echo", "plain"],
        lambda: server.client.predict_grpc("echo", 1).json() == {"data": "1"},
        lambda: server.client.grpc_management.models() == ["echo", "plain"],
    ]
    for call in calls:
        ended = _last_for_ever(server)
        assert call()
        assert server.key("inference") != ended[0] or server.key("management") != ended[1]
    _last_for_ever(server)
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda _: server.client.predict("echo", 1).json() == {"body": 1}, range(64)))


def _last_for_ever(server: Any) -> tuple[str, str]:
    """Write another end of the tokens into the key file, and wait until they have really ended; return them."""
    for kind in ("inference", "management"):
        server.client.token(kind, renew=True)
    text = (server.directory / "key_file.json").read_text()
    (server.directory / "key_file.json").write_text(re.sub(r'"20\d\d-', '"2999-', text))
    keys = server.key("inference"), server.key("management")
    headers = {"Authorization": f"Bearer {keys[0]}"}
    ping = f"{server.settings.inference_address}/ping"
    until(lambda: httpx.get(ping, headers=headers, trust_env=False).status_code == 400, within_s=60)
    headers = {"Authorization": f"Bearer {keys[1]}"}
    models = f"{server.settings.management_address}/models"
    until(lambda: httpx.get(models, headers=headers, trust_env=False).status_code == 400, within_s=60)
    return keys


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
