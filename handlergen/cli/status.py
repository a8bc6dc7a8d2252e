"""`handlergen status`: models, workers, devices, queue."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli.serving_options import config_option, json_option, key_file_option, open_client

if TYPE_CHECKING:
    from handlergen.client import ModelStatus, WorkerStatus


@click.command("status")
@config_option
@key_file_option
@json_option
def command(*, config: Path, key_file: Path | None, as_json: bool) -> None:
    """Show the models of a running server: workers with their device and memory, waiting requests.

    Works with any TorchServe on this configuration, whoever started it.

    \b
    Example:
      handlergen status
      handlergen status --json
    """
    with open_client(config, key_file, timeout=30) as client:
        health = client.ping()
        models = client.status()
    if as_json:
        click.echo(json.dumps({"health": health, "models": [_plain(model) for model in models]}, indent=2))
        return
    click.echo(f"{health}; {len(models)} model{'' if len(models) == 1 else 's'}")
    for model in models:
        queue = ""
        if model.queue_waiting is not None and model.queue_free is not None:
            queue = f", queue {model.queue_waiting} of {model.queue_waiting + model.queue_free}"
        click.echo(
            f"\n{model.name} {model.version}: {model.ready_workers} of {model.min_workers} workers READY, "
            f"batch size {model.batch_size}{queue}"
        )
        for worker in model.workers:
            click.echo(
                f"  worker {worker.id:<6} {worker.state:<10} pid {worker.pid:<8} {worker.device:<6} "
                f"{_memory(worker) / 2**20:>8.0f} MB"
            )


def _plain(model: ModelStatus) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "ready": model.ready,
        "min_workers": model.min_workers,
        "max_workers": model.max_workers,
        "batch_size": model.batch_size,
        "max_batch_delay_ms": model.max_batch_delay_ms,
        "response_timeout_s": model.response_timeout_s,
        "queue": {"waiting": model.queue_waiting, "free": model.queue_free},
        "placement": model.placement,
        "workers": [
            {
                "id": worker.id,
                "state": worker.state,
                "pid": worker.pid,
                "device": worker.device,
                "memory_bytes": _memory(worker),
            }
            for worker in model.workers
        ],
    }


def _memory(worker: WorkerStatus) -> int:
    """Resident bytes now, where the worker runs on this machine; else what the server measured last."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(worker.pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return int(process.memory_info().rss)
    return worker.memory
