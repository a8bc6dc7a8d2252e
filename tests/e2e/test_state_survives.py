"""Default versions and numbers of workers survive the server, however it ended, and whatever order the store has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlergen.client import Client
from handlergen.server.launching import read_state
from handlergen.server.properties import read_properties
from tests.archives import write_mar
from tests.commands import HANDLERGEN, handlergen
from tests.histories import until

pytestmark = pytest.mark.e2e

HANDLER = """
class Version:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        return [self.version] * len(data)
"""


def tiny(path: Path, version: str, workers: int = 1) -> Path:
    """Write an archive whose model answers with its version."""
    config = {"minWorkers": workers, "maxWorkers": workers, "responseTimeout": 60, "startupTimeout": 60}
    model = {"modelName": "tiny", "modelVersion": version, "handler": "handler.py", "configFile": "model.yaml"}
    return write_mar(
        path,
        {**model, "serializedFile": "weights.pt"},
        {
            "handler.py": HANDLER,
            "model.yaml": config,
            "weights.pt": b"12345",
        },
    )


def put(config: Path, path: str, **parameters: Any) -> None:
    """Change a model over plain REST, as curl does."""
    token = json.loads((config.parent / "key_file.json").read_text())["management"]["key"]
    answer = httpx.put(
        read_properties(config).management_address + path,
        params=parameters,
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code in (200, 202), answer.text


def served(config: Path) -> tuple[Mapping[str, int], str, str]:
    """Start a server; return the number of workers of each version, the default version, and stderr."""
    done = handlergen("serve", cwd=config.parent)
    assert done.returncode == 0, done.stderr
    with Client.from_config(config) as client:
        models = client.status()
        (default,) = [model.version for model in models if model.default]
        assert client.predict("tiny", 1).text == default or not client.describe("tiny").workers
        return {model.version: model.ready_workers for model in models}, default, done.stderr


def kill(config: Path) -> None:
    """SIGKILL the server's frontend."""
    state = read_state(config)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: not state.running())


def scaled(config: Path, **versions: int) -> None:
    """Set the numbers of workers of v1 and v2."""
    for version, workers in versions.items():
        put(config, f"/models/tiny/{version[1:]}.0", min_worker=workers, max_worker=workers, synchronous="true")


def test_the_default_version_and_the_workers_survive_a_stop_and_a_crash(project: Callable[..., Path]) -> None:
    config = project()
    store = config.parent / "model-store"
    one, two = tiny(store / "a.mar", "1.0"), tiny(store / "b.mar", "2.0")
    workers, default, said = served(config)
    assert (workers, default) == ({"1.0": 1, "2.0": 1}, "2.0")
    assert "none of them is chosen: a.mar (version 1.0), b.mar (version 2.0); the highest version, 2.0" in said

    put(config, "/models/tiny/1.0/set-default")
    scaled(config, v1=2, v2=0)
    assert handlergen("stop", cwd=config.parent).stdout == "stopped\n"
    # The other way round in the store.
    one, two = one.rename(store / "c.mar"), two.rename(one)
    workers, default, said = served(config)
    assert (workers, default) == ({"1.0": 2, "2.0": 0}, "1.0")
    assert "is chosen" not in said
    assert "tiny 1.0: as many workers as on the last server; its own number is 1\n" in said
    first, second = json.loads(handlergen("status", "--json", cwd=config.parent).stdout)["models"]
    assert (first["version"], first["default"], first["archive"]) == ("1.0", True, "c.mar")
    assert (second["version"], second["default"], second["archive"]) == ("2.0", False, "a.mar")
    assert first["weights"] == {"file": "weights.pt", "bytes": 5}
    shown = handlergen("status", cwd=config.parent).stdout
    assert "tiny 1.0 (default): 2 of 2 workers READY" in shown
    assert "  archive c.mar, weights weights.pt (5 B)\n" in shown

    scaled(config, v1=1, v2=2)
    put(config, "/models/tiny/2.0/set-default")
    kill(config)
    assert served(config)[:2] == ({"1.0": 1, "2.0": 2}, "2.0")

    # Replaced while the server ran: the shutdown's snapshot is newer than the archive.
    tiny(two, "2.0", workers=3)
    assert handlergen("stop", cwd=config.parent).stdout == "stopped\n"
    assert served(config)[:2] == ({"1.0": 1, "2.0": 3}, "2.0")


def test_a_server_that_dies_before_its_workers_are_restored_loses_nothing(project: Callable[..., Path]) -> None:
    config = project()
    tiny(config.parent / "model-store" / "tiny.mar", "1.0")
    assert served(config)[0] == {"1.0": 1}
    scaled(config, v1=2)
    handlergen("stop", cwd=config.parent)

    snapshots = config.parent / "logs" / "config"
    before = set(snapshots.iterdir())
    own_number = '"minWorkers"\\: 1'
    starting = subprocess.Popen([HANDLERGEN, "serve"], cwd=config.parent, stderr=subprocess.DEVNULL)
    try:
        # TorchServe writes the file in pieces.
        until(lambda: any(own_number in path.read_text() for path in {*snapshots.glob("*-startup.cfg")} - before))
        until(lambda: read_state(config) is not None)
    finally:
        starting.kill()
        starting.wait()
    kill(config)
    assert served(config)[0] == {"1.0": 2}


def test_an_update_at_run_time_stays_although_load_models_lists_the_old_archive(project: Callable[..., Path]) -> None:
    config = project()
    old = tiny(config.parent / "model-store" / "old.mar", "1.0")
    text = config.read_text().replace("load_models=all", "load_models=old.mar")
    config.write_text(text.replace("enable_model_api=false", "enable_model_api=true"))
    assert served(config)[0] == {"1.0": 1}
    tiny(config.parent / "model-store" / "new.mar", "2.0")
    with Client.from_config(config) as client:
        client.register("new.mar", initial_workers=1, synchronous=True)
        client.set_default("tiny", "2.0")
        client.unregister("tiny", version="1.0")
    for _ in range(2):
        handlergen("stop", cwd=config.parent)
        workers, _, said = served(config)
        assert workers == {"2.0": 1}
        assert "load_models lists old.mar; loaded is new.mar" in said
    # What is written there now is another list.
    handlergen("stop", cwd=config.parent)
    old.rename(old.with_name("back.mar"))
    config.write_text(config.read_text().replace("load_models=old.mar", "load_models=back.mar"))
    assert served(config)[0] == {"1.0": 1}
