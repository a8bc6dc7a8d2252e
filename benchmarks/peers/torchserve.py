"""TorchServe, the version that handlergen uses, with handlers written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from handlergen.server.java import find_java
from peers.subject import APPS, Launch, Place, Subject
from peers.workloads import MODELS

WORKERS = 4
PATH = "/predictions/served"


def program(name: str) -> Path:
    """A command of the environment that this runs in."""
    return Path(sys.executable).parent / name


def configure(place: Place) -> None:
    """handlergen's config.properties; without tokens, which cost every subject the same."""
    names = ("inference", "management", "metrics", "grpc-inference", "grpc-management")
    ports = [part for name, port in zip(names, place.ports, strict=False) for part in (f"--{name}-port", port)]
    command = [program("handlergen"), "config", "--no-token-auth", *map(str, ports)]
    subprocess.run(command, cwd=place.directory, check=True, stdout=subprocess.DEVNULL)


def _archive(place: Place, settings: dict[str, object]) -> None:
    (place.directory / "model-store").mkdir()
    command = [
        *(program("torch-model-archiver"), "--model-name", "served", "--version", "1.0"),
        *("--handler", APPS / "torchserve_handler.py", "--export-path", place.directory / "model-store"),
    ]
    if settings:
        config = place.directory / "model-config.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        command += ["--config-file", config]
    # It deletes $TMPDIR/NAME before it starts.
    environ = os.environ | {"TMPDIR": str(place.directory)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)


def _batching(place: Place) -> dict[str, object]:
    size = place.workload.batch_size
    return {"batchSize": size, "maxBatchDelay": 1} if size > 1 else {}


def _stock(place: Place) -> Launch:
    """Nothing set but where it listens, and batches where they pay: as many workers as there are cores."""
    workers = {"minWorkers": os.cpu_count(), "maxWorkers": os.cpu_count()}  # what it takes when none is said
    _archive(place, workers | _batching(place) if place.workload.batch_size > 1 else {})
    inference, management, metrics, grpc, grpc_management, worker = place.ports[:6]
    (place.directory / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc}\n"
        f"grpc_management_port={grpc_management}\n"
        f"initial_worker_port={worker}\n"
        "disable_token_authorization=true\n"
    )
    command = [program("torchserve"), "--start", "--foreground", "--ncs", "--models", "served=served.mar"]
    options = ["--model-store", "model-store", "--ts-config", "config.properties"]
    temp = {"JAVA_HOME": str(find_java().home), "TEMP": str(place.directory), "PYTHONPATH": str(MODELS)}
    return Launch([*command, *options], temp)


def _same_settings(place: Place) -> Launch:
    """handlergen's server configuration and number of workers, and a plain flock around predict."""
    _archive(place, {"minWorkers": WORKERS, "maxWorkers": WORKERS, "deviceType": "cpu", **_batching(place)})
    configure(place)
    return Launch([program("handlergen"), "serve", "--foreground"], {"PEERS_LOCK": str(place.directory / "lock")})


SUBJECTS = (
    Subject(
        "torchserve",
        "TorchServe's defaults, handler by hand",
        _stock,
        path=PATH,
        distributions=("torchserve",),
    ),
    Subject(
        "torchserve-flock",
        "handlergen's settings, handler by hand with flock",
        _same_settings,
        path=PATH,
        serializes="flock",
        distributions=("torchserve",),
    ),
)
