"""`handlergen init`: a starter project, or settings for a module that exists."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.starter import create_settings, create_starter
from handlergen.project.truss import is_truss
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS


@click.command("init")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--form", type=click.Choice(tuple(FORMS)), help=f"The form of the module.  [default: {DEFAULT_FORM}]")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="The module in DIR that handlergen.yaml is for.  [default: the only one whose form is recognised]",
)
def command(directory: Path, *, form: str | None, source: Path | None) -> None:
    """Write a starter project into DIR, or handlergen.yaml for the module in it.

    A starter contains a module with pass-through preprocess and postprocess and a working predict, a sample request,
    and handlergen.yaml with every setting explained. If DIR has a module whose form is recognised, only handlergen.yaml
    is written, for that module; --form without --source asks for a starter. Existing files are never overwritten.

    \b
    Example:
      handlergen init digits
      handlergen init digits --form model-class
      handlergen init . --source digits.py
    """
    module: Path | None = None
    truss = source is None and form is None and is_truss(directory)
    if source is not None:
        module = _inside(directory, source)
    elif form is None and not truss and directory.is_dir():
        module = _only_source(directory)
    if truss or module is not None:
        name, written = create_settings(directory, module, form=form)
    else:
        name, written = create_starter(directory, form=form or DEFAULT_FORM)
    for path in written:
        click.echo(f"wrote {path}")
    place = shlex.quote(str(directory))
    example = next((path.name.partition(".")[0] for path in written if ".request." in path.name), None)
    sample = f"--example {example}" if example else "--file PATH"
    click.echo("\nNext: predict in this process, then with a server:")
    click.echo(f"  handlergen predict {place} {sample}")
    click.echo(f"  handlergen archive {place}")
    click.echo("  handlergen serve")
    click.echo(f"  handlergen invoke {name} {sample}")


def _inside(directory: Path, named: Path) -> Path:
    """Return a module or package of the directory, named from there or from here; raise HandlergenError for others."""
    source = directory / named if (directory / named).exists() else named
    usable = source.suffix == ".py" if source.is_file() else (source / "__init__.py").is_file()
    if not usable or not source.resolve().is_relative_to(directory.resolve()):
        raise HandlergenError(
            f"{shown(named)} is not a .py file or package in {shown(directory)}", hint="Name one that is: --source FILE"
        )
    return source


def _only_source(directory: Path) -> Path | None:
    """Return the module in a directory whose form is recognised, if any; raise HandlergenError if there are several."""
    from handlergen.inspection.project import recognised_sources

    found = recognised_sources(Path(os.path.normpath(directory)))
    if len(found) > 1:
        names = ", ".join(shown(path) for path in found)
        raise HandlergenError(
            f"{shown(directory)} has several modules that predict: {names}",
            hint=f"Name one: handlergen init {shlex.quote(str(directory))} --source {shlex.quote(str(found[0]))}",
        )
    return found[0] if found else None
