"""The command line: options in, API calls, results printed. No logic of its own."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from handlergen.errors import HandlergenError, ModuleFailed

# Verb -> module that defines a click command named `command`. Imported only when asked for, so that `--help`
# and `check` never wait for torch or grpc.
VERBS: dict[str, str] = {
    "init": "handlergen.cli.init",
    "check": "handlergen.cli.check",
    "generate": "handlergen.cli.generate",
    "archive": "handlergen.cli.archive",
    "inspect": "handlergen.cli.inspect",
    "config": "handlergen.cli.config",
    "serve": "handlergen.cli.serve",
    "stop": "handlergen.cli.stop",
    "status": "handlergen.cli.status",
    "invoke": "handlergen.cli.invoke",
    "scale": "handlergen.cli.scale",
    "predict": "handlergen.cli.predict",
    "map": "handlergen.cli.map",
    "trace": "handlergen.cli.trace",
}


class VerbGroup(click.Group):
    """A click group that imports a verb's module when that verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command


def render(error: HandlergenError) -> str:
    """The text a user sees for an error: traceback of their own code, message, then what to do next."""
    parts = []
    if isinstance(error, ModuleFailed) and error.traceback:
        parts.append(error.traceback.rstrip())
    parts.append(f"Error: {error.message}")
    if error.hint:
        parts.append(f"Hint: {error.hint}")
    return "\n".join(parts)


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="handlergen", prog_name="handlergen")
def cli() -> None:
    """Wrap preprocess, predict and postprocess into a TorchServe archive.

    predict runs one at a time on each device; the preprocessing and postprocessing of other requests run
    beside it.

    \b
    Example:
      handlergen init digits && cd digits
      handlergen archive .
      handlergen serve
    """


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `handlergen` command; the only place that turns errors into exit statuses."""
    try:
        status: Any = cli.main(args=argv, prog_name="handlergen", standalone_mode=False)
    except HandlergenError as error:
        click.echo(render(error), err=True)
        sys.exit(error.exit_status)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader went away (`handlergen generate . | head`): be quiet, and keep the interpreter from
        # failing once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)
