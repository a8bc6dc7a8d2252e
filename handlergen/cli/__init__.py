"""The command line: each verb reads options, calls the API and prints the result."""

from __future__ import annotations

import difflib
import importlib
import io
import sys
import threading
import warnings
from typing import Any, NoReturn

import click

from handlergen.cli.errors import broken_pipes_caught, fail, let_go_of_broken_output, refused_by_system
from handlergen.errors import HandlergenError
from handlergen.local.ending import end

GROUPS = {
    "Make ready": {
        "init": "Write a starter project, or settings for a module.",
        "check": "Report every problem of SOURCE without importing it.",
        "generate": "Print the handler that `archive` would pack.",
        "archive": "Pack SOURCE and its weights into NAME.mar.",
        "inspect": "Show what an archive contains.",
    },
    "Run": {
        "config": "Write config.properties with safe defaults.",
        "serve": "Start TorchServe; wait until all workers are READY.",
        "stop": "Stop the server once its requests are answered.",
    },
    "Ask": {
        "invoke": "Send one request to a model of the server.",
        "export": "Write gRPC definitions and a client.",
        "predict": "Predict in this process: no server, no Java.",
        "map": "Predict for many inputs offline.",
    },
    "Operate": {
        "status": "Show models, versions, workers and queued requests.",
        "scale": "Set the number of a model's workers.",
        "update": "Replace a model's version; lose no request.",
        "rollback": "Return to the version before the last update.",
        "token": "Print a token for curl and other clients.",
        "logs": "Show the model log, or one request's lines.",
        "doctor": "Find problems; say why they matter, how to fix them.",
    },
    "Measure": {
        "bench": "Load-test a model: throughput, latency, bottleneck.",
        "tune": "Recommend workers and batch size by measuring.",
        "trace": "Convert recorded spans for https://ui.perfetto.dev.",
    },
}
"""The verbs, by what one is doing, with their line of `handlergen --help`. The module `handlergen.cli.VERB` defines the
click command `command`, unless `_TOGETHER` names another module."""

VERBS = tuple(verb for group in GROUPS.values() for verb in group)

_TOGETHER = {
    "archive": ("generate",),
    "serve": ("stop",),
    "status": ("scale",),
    "bench": ("trace", "tune"),
    "update": ("rollback",),
}
"""Modules that define further verbs, each as a click command of its own name."""


class VerbGroup(click.Group):
    """A click group that imports a verb's module when that verb is used: `check` never waits for torch or grpc."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with broken_pipes_caught():  # --help prints here
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with broken_pipes_caught():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        place = next((module for module, verbs in _TOGETHER.items() if cmd_name in verbs), cmd_name)
        module = importlib.import_module(f"handlergen.cli.{place}")
        command: click.Command = getattr(module, "command" if place == cmd_name else cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a verb as click does; for an unknown verb suggest the nearest one."""
        near = difflib.get_close_matches(args[0], VERBS, n=1) if args[0] not in VERBS else []
        if near:
            ctx.fail(f"There is no verb {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs of each group, a line each."""
        lines = [(group, verb, text) for group, verbs in GROUPS.items() for verb, text in verbs.items()]
        first = {next(iter(verbs)) for verbs in GROUPS.values()}
        formatter.write_paragraph()
        formatter.indent()
        formatter.write_dl([(f"{group if verb in first else '':12}{verb}", text) for group, verb, text in lines])
        formatter.dedent()


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="handlergen", prog_name="handlergen")
def cli() -> None:
    """Wrap preprocess, predict and postprocess into a TorchServe archive."""


def main(argv: list[str] | None = None) -> None:
    """Run the `handlergen` command and exit with its status.

    Args:
        argv: Arguments for a run inside another program. None: those of this process, which ends whatever threads the
            user's module has left.
    """
    before = threading.enumerate()
    try:
        _run(argv)
    except SystemExit as ended:
        if argv is None:
            end(ended.code if isinstance(ended.code, int) else int(ended.code is not None), before)
        raise


def _run(argv: list[str] | None) -> NoReturn:
    # Print file names that are not UTF-8 byte for byte (PEP 383), as the C locale does.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")
    # torch warns once where numpy is not installed; nothing here needs it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    try:
        status: Any = cli.main(args=argv, prog_name="handlergen", standalone_mode=False)
    except HandlergenError as error:
        fail(error)
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        let_go_of_broken_output()
        fail(refused_by_system(error))
    sys.exit(status if isinstance(status, int) else 0)
