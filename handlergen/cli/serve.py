"""`handlergen serve` and `stop`: start and stop TorchServe."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.errors import interrupted_by
from handlergen.cli.printing import counted, default_mark, errors_as_json, per_device, print_json, restart_command, warn
from handlergen.errors import ServerError
from handlergen.server.configuration import archive_command, handlergen_command

if TYPE_CHECKING:
    from handlergen.client import ModelStatus
    from handlergen.server.draining import StopReport
    from handlergen.server.lifecycle import RunningServer
    from handlergen.server.readiness import Progress


@click.command("serve")
@options.config("The server's configuration; written with defaults if it does not exist.")
@click.option(
    "--foreground", is_flag=True, help="Stay in the foreground and show the server's output; Ctrl-C stops it."
)
@options.timeout(600.0, "Seconds to wait for READY.")
@options.drain("when a signal stops the server, with --foreground")
@click.option("--keep", is_flag=True, help="Leave the server running when a model fails to load.")
@click.option(
    "--require-signature",
    type=options.FILE,
    metavar="PUBKEY",
    help="Refuse to start unless every archive is signed with this Ed25519 key (PEM or OpenSSH).",
)
@click.option(
    "--trace",
    type=options.DIRECTORY,
    help="Record the start and end of each request's stages in this directory, for `bench` and `trace`.",
)
@options.json
def command(*, config: Path, foreground: bool, trace: Path | None, as_json: bool, **arguments: Any) -> None:
    """Start TorchServe and wait until every worker of every model is READY.

    The server keeps running in the background; `handlergen stop` stops it. If a worker cannot load its model, serve
    prints the traceback of the model's code and stops the server.

    Each model has the default version, and each version the number of workers, that they had on the last server of
    this configuration. An archive that was replaced since starts with its own number of workers.

    With --foreground, Ctrl-C, SIGTERM and a closed terminal stop the server like `handlergen stop`, which answers the
    requests under way; a second one ends it at once.

    \b
    Example:
      handlergen archive digits.py
      handlergen serve
      handlergen invoke digits --file three.png
    """
    with errors_as_json(as_json):
        _serve(config, foreground=foreground, as_json=as_json, trace=trace, **arguments)


@interrupted_by(signal.SIGTERM, signal.SIGHUP)
def _serve(
    config: Path, *, foreground: bool, drain: float, as_json: bool, trace: Path | None, **arguments: Any
) -> None:
    """Start the server and report it; `arguments` are further ones of `serve`."""
    from handlergen.runtime.telemetry.recording import TRACE_DIR_VARIABLE
    from handlergen.server.launching import uninterrupted
    from handlergen.server.lifecycle import running_server, serve

    _configure(config)
    environ = {**os.environ, **({TRACE_DIR_VARIABLE: str(trace.absolute())} if trace else {})}
    before = running_server(config)
    try:
        with _reported(quiet=as_json) as progress:
            running = serve(config, environ=environ, console=foreground, progress=progress, **arguments)
        warn(*running.warnings)
        for (name, version), own in running.restored.items():
            click.echo(f"{name} {version}: as many workers as on the last server; its own number is {own}", err=True)
        if as_json:
            print_json(_as_json(running))
        else:
            _print(running)
        if foreground:
            click.echo("\nCtrl-C stops the server.", err=True)
            stopped = running.wait()
            running.stop()
            if not stopped:
                raise ServerError(
                    "TorchServe ended although nobody stopped it",
                    hint=f"{running.log_directory / 'ts_log.log'} may say why; the system's log names what it killed",
                )
            click.echo("stopped", err=True)
    except KeyboardInterrupt:
        # The server may have started before serve returned; do not stop one that ran before.
        marker = before.state.marker if before else None
        try:
            started = running_server(config)
            if started and started.state.marker != marker:
                if foreground and drain:
                    with contextlib.suppress(OSError):  # the terminal was closed
                        click.echo(
                            f"stopping: requests under way have {drain:g} s; Ctrl-C again ends the server at once",
                            err=True,
                        )
                report = started.stop(drain=drain)
                if report:
                    warn(*_unanswered(report))
                if foreground:
                    click.echo("stopped", err=True)
                    return
        finally:  # a second signal may come at any moment
            with uninterrupted():
                left = running_server(config)
                if left and left.state.marker != marker:
                    left.stop(drain=0)
        raise


def _configure(config: Path) -> None:
    """Write the configuration if it does not exist; warn about problems in it and in the model store."""
    from handlergen.server.configuration import write_configuration
    from handlergen.server.doctor.configuration import exposures
    from handlergen.server.model_store import configuration_warnings, store_has_requirements
    from handlergen.server.properties import ServerSettings, read_properties, unknown_keys

    if not config.exists():
        usual = ServerSettings()
        requirements = store_has_requirements(config.parent / usual.model_store)
        for path in write_configuration(config, replace(usual, install_requirements=requirements)):
            click.echo(f"wrote {path}", err=True)
    settings = read_properties(config)
    warn(*unknown_keys(settings), *configuration_warnings(config, settings))
    # Warn prominently, because another person may have made these settings long ago.
    opened = exposures(settings)
    if opened:
        click.secho(f"WARNING: {config} exposes this server to others.", err=True, fg="red", bold=True)
    for one in opened:
        click.echo(f"  - {one.what}", err=True)
        click.echo(textwrap.fill(one.why, 100, initial_indent=" " * 4, subsequent_indent=" " * 4), err=True)
        click.echo(f"    To change that: {one.fix}", err=True)


@contextlib.contextmanager
def _reported(*, quiet: bool) -> Iterator[Progress]:
    """Yield a function that prints the progress: on a terminal one changing line, elsewhere a line per change."""
    terminal = sys.stderr.isatty()
    last = ""

    def progress(models: Sequence[ModelStatus]) -> None:
        nonlocal last
        names = [model.name for model in models]
        versions = [f" {model.version}" if names.count(model.name) > 1 else "" for model in models]
        text = ", ".join(
            f"{model.name}{version}: {model.ready_workers}/{model.min_workers} workers READY"
            for model, version in zip(models, versions, strict=True)
        )
        if not quiet and text != last:
            last = text
            click.echo(f"\r\x1b[K{text}" if terminal else text, err=True, nl=not terminal)

    try:
        yield progress
    finally:
        if last and terminal:
            click.echo(err=True)


def _as_json(running: RunningServer) -> dict[str, Any]:
    return {
        "pid": running.pid,
        "config": running.state.config,
        "addresses": {purpose: f"{host}:{port}" for purpose, (host, port) in running.settings.addresses().items()},
        "key_file": str(running.key_file) if running.key_file else None,
        "logs": str(running.log_directory),
        "models": {
            model.name: {"version": model.version, "workers": model.ready_workers, "placement": model.placement}
            for model in running.models
            if model.default
        },
    }


def _print(running: RunningServer) -> None:
    from handlergen.project.settings import shown

    settings = running.settings
    config = Path(running.state.config)
    addresses = {key: f"{host}:{port}" for key, (host, port) in settings.addresses().items()}
    for model in running.models:
        workers = counted(model.ready_workers, "worker")
        devices = per_device(model.placement) or "none"
        click.echo(f"{model.name} {model.version}{default_mark(model, running.models)}: {workers} READY ({devices})")
    if not running.models:
        store = running.directory / settings.model_store
        click.echo(f"no models: {shown(store)} has no archive that load_models selects. To add one:")
        click.echo(f"  {archive_command(store)}\n  {restart_command(config)}")
    click.echo()
    click.echo(f"predictions  {settings.inference_address}   gRPC {addresses['gRPC inference']}")
    click.echo(f"management   {settings.management_address}   gRPC {addresses['gRPC management']}")
    click.echo(f"metrics      {settings.metrics_address}/metrics")
    click.echo(f"logs         {running.log_directory}")
    if running.key_file:
        click.echo(f"tokens       {running.key_file}")
    click.echo(f"process      {running.pid}, to stop it: {handlergen_command('stop', config)}")
    if running.models:
        name = running.models[0].name
        click.echo("\nTry it:")
        click.echo(f"  {handlergen_command(f'invoke {name}', config)} --data 'JSON'     (or --file PATH)")
        click.echo(f"  {_curl(running, config, name)}")


def _curl(running: RunningServer, config: Path, model: str) -> str:
    """Return a request with curl: to the name in the certificate, with the token, which `ps` must not show."""
    settings, name = running.settings, running.settings.tls_name
    host, port = settings.addresses()["inference"]
    address = settings.inference_address
    parts = [f"{handlergen_command('token --header', config)} | curl -H @-" if running.key_file else "curl"]
    if settings.ca_file:
        parts.append(f"--cacert {shlex.quote(str(running.directory / settings.ca_file))}")
    if name not in ("", host):
        parts.append(f"--connect-to {name}:{port}:{host}:{port}")
        address = f"https://{name}:{port}"
    return " ".join([*parts, "-H 'Content-Type: application/json' -d 'JSON'", f"{address}/predictions/{model}"])


@click.command("stop")
@options.config()
@options.drain("before the server ends")
@options.timeout(30.0, "Seconds that the server has to end after that, before it is killed.", zero=True)
@options.json
@interrupted_by(signal.SIGTERM, signal.SIGHUP)
def stop(*, config: Path, drain: float, timeout: float, as_json: bool) -> None:
    """Stop the server that `handlergen serve` started on this configuration, including its workers.

    Requests under way are answered; later ones get 503 `Stopping`, and are not begun. Ctrl-C ends the server at
    once.

    Other servers are not touched: use `torchserve --stop` for a TorchServe that was started by hand.

    \b
    Example:
      handlergen stop
      handlergen stop -c other/config.properties --drain 120
    """
    from handlergen.server import lifecycle as server

    report = server.stop(config, timeout=timeout, drain=drain)
    if as_json:
        requests = {} if report is None else asdict(report)
        print_json({"stopped": report is not None, "config": str(config), **requests}, indent=None)
        return
    click.echo("stopped" if report else f"no server started by `handlergen serve` is running on {config}")
    if report:
        warn(*_unanswered(report))
    elif not config.exists():
        hint = f"there is no {config} here: change to the server's directory, or select one with -c"
        click.echo(f"Hint: {hint}", err=True)


def _unanswered(report: StopReport) -> Iterator[str]:
    """Yield a sentence for each thing that may have cost a request its answer."""
    for model, number in report.busy.items():
        verb = "was" if number == 1 else "were"
        yield (
            f"{counted(number, 'worker')} of {model} {verb} still busy after {report.drain_s:g} s: requests in "
            "hand, and those that waited for them, were not answered"
        )
    for model in report.not_refusing:
        yield (
            f"the workers of {model} cannot be told to refuse requests, because this version of handlergen did not "
            "pack it: what they had in hand was perhaps not answered"
        )
    if report.unread:
        clients = counted(report.unread, "client")
        yield f"{clients} had not received all of the answer after {report.drain_s:g} s: it was cut off"
    if report.failure:
        yield f"the server was ended at once, because it could not be told to refuse requests: {report.failure}"
