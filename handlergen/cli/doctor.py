"""`handlergen doctor`: problems of this installation, why they matter, and how to fix them."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlergen.cli import options
from handlergen.cli.printing import counted, print_json
from handlergen.errors import HandlergenError
from handlergen.server.configuration import DEFAULT_CONFIG

if TYPE_CHECKING:
    from handlergen.server.doctor import Finding, Section

_COLOURS = {"OK": "green", "NOTE": "cyan", "WARNING": "yellow", "ERROR": "red"}
_INDENT = 11

#: Severity -> exit status. Not 1 to 7, which mean that a command failed: this one has succeeded.
EXIT_STATUS = {"OK": 0, "NOTE": 0, "WARNING": 10, "ERROR": 20}


@click.command("doctor")
@options.config()
@click.option("-q", "--quiet", is_flag=True, help="Show only warnings and errors.")
@options.json
@click.pass_context
def command(context: click.Context, /, *, config: Path, quiet: bool, as_json: bool) -> None:
    """Find problems, explain why they matter and how to fix them.

    Checks Java, torch and TorchServe, GPUs, config.properties, who can connect to the server, archives, ports, files
    that killed servers left behind, and the machine. Changes nothing.

    The exit status is 0 when there are only notes, 10 with warnings, 20 with errors.

    \b
    Example:
      handlergen doctor
      handlergen doctor --config production/config.properties --json
    """
    from handlergen.server.doctor import diagnose, look_around, worst

    if config != Path(DEFAULT_CONFIG) and not config.exists():
        raise HandlergenError(f"there is no {config}", hint=f"`handlergen config -o {config}` writes one")
    sections = diagnose(look_around(config))
    gravest = worst(sections).name
    if as_json:
        print_json(_as_json(config, sections, gravest))
    else:
        _report(sections, quiet=quiet)
    context.exit(EXIT_STATUS[gravest])


def _report(sections: Sequence[Section], *, quiet: bool) -> None:
    color = False if os.environ.get("NO_COLOR") else None  # None: only on a terminal
    for section in sections:
        shown = [found for found in section.findings if not quiet or found.severity.name in ("WARNING", "ERROR")]
        if shown:
            click.secho(f"\n{section.title}", bold=True, color=color)
        for found in shown:
            click.echo(_text(found), color=color)
    counts = Counter(found.severity.name for section in sections for found in section.findings)
    click.echo()
    parts = [
        click.style(counted(counts[name], name.lower()), fg=_COLOURS[name])
        for name in ("ERROR", "WARNING", "NOTE")
        if counts[name]
    ]
    click.echo(f"{', '.join(parts) or 'No problems'}; {counts['OK']} checks passed", color=color)


def _text(found: Finding) -> str:
    """Return a finding in lines of at most 80 characters; a fix is never wrapped, so that it can be pasted."""
    width = min(80, shutil.get_terminal_size((80, 24)).columns)
    name = found.severity.name
    label = click.style(f"{name.lower():<{_INDENT - 4}}", fg=_COLOURS[name])
    wrapper = textwrap.TextWrapper(width - _INDENT, break_long_words=False, break_on_hyphens=False)
    what = [wrapped for line in found.what.splitlines() for wrapped in wrapper.wrap(line) or [""]]
    text = "\n".join([*what, *wrapper.wrap(found.why)])
    if found.fix:
        text += f"\n{click.style('fix:', bold=True)} " + found.fix.replace("\n", "\n" + " " * 5)
    return f"  {label}  " + textwrap.indent(text, " " * _INDENT).lstrip()


def _as_json(config: Path, sections: Sequence[Section], gravest: str) -> dict[str, object]:
    return {
        "config": str(config),
        "severity": gravest.lower(),
        "findings": [
            {"section": section.title, **asdict(found), "severity": found.severity.name.lower()}
            for section in sections
            for found in section.findings
        ],
    }
