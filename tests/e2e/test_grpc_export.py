"""`handlergen export grpc`: the client that it writes, compiled from the definitions that it writes, asks a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import handlergen

pytestmark = pytest.mark.e2e


def test_the_written_client_is_answered(
    shared: Callable[..., Any], echo_mar: Path, tmp_path: Path, grpc_tools: Path
) -> None:
    server = shared(echo_mar)
    done = handlergen("export", "grpc", "-o", "clients/grpc", "-c", str(server.config), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    files = ("client.py", "inference.proto", "management.proto", "google/rpc/status.proto", "LICENSE")
    assert written == {f"clients/grpc/{name}" for name in files}
    assert "Apache License" in (tmp_path / "clients/grpc/LICENSE").read_text()

    def ask(token: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "clients/grpc/client.py", "echo", "[1, 2]"]
        environ = {**os.environ, "PYTHONPATH": str(grpc_tools), "TOKEN": token}
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=120
        )

    assert ask(server.key()).stdout == '{"data": "[1, 2]"}\n'
    assert "Token Authorization failed" in ask("wrong").stderr

    (tmp_path / "clients/grpc/client.py").write_text("# mine\n")
    again = handlergen("export", "grpc", "-o", "clients/grpc", cwd=tmp_path)
    assert again.returncode == 1
    assert "clients/grpc/client.py exists with different contents" in again.stderr
