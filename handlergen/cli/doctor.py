"""`handlergen doctor`: what is wrong here, why it matters, and how to fix it."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlergen.cli.serving_options import json_option
from handlergen.errors import HandlergenError

if TYPE_CHECKING:
    from handlergen.doctor import Finding, Section

_DEFAULT_CONFIG = Path("config.properties")
_COLOURS = {"OK": "green", "NOTE": "cyan", "WARNING": "yellow", "ERROR": "red"}
_INDENT = 11

#: Severity -> exit status. Not 1 to 7: those say that a command could not do its work, which this one has done.
EXIT_STATUS = {"OK": 0, "NOTE": 0, "WARNING": 10, "ERROR": 20}


@click.command("doctor")
@click.option(
    "-c",
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_DEFAULT_CONFIG,
    show_default=True,
    help="The server's configuration; its directory is looked at, too.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only what needs something done: warnings and errors.")
@json_option
@click.pass_context
def command(context: click.Context, /, *, config: Path, quiet: bool, as_json: bool) -> None:
    """Look for what is wrong here, say why it matters and how to fix it.

    Looks at Java, torch and TorchServe, GPUs, config.properties and its traps, who can reach the server, the
    archives, ports, files that killed servers left, and the machine. Changes nothing.

    The exit status is 0 when there is nothing but notes, 10 with warnings, 20 with errors.

    \b
    Example:
      handlergen doctor
      handlergen doctor --config production/config.properties --json
    """
    from handlergen.doctor import diagnose, look_around, worst

    if config != _DEFAULT_CONFIG and not config.exists():
        raise HandlergenError(f"there is no {config}", hint=f"`handlergen config -o {config}` writes one")
    sections = diagnose(look_around(config))
    gravest = worst(sections).name
    if as_json:
        click.echo(json.dumps(_as_json(config, sections, gravest), indent=2))
    else:
        _report(sections, quiet=quiet)
    context.exit(EXIT_STATUS[gravest])


def _report(sections: Sequence[Section], *, quiet: bool) -> None:
    color = False if os.environ.get("NO_COLOR") else None  # None: only on a terminal
    for section in sections:
        shown = [
            found for found in section.findings if not quiet or found.severity.name in ("WARNING", "ERROR")
        ]
        if shown:
            click.secho(f"\n{section.title}", bold=True, color=color)
        for found in shown:
            click.echo(_text(found), color=color)
    counts = Counter(found.severity.name for section in sections for found in section.findings)
    click.echo()
    parts = [
        click.style(_counted(counts[name], name.lower()), fg=_COLOURS[name])
        for name in ("ERROR", "WARNING", "NOTE")
        if counts[name]
    ]
    click.echo(f"{', '.join(parts) or 'Nothing is wrong'}; {counts['OK']} checked and fine", color=color)


def _text(found: Finding) -> str:
    """The finding in lines of 80 characters at most; a fix is never broken: it may be pasted."""
    width = min(80, shutil.get_terminal_size((80, 24)).columns)
    name = found.severity.name
    label = click.style(f"{name.lower():<{_INDENT - 4}}", fg=_COLOURS[name])
    what = [wrapped for line in found.what.splitlines() for wrapped in _wrapped(line, width)]
    lines = [f"  {label}  {what[0]}", *(f"{'':{_INDENT}}{line}" for line in what[1:])]
    if found.why:
        lines += [f"{'':{_INDENT}}{line}" for line in _wrapped(found.why, width)]
    if found.fix:
        fix = found.fix.splitlines()
        lines += [
            f"{'':{_INDENT}}{click.style('fix:', bold=True)} {fix[0]}",
            *(f"{'':{_INDENT + 5}}{line}" for line in fix[1:]),
        ]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - _INDENT, break_long_words=False, break_on_hyphens=False) or [""]


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _as_json(config: Path, sections: Sequence[Section], gravest: str) -> dict[str, object]:
    return {
        "config": str(config),
        "severity": gravest.lower(),
        "findings": [
            {
                "section": section.title,
                "severity": found.severity.name.lower(),
                "what": found.what,
                "why": found.why,
                "fix": found.fix,
            }
            for section in sections
            for found in section.findings
        ],
    }
