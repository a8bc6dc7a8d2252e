"""`handlergen update` and `rollback`: replace the default version of a running model, and go back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.errors import interrupted_by
from handlergen.cli.printing import counted, errors_as_json, per_device, print_json, warn
from handlergen.project.settings import SETTINGS
from handlergen.server.configuration import handlergen_command

if TYPE_CHECKING:
    from handlergen.server.shadow import ShadowReport
    from handlergen.server.update import UpdateReport

_KEEP = "Leave the other version registered: a rollback is then only the switch."
_DRAIN = "Seconds that the other version has for its requests after the switch."


class Share(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A share of requests: `10%`, or `0.1`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a number of 0 to 1."""
        if isinstance(value, float):
            return value
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            share = -1
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share such as 10% or 0.1", param, ctx)
        return share


@click.command("update")
@click.argument("model", metavar="NAME")
@click.argument("source", metavar="SOURCE_OR_MAR", type=click.Path(path_type=Path))
@click.option("--keep", is_flag=True, help=_KEEP)
@click.option(
    "--shadow", "share", type=Share(), metavar="P%", help="Send this share of live requests to the new version, too."
)
@click.option(
    "--shadow-for",
    type=click.FloatRange(min=0, max=600, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds of requests for the shadow.",
)
@click.option(
    "--max-different", type=Share(), metavar="P%", help="Stop when the shadow answers more requests differently."
)
@options.timeout(600.0, "Seconds to wait for READY.")
@click.option("--drain", type=click.FloatRange(min=0), default=30.0, show_default=True, help=_DRAIN)
@options.config()
@options.json
@options.settings(*(name for name in SETTINGS if name not in ("source", "name", "config")))
def command(
    model: str,
    source: Path,
    *,
    keep: bool,
    share: float | None,
    shadow_for: float,
    max_different: float | None,
    timeout: float,
    drain: float,
    config: Path,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Replace the default version of model NAME, and lose no request.

    The new version is archived into the model store, loaded beside the running one, and becomes the default when all of
    its workers are READY. Then the old version answers the requests that it has and is unregistered; its archive moves
    to MODEL_STORE/.previous for `handlergen rollback`. If the new version cannot be loaded, the old one goes on
    serving. The same command goes on from where an earlier one was interrupted.

    A source is archived under its own version, or, if that is taken, under the next one: 1.0 -> 1.1. The options after
    --json are settings for a source; the setting `config` is read from handlergen.yaml only.

    \b
    Example:
      handlergen update digits digits.py --weights better.pt
      handlergen update digits digits-2.mar --keep --shadow 10%
      handlergen rollback digits
    """
    from handlergen.server.replacing import Shadow
    from handlergen.server.update import update

    if share == 0 or (share is None and max_different is not None):
        raise click.UsageError("--max-different and --shadow-for need --shadow with a share above 0")
    shadow = Shadow(share, shadow_for, max_different) if share is not None else None
    _run(
        model,
        config,
        as_json,
        lambda: update(
            model,
            source,
            config=config,
            keep=keep,
            shadow=shadow,
            timeout=timeout,
            drain_s=drain,
            progress=_say,
            **overrides,
        ),
    )


@click.command("rollback")
@click.argument("model", metavar="NAME")
@click.option("--keep", is_flag=True, help=_KEEP)
@options.timeout(600.0, "Seconds to wait for READY.")
@click.option("--drain", type=click.FloatRange(min=0), default=30.0, show_default=True, help=_DRAIN)
@options.config()
@options.json
def rollback(*, model: str, keep: bool, timeout: float, drain: float, config: Path, as_json: bool) -> None:
    """Make the version of model NAME that the last update replaced the default again.

    Twice is forth and back. An update that was interrupted before it switched is removed instead.

    \b
    Example:
      handlergen rollback digits
    """
    from handlergen.server import update as api

    _run(
        model,
        config,
        as_json,
        lambda: api.rollback(model, config=config, keep=keep, timeout=timeout, drain_s=drain, progress=_say),
    )


def _say(text: str) -> None:
    click.echo(text, err=True)


@interrupted_by(signal.SIGTERM, signal.SIGHUP)
def _run(name: str, config: Path, as_json: bool, work: Callable[[], UpdateReport]) -> None:
    """Do the work and print its report; when it is interrupted, say how to go on."""
    try:
        with errors_as_json(as_json):
            report = work()
    except KeyboardInterrupt:
        click.echo(
            f"interrupted: the same command goes on, `{handlergen_command(f'rollback {name}', config)}` goes back, and "
            f"`{handlergen_command('status', config)}` shows which version serves",
            err=True,
        )
        raise
    warn(*report.warnings)
    if as_json:
        print_json(_as_json(report))
        return
    workers = counted(report.status.ready_workers, "worker")
    devices = f" ({per_device(report.status.placement)})" if report.status.placement else ""
    if report.shadow is not None:
        _print_shadow(report.shadow, report)
    said = {
        "updated": f"{name}: {report.old} -> {report.new}, ",
        "rolled back": f"{name}: back from {report.old} to {report.new}, ",
        "unchanged": f"{name} {report.new} has these contents already: nothing to do; ",
        "undone": f"{name}: the unfinished update was removed; {report.new} serves, ",
    }
    click.echo(f"{said[report.action]}{workers} READY{devices}")
    if report.old != report.new:
        kept = "is still registered" if report.kept else "was unregistered"
        click.echo(f"{report.old} {kept}; to go back: `{handlergen_command(f'rollback {name}', config)}`")


def _print_shadow(shadow: ShadowReport, report: UpdateReport) -> None:
    click.echo(
        f"shadow: {counted(shadow.compared, 'answer')} compared, {shadow.equal} equal, {shadow.different} different"
    )
    for reason, number in shadow.unsuitable.items():
        click.echo(f"  {counted(number, 'request')} not compared: {reason}")
    for each in shadow.differences:
        click.echo(f"  request {each.request}")
        for path, old, new in each.places:
            click.echo(f"    {path}\n      {report.old}: {old}\n      {report.new}: {new}")


def _as_json(report: UpdateReport) -> dict[str, Any]:
    return {
        "action": report.action,
        "model": report.name,
        "from": report.old,
        "to": report.new,
        "archive": str(report.archive) if report.archive else None,
        "workers": report.status.ready_workers,
        "placement": report.status.placement,
        "kept": report.kept,
        "shadow": {**asdict(report.shadow), "compared": report.shadow.compared} if report.shadow else None,
        "warnings": list(report.warnings),
    }
