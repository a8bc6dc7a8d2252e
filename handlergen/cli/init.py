"""`handlergen init`: a starter project."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from handlergen.project.starter import create_starter
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS


@click.command("init")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--form",
    type=click.Choice(tuple(FORMS)),
    default=DEFAULT_FORM,
    show_default=True,
    help="The form of the module.",
)
def command(directory: Path, *, form: str) -> None:
    """Write a starter project into DIR.

    It contains a module with pass-through preprocess and postprocess and a working predict, a sample request, and
    handlergen.yaml with every setting explained. Existing files are never overwritten.

    \b
    Example:
      handlergen init digits
      handlergen init . --form functions
    """
    name, written = create_starter(directory, form=form)
    for path in written:
        click.echo(f"wrote {path}")
    place = shlex.quote(str(directory))
    request = next(path for path in written if path.name.startswith("request"))
    click.echo("\nNext: predict in this process, then with a server:")
    click.echo(f"  handlergen predict {place} --file {shlex.quote(str(request))}")
    click.echo(f"  handlergen archive {place}")
    click.echo("  handlergen serve")
    click.echo(f"  handlergen invoke {name} --file {shlex.quote(str(request))}")
