"""The command line: options in, API calls, results printed. No logic of its own."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from handlergen.cli.system_errors import let_go_of_broken_output, reader_is_gone, refused_by_system
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
    "doctor": "handlergen.cli.doctor",
    "bench": "handlergen.cli.bench",
    "tune": "handlergen.cli.tune",
}


class _ReaderGone(Exception):
    """Whoever read standard output has gone away. Not an OSError: click ends with status 1 on that (EPIPE)."""


@contextlib.contextmanager
def _reader_watched() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        if reader_is_gone():
            raise _ReaderGone from error
        raise refused_by_system(error) from error


class VerbGroup(click.Group):
    """A click group that imports a verb's module when that verb is used."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _reader_watched():  # --help prints here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_watched():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown verb is answered with the nearest one."""
        near = difflib.get_close_matches(args[0], VERBS, n=1) if args[0] not in VERBS else []
        if near:
            ctx.fail(f"There is no verb {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each verb with the whole first sentence of its help, where click cuts it at one line."""
        commands = [(verb, self.get_command(ctx, verb)) for verb in self.list_commands(ctx)]
        with formatter.section("Verbs"):
            formatter.write_dl(
                [(verb, command.get_short_help_str(limit=1000)) for verb, command in commands if command]
            )


def render(error: HandlergenError) -> str:
    """The text a user sees for an error: traceback of their own code, message, then what to do next."""
    parts = []
    if isinstance(error, ModuleFailed) and error.traceback:
        parts.append(error.traceback.rstrip())
    parts.append(f"Error: {error.message}")
    if error.hint:
        parts.append(f"Hint: {error.hint}")
    return "\n".join(parts)


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    _print_names_as_they_are()
    # torch warns once where numpy is not installed; nothing here needs it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    try:
        status: Any = cli.main(args=argv, prog_name="handlergen", standalone_mode=False)
    except HandlergenError as error:
        _fail(error)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except _ReaderGone:
        # `handlergen generate . | head`: be quiet, as a program is that SIGPIPE ends.
        let_go_of_broken_output()
        sys.exit(141)
    except OSError as error:
        let_go_of_broken_output()
        _fail(refused_by_system(error))
    sys.exit(status if isinstance(status, int) else 0)


def _print_names_as_they_are() -> None:
    """A file's name that is no text goes out byte for byte (PEP 383), as it does in the C locale anyhow."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")


def _fail(error: HandlergenError) -> NoReturn:
    click.echo(render(error), err=True)
    sys.exit(error.exit_status)
