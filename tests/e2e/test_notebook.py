"""The example notebook, executed: from training to served answers that are those of the live model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from handlergen.server.configuration import write_configuration
from handlergen.server.lifecycle import running_server
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings

pytestmark = pytest.mark.e2e

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook" / "digits.ipynb"


def printed(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        yield "".join(each.text for each in cell.get("outputs", ()) if each.get("name") == "stdout")


def test_the_notebook_ends_with_the_live_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert list(printed(notebook)) == [""] * len(notebook.cells)  # no outputs are stored
    config = tmp_path / "config.properties"
    ports: dict[str, Any] = dict(free_port_settings())
    write_configuration(config, server_settings(**ports))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    before = set(psutil.Process().children(recursive=True))
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    try:
        client.execute()
    finally:
        if left := running_server(config):
            left.stop()
    texts = [text for text in printed(notebook) if text]
    right, path, _, compared, running = texts
    assert int(right.split()[0]) > 400, right  # of 450
    assert path.strip() == "model-store/digits.mar"
    answers = json.loads(compared)
    assert (answers["different"], answers["of"]) == (0, 20)
    assert [each["digit"] for each in answers["served"]] == [each["digit"] for each in answers["live"]]
    assert running.strip() == "False"
    assert left is None
    assert set(psutil.Process().children(recursive=True)) <= before
