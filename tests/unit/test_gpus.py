"""Counting the GPUs that a process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.archives.model_config import visible_gpus


@pytest.mark.parametrize(
    ("visible", "installed", "expected"),
    [
        (None, "0\n1\n2\n", 3),
        (None, "", 0),
        ("", "0\n1\n", 0),
        ("-1", "0\n1\n", 0),
        ("1", "0\n1\n", 1),
        ("0,1,-1,2", "0\n1\n2\n3\n", 2),
        ("0,1,2", "0\n", 1),
        ("GPU-1234,GPU-5678", "0\n1\n", 2),
        (None, "No devices were found\n", 0),
    ],
)
def test_visible_gpus(tmp_path: Path, visible: str | None, installed: str, expected: int) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{installed}END\n")
    program.chmod(0o755)
    environ = {"PATH": str(tmp_path)} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert visible_gpus(environ) == expected


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path) -> None:
    assert visible_gpus({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}) == 0
