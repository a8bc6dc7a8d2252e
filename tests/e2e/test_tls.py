"""One TorchServe with TLS, used by every verb and over both protocols; its certificate names another host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlergen.client import Client
from handlergen.errors import TlsError
from tests.archives import make_archive
from tests.certificates import Authority
from tests.commands import handlergen

pytestmark = pytest.mark.e2e

SOURCE = "def predict(inputs):\n    return inputs\n"


@pytest.fixture(scope="module")
def server(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`config --host 0.0.0.0` writes these settings (tests/unit/test_tls.py)."""
    home = tmp_path_factory.mktemp("tls")
    Authority(home / "ca.pem").issue(home, "models.example.com")
    Authority(home / "strange.pem")
    return torchserve_module(
        make_archive(home, "plain", SOURCE, devices="cpu"),
        directory=home,
        model_api=True,
        certificate_file="cert.pem",
        private_key_file="key.pem",
        ca_file="ca.pem",
        tls_name="models.example.com",
    )


def run(server: Any, *arguments: str) -> str:
    """Run a verb in the server's directory; return what it prints."""
    done = handlergen(*arguments, cwd=server.directory, timeout=250)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def test_every_verb_that_talks_to_the_server(server: Any) -> None:
    assert "1 of 1 workers READY" in run(server, "status")
    assert run(server, "status", "--probe") == "ready: 1 model version\n"
    assert run(server, "invoke", "plain", "--data", "[1]") == "[1]"
    assert run(server, "invoke", "plain", "--data", "[1]", "--stream") == "[1]"
    assert run(server, "invoke", "plain", "--data", "[1]", "--grpc") == "[1]"
    assert run(server, "token", "--management").strip() == server.key("management")
    assert "2 workers READY" in run(server, "scale", "plain", "--workers", "2")
    for protocol in ([], ["--grpc"]):
        load = ["--data", "1", "--duration", "3", "--warmup", "0.1", "--clients", "2", "--json"]
        measured = json.loads(run(server, "bench", "plain", *load, *protocol))
        assert measured["answered"] > 0
        assert measured["errors"] == {}
    assert "TLS: the certificate is valid" in handlergen("doctor", cwd=server.directory, timeout=250).stdout
    (server.directory / "plain.py").write_text(SOURCE.replace("return inputs", "return [inputs]"))
    run(server, "update", "plain", "plain.py", "--devices", "cpu")  # registers over gRPC
    assert run(server, "invoke", "plain", "--data", "1") == "[1]"


def test_certificates_are_verified_over_both(server: Any) -> None:
    def said(**how: Any) -> list[str]:
        settings = replace(server.settings, **how.pop("changed", {}))
        found = []
        with Client(settings, directory=server.directory, timeout=30, **how) as client:
            for call in (client.predict, client.predict_grpc, client.grpc_management.scale):
                with pytest.raises(TlsError) as caught:
                    call("plain", 1)
                found.append(caught.value.message)
        return found

    assert all("is refused: " in text for text in said(ca=server.directory / "strange.pem"))
    assert all(" mismatch" in text for text in said(changed={"tls_name": ""}))
    assert all(" mismatch" in text for text in said(changed={"tls_name": "other.example.com"}))
    refused = handlergen("invoke", "plain", "--data", "1", "--ca", "strange.pem", cwd=server.directory)
    assert refused.returncode == 5
    assert "--ca PATH" in refused.stderr


def test_the_exported_grpc_client_verifies_too(server: Any, grpc_tools: Path) -> None:
    run(server, "export", "grpc", "-o", "client")
    environ = {**os.environ, "PYTHONPATH": str(grpc_tools), "TOKEN": server.key()}

    def ask(ca: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "client/client.py", "plain", "[1]"]
        return subprocess.run(
            command,
            cwd=server.directory,
            env={**environ, "SSL_CERT_FILE": ca},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert json.loads(ask("ca.pem").stdout) in ([1], [[1]])  # before and after the update
    assert "UNAVAILABLE" in ask("strange.pem").stderr


def test_a_client_without_tls_learns_that_it_is_needed(server: Any) -> None:
    host, port = server.settings.addresses()["inference"]
    plain = replace(server.settings, inference_address=f"http://{host}:{port}", grpc_tls=False)
    with Client(plain, directory=server.directory, timeout=30) as client:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(TlsError, match="accepts only TLS"):
                call("plain", 1)


def test_serve_refuses_a_certificate_before_torchserve_starts(tmp_path: Path, project: Callable[..., Path]) -> None:
    config = project()
    Authority(tmp_path / "ca.pem").issue(config.parent, "127.0.0.1", days=-1)
    lines = config.read_text().replace("=http://", "=https://").replace("enable_grpc_ssl=false", "enable_grpc_ssl=true")
    config.write_text(lines + "certificate_file=cert.pem\nprivate_key_file=key.pem\n")
    done = handlergen("serve", "--timeout", "60", cwd=config.parent, timeout=120)
    assert done.returncode == 1
    assert "expired on " in done.stderr
    assert not (config.parent / "logs").exists()
