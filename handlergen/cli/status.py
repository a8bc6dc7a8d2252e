"""`handlergen status` and `scale`: show a server's models, and set the number of their workers."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.printing import counted, default_mark, per_device, print_json, restart_command, warn
from handlergen.cli.requests import advised
from handlergen.errors import HandlergenError, ServerError
from handlergen.server.configuration import handlergen_command

if TYPE_CHECKING:
    from handlergen.client import ModelStatus, WorkerStatus
    from handlergen.server.predictor_processes import PredictorStatus
    from handlergen.server.update_state import UnfinishedUpdate

_LOG_TAIL = 2**20  # bytes of the log to search


@click.command("status")
@click.option("--probe", is_flag=True, help="Succeed only if every worker of every model is READY.")
@options.server
def command(*, probe: bool, config: Path, key_file: Path | None, ca: Path | None, as_json: bool) -> None:
    """Show the models of a running server: versions, archives, workers with their device and memory, queued requests.

    Works with any TorchServe on this configuration, also one that handlergen did not start. Without --probe, the exit
    status is 0 whenever the server answers.

    \b
    Example:
      handlergen status
      handlergen status --probe
    """
    from handlergen.server.update_state import UpdateRecords

    with options.connected(config, key_file, ca, timeout=30) as client:
        health = client.ping()
        models = client.status()
    if probe:
        _require_ready(models)
        if as_json:
            print_json({"ready": True}, indent=None)
        else:
            click.echo(f"ready: {counted(len(models), 'model version')}")
        return
    why = _load_failures(config, models)
    updates = UpdateRecords(config).unfinished()
    shared = _predictors(models)
    stored = _weights(config, models)
    examples = {_key(model): _examples(config, model) for model in models}
    if as_json:
        rows = [
            {
                **_plain(model),
                "weights": _weights_as_json(stored[_key(model)]),
                "predictors": [asdict(each) for each in shared[_key(model)]],
                "examples": examples[_key(model)],
                "load_failure": why.get(_key(model)),
            }
            for model in models
        ]
        print_json({"health": health, "models": rows, "updates": [asdict(each) for each in updates]})
        return
    click.echo(f"{health}; {counted(len({model.name for model in models}), 'model')}")
    for update in updates:
        click.echo(_unfinished(update, config))
    if not models:
        click.echo(f"to add one: `handlergen archive SOURCE`, then `{restart_command(config)}`")
    for model in models:
        queue = ""
        if model.queue_waiting is not None and model.queue_free is not None:
            queue = f", queue {model.queue_waiting} of {model.queue_waiting + model.queue_free}"
        click.echo(
            f"\n{model.name} {model.version}{default_mark(model, models)}: {model.ready_workers} of "
            f"{model.min_workers} workers READY, batch size {model.batch_size}{queue}"
        )
        weights = stored[_key(model)]
        click.echo(f"  archive {model.archive}" + (f", weights {weights[0]} ({_size(weights[1])})" if weights else ""))
        click.echo(f"  examples {examples[_key(model)]}")
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


def _require_ready(models: Sequence[ModelStatus]) -> None:
    """Raise ServerError unless every version of every model has as many READY workers as it should have."""
    lacking = [
        f"{model.name} {model.version}: {model.ready_workers} of {model.min_workers} workers READY"
        for model in models
        if not model.ready
    ]
    if lacking:
        raise ServerError("; ".join(lacking))


def _unfinished(update: UnfinishedUpdate, config: Path) -> str:
    """Return a line about an update that runs or was interrupted."""
    plan = update.replacement
    what = f"{plan.action} of {update.model} from {plan.old} to {plan.new}: step {plan.step}"
    if update.pid is not None:
        return f"{what}, process {update.pid}"
    # Only the switch itself leaves open which version is the default.
    serves = {"retire": f"{plan.new} serves", "switch": f"{plan.old} or {plan.new} serves"}.get(
        plan.step, f"{plan.old} serves"
    )
    back = (
        "" if plan.action == "rollback" else f", `{handlergen_command(f'rollback {update.model}', config)}` goes back"
    )
    return f"interrupted {what}, {serves}; the same command goes on{back}"


def _key(model: ModelStatus) -> str:
    """Return the model's name in TorchServe's log."""
    return f"{model.name}_{model.version}"


def _weights(config: Path, models: Sequence[ModelStatus]) -> dict[str, tuple[str, int] | None]:
    """Return name and bytes of the weights of each model whose archive is in the local model store."""
    from handlergen.server.model_store import read_archive
    from handlergen.server.properties import read_properties

    found: dict[str, tuple[str, int] | None] = {_key(model): None for model in models}
    if not config.exists():
        return found
    store = config.resolve().parent / read_properties(config).model_store
    for model in models:
        with contextlib.suppress(HandlergenError):  # not in the local store
            archive = read_archive(store / model.archive)
            found[_key(model)] = archive.weights if archive.version == model.version else None
    return found


_AT_START = {"check": "answered rightly", "warm": "asked", "off": "not asked"}


def _examples(config: Path, model: ModelStatus) -> str:
    """Return how many examples the archive in the local model store has, and what was done with them at start."""
    from handlergen.archives.mar import archived_examples, read_mar
    from handlergen.server.properties import read_properties

    with contextlib.suppress(HandlergenError, OSError):
        path = config.resolve().parent / read_properties(config).model_store / model.archive
        number, archive = len(archived_examples(path)), read_mar(path, whole=False)
        if number and archive.bundle is not None and archive.version == model.version:
            return f"{number} {_AT_START[archive.bundle.settings.examples_at_start]} by each worker before READY"
    return "none"


def _weights_as_json(weights: tuple[str, int] | None) -> dict[str, str | int] | None:
    return {"file": weights[0], "bytes": weights[1]} if weights else None


def _size(number: int) -> str:
    """Return a number of bytes as `512 B`, `4.2 kB`, `98.0 MB` or `1.3 GB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"


def _predictors(models: Sequence[ModelStatus]) -> dict[str, list[PredictorStatus]]:
    """Return the predictor processes of each model whose workers run on this machine."""
    from handlergen.server.predictor_processes import running_predictors, servers_of

    running = running_predictors()
    found: dict[str, list[PredictorStatus]] = {_key(model): [] for model in models}
    for model in models if running else ():
        servers = servers_of(worker.pid for worker in model.workers)
        for each in running:
            if each.server in servers and (each.model, each.version) == (model.name, model.version):
                found[_key(model)].append(each)
    return found


def _load_failures(config: Path, models: Sequence[ModelStatus]) -> dict[str, str]:
    """Return reason and traceback of the last failed load of each model that lacks workers, from the end of the log."""
    lacking = {_key(model) for model in models if model.ready_workers < model.min_workers}
    if not lacking:
        return {}
    from handlergen.server.lifecycle import log_directory
    from handlergen.server.readiness import load_failures

    try:
        with (log_directory(config.parent) / "model_log.log").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _LOG_TAIL))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return {}
    failures = [each for each in load_failures(text) if each.model in lacking]
    return {each.model: f"{each.reason}\n{each.traceback}".rstrip() for each in failures}


def _plain(model: ModelStatus) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "default": model.default,
        "archive": model.archive,
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

    with contextlib.suppress(psutil.Error, ValueError):  # its id is -1 while it starts
        process = psutil.Process(worker.pid)
        if any("model_service_worker" in part for part in process.cmdline()):
            return int(process.memory_info().rss)
    return worker.memory


@click.command("scale")
@click.argument("name")
@click.option("--workers", type=click.IntRange(min=0), required=True, help="Number of workers.")
@options.version
@click.option("--now", is_flag=True, help="End surplus workers at once, with the requests that they have in hand.")
@options.timeout(300.0, "Seconds to wait for READY.")
@options.server
def scale(
    *,
    name: str,
    workers: int,
    version: str | None,
    now: bool,
    timeout: float,
    config: Path,
    key_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Set the number of workers of model NAME and wait until they are READY.

    Surplus workers first answer the requests that they have in hand. Reports the number of workers on each device.
    `handlergen serve` starts the model with this number again, until its archive is replaced.

    \b
    Example:
      handlergen scale digits --workers 4
    """
    from handlergen.server.lifecycle import log_directory
    from handlergen.server.readiness import ServerLogs, check_workers

    logs = ServerLogs(log_directory(config.parent))
    with options.connected(config, key_file, ca) as client, advised(client, config, name):
        notice = partial(click.echo, err=True)
        status = client.scale(
            name,
            workers,
            version=version,
            timeout=timeout,
            now=now,
            notice=notice,
            progress=lambda status: check_workers(logs, (status.name, status.version), scaling=True),
        )
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
