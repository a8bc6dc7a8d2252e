"""Examples on the command line: which one is meant, how runs and recordings are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from handlergen.errors import HandlergenError

if TYPE_CHECKING:
    from handlergen.client import Client
    from handlergen.local.examples import ExampleRun, Recorded
    from handlergen.runtime.examples import Example


def chosen(examples: Sequence[Example], text: str, *, where: str) -> Example:
    """Return the example of this name, or of this number from 1.

    Raises:
        HandlergenError: There is none; `where` says what has no such example.
    """
    named = {example.name: example for example in examples}
    if text in named:
        return named[text]
    if text.isdecimal() and 1 <= int(text) <= len(examples):
        return examples[int(text) - 1]
    names = ", ".join(named)
    raise HandlergenError(
        f"{where} has no example {text}",
        hint=f"the examples are: {names}" if names else "write one to examples/NAME.request.json, and archive it again",
    )


def example_of(client: Client, config: Path, name: str, text: str, *, version: str | None) -> tuple[Example, str]:
    """Return an example out of the archive in the server's model store, and the version that has it.

    Raises:
        HandlergenError: The archive is not there, or has no such example.
    """
    from handlergen.archives.mar import archived_examples
    from handlergen.server.model_store import find_archive

    version = version or client.describe(name).version
    store = config.parent / client.settings.model_store
    archive = find_archive(store, name, version)
    if archive is None:
        raise HandlergenError(
            f"the archive of {name} {version} is not in the model store {store}",
            hint="--example reads it there: name the server's configuration with -c, or send --data or --file",
        )
    return chosen(archived_examples(archive), text, where=f"{name} {version}"), version


def require_right_answer(example: Example, status: int, content_type: str, body: bytes) -> None:
    """Raise WrongExamples if a server's answer is not the right one."""
    from handlergen.local.examples import ExampleRun, require_right
    from handlergen.local.model import LocalAnswer

    run = ExampleRun.of(example, LocalAnswer(status, content_type, body))
    require_right([run], hint="`handlergen status` shows which version of the model answers")


def show_runs(runs: Sequence[ExampleRun]) -> None:
    """Print how each example was answered."""
    if not runs:
        click.echo("No examples.")
    for run in runs:
        state = "runs" if run.example.answer is None else "right"
        click.echo(f"example {run.example.name}: {'WRONG' if run.differences else state}")


def show_recorded(recorded: Sequence[Recorded], *, err: bool) -> None:
    """Print which answers were recorded, and how they differ from those before; on stderr if `err`."""
    for each in recorded:
        state = "new" if each.differences is None else "changed" if each.differences else "as before"
        click.echo(f"recorded {each.path} ({state})", err=err)
        for difference in each.differences or ():
            click.echo(f"  {difference}", err=err)
