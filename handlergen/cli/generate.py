"""`handlergen generate`: print the handler that `archive` would pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from handlergen import __version__
from handlergen.cli.options import setting_options
from handlergen.cli.printing import warn
from handlergen.errors import HandlergenError


@click.command
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file instead of stdout.",
)
@setting_options("name", "form", "call", "weights", "weights_format", "batch", "lock")
def command(source: Path, output: Path | None, **overrides: Any) -> None:
    """Print the handler that `archive` would generate for SOURCE.

    SOURCE is a .py file, a package directory, or a directory with handlergen.yaml.

    \b
    Example:
      handlergen generate digits.py
      handlergen generate . -o handler.py
    """
    from handlergen.archives.render import render_handler
    from handlergen.inspection.project import open_project

    project = open_project(source, overrides=overrides)
    text = render_handler(project.contract, project.settings, version=__version__)
    warn(*project.warnings)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HandlergenError(f"{output} could not be written: {error}") from error
