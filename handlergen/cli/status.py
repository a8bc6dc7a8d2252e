"""`handlergen status` and `scale`: show models, workers, devices and queues; set the number of workers."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli.options import connected, server_options, timeout_option, version_option
from handlergen.cli.printing import counted, per_device, print_json, restart_command, warn
from handlergen.cli.requests import advised

if TYPE_CHECKING:
    from handlergen.client import ModelStatus, WorkerStatus
    from handlergen.server.predictor_processes import PredictorStatus


_LOG_TAIL = 2**20  # bytes of the log to search


@click.command("status")
@server_options
def command(*, config: Path, key_file: Path | None, as_json: bool) -> None:
    """Show the models of a running server: workers with their device and memory, and queued requests.

    Works with any TorchServe on this configuration, also one that handlergen did not start.

    \b
    Example:
      handlergen status
      handlergen status --json
    """
    with connected(config, key_file, timeout=30) as client:
        health = client.ping()
        models = client.status()
    why = _load_failures(config, models)
    shared = _predictors(models)
    if as_json:
        rows = [
            {
                **_plain(model),
                "predictors": [asdict(each) for each in shared[_key(model)]],
                "load_failure": why.get(_key(model)),
            }
            for model in models
        ]
        print_json({"health": health, "models": rows})
        return
    click.echo(f"{health}; {counted(len(models), 'model')}")
    if not models:
        click.echo(f"to add one: `handlergen archive SOURCE`, then `{restart_command(config)}`")
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
        for each in shared[_key(model)]:
            restarts = f", {counted(each.restarts, 'restart')}" if each.restarts else ""
            batches = f" of {each.mean_batch:g} requests" if each.mean_batch > 1 else ""
            click.echo(
                f"  predictor     {each.state:<10} pid {each.pid:<8} {each.device:<6} "
                f"{each.memory_bytes / 2**20:>8.0f} MB  {counted(each.predictions, 'prediction')}{batches}{restarts}"
            )
            click.echo(f"    output in {each.log}")
            if each.stages_because:
                click.echo(f"    runs whole requests (stages: predictor): {each.stages_because}")
        if _key(model) in why:
            click.echo("  a worker could not load the model:\n" + textwrap.indent(why[_key(model)].rstrip(), "    "))


def _key(model: ModelStatus) -> str:
    """Return the model's name in TorchServe's log."""
    return f"{model.name}_{model.version}"


def _predictors(models: Sequence[ModelStatus]) -> dict[str, list[PredictorStatus]]:
    """Return the predictor processes of each model whose workers run on this machine."""
    from handlergen.server.predictor_processes import running_predictors, servers_of

    running = running_predictors()
    found = {}
    for model in models:
        servers = servers_of(worker.pid for worker in model.workers) if running else set()
        found[_key(model)] = [
            each
            for each in running
            if each.server in servers and (each.model, each.version) == (model.name, model.version)
        ]
    return found


def _load_failures(config: Path, models: Sequence[ModelStatus]) -> dict[str, str]:
    """Return the traceback of the last failed load of each model that lacks workers, from the end of the log."""
    lacking = {_key(model) for model in models if model.ready_workers < model.min_workers}
    if not lacking:
        return {}
    from handlergen.server.lifecycle import log_directory
    from handlergen.server.worker_log import load_failures

    try:
        with (log_directory(config.parent) / "model_log.log").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _LOG_TAIL))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return {}
    return {failure.model: failure.traceback for failure in load_failures(text) if failure.model in lacking}


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
    """Return the current resident bytes of a local worker, else the server's last measurement."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(worker.pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return int(process.memory_info().rss)
    return worker.memory


@click.command("scale")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=0), required=True, help="Number of workers.")
@version_option
@timeout_option(300.0, "Seconds to wait for READY.")
@server_options
def scale(
    *,
    name: str,
    workers: int,
    version: str | None,
    timeout: float,
    config: Path,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Set the number of workers of model NAME and wait until they are READY.

    Reports the number of workers on each device. The change lasts until the server stops; at the next start the
    archive's number applies again.

    \b
    Example:
      handlergen scale digits --workers 4
    """
    with connected(config, key_file) as client, advised(client, config, name):
        status = client.scale(name, workers, version=version, timeout=timeout)
    if as_json:
        report = {"model": status.name, "workers": status.ready_workers, "placement": status.placement}
        print_json(report, indent=None)
        return
    devices = f" ({per_device(status.placement)})" if status.placement else ""
    click.echo(f"{status.name}: {counted(status.ready_workers, 'worker')} READY{devices}")
    counts = set(status.placement.values())
    if len(counts) > 1 and max(counts) - min(counts) > 1:
        warn(
            "the workers are distributed unevenly, because TorchServe does not restart its device counter after "
            "scaling down. Restart the server to distribute them evenly."
        )
