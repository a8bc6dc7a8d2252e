"""`handlergen archive` and `generate`: pack SOURCE into a `.mar`, print its handler."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen import __version__
from handlergen.cli import options
from handlergen.cli.errors import interrupted_by
from handlergen.cli.examples import show_recorded
from handlergen.cli.printing import print_json, warn
from handlergen.errors import HandlergenError
from handlergen.project.names import HANDLER_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE, RUNTIME_PACKAGE
from handlergen.runtime.contract import CONTRACT_FILE

if TYPE_CHECKING:
    from handlergen.archives.build import ArchiveResult
    from handlergen.inspection.project import Project
    from handlergen.inspection.stage_rule import Placement

Row = tuple[int, str, str]
"""Size in bytes, path in the archive, and a note."""

_GENERATED = (HANDLER_FILE, CONTRACT_FILE, MODEL_CONFIG_FILE, MANIFEST_FILE)

_PROGRESS_FROM = 64 << 20
"""Bytes; smaller archives are packed too quickly for a progress bar."""


@click.command("archive")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--model-store",
    type=options.DIRECTORY,
    default="model-store",
    show_default=True,
    help="Directory of the archives.",
)
@click.option("-f", "--force", is_flag=True, help="Replace an archive of the same name.")
@click.option("--verify", is_flag=True, help="Read the archive back and compare every file with its source.")
@click.option(
    "--sign",
    type=options.FILE,
    metavar="KEY",
    help="Sign with this Ed25519 private key (PEM or OpenSSH); writes NAME.mar.sig.",
)
@click.option("--no-examples", is_flag=True, help="Pack the examples without asking them first.")
@click.option(
    "--record-examples",
    is_flag=True,
    help="Write the answers of this model to examples/ as the right ones, and pack them.",
)
@click.option("--dry-run", is_flag=True, help="List the files that would be packed; write nothing.")
@click.option("--all", "all_files", is_flag=True, help="With --dry-run: also list the files of handlergen's runtime.")
@options.json
@options.settings()
def command(
    source: Path,
    *,
    model_store: Path,
    force: bool,
    verify: bool,
    sign: Path | None,
    no_examples: bool,
    record_examples: bool,
    dry_run: bool,
    all_files: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Pack SOURCE, its weights and its files into MODEL_STORE/NAME.mar.

    SOURCE is a .py file, a package directory, or a directory with handlergen.yaml. handlergen parses its module and
    never imports it; only examples are asked, in a process of their own. The archive is written atomically, and equal
    inputs produce equal bytes. Exit status 1: an example is answered wrongly, and nothing was written.

    \b
    Example:
      handlergen archive digits.py --weights digits.pt --extra-file labels.json
      handlergen archive . --workers-per-device 2 --batch-size 8 --force
      handlergen archive . --dry-run
    """
    from handlergen.archives.build import archive_project, target_path
    from handlergen.archives.render import ordered_hooks, signature
    from handlergen.inspection.project import open_project
    from handlergen.project.examples import read_examples

    project = open_project(source, overrides=overrides)
    if dry_run:
        _report_plan(project, model_store, force=force, all_files=all_files, as_json=as_json)
        return
    if no_examples and record_examples:
        raise click.UsageError("--no-examples and --record-examples cannot be combined")
    target_path(project, model_store, force=force)  # fails before anything takes time
    if record_examples or (not no_examples and read_examples(project.root, project.settings.examples)):
        _ask_examples(project, source, overrides, record=record_examples, as_json=as_json)
    with interrupted_by(signal.SIGTERM), _progress_bar() as progress:
        result = archive_project(
            project, model_store=model_store, force=force, verify=verify, sign=sign, progress=progress
        )
    warn(*result.warnings)
    if as_json:
        print_json(_as_json(result, verified=verify))
        return
    click.echo(f"archive  {result.path}")
    click.echo(f"size     {result.size:,} bytes, {len(result.files) + 1} files")
    click.echo(f"sha256   {result.sha256}")
    click.echo(f"form     {result.contract.form}")
    hooks = [signature(hook) for hook in ordered_hooks(result.contract).values()]
    click.echo(f"hooks    {', '.join(hooks) or 'none: the weights are the model'}")
    click.echo(f"workers  {_workers(result)}")
    _report_placement(result.placement)
    if verify:
        click.echo("verified every file's CRC-32 and SHA-256 match, and the zip is deterministic")
    if result.signature:
        click.echo(f"signed   {result.signature.path} with {result.signature.fingerprint}")


def _ask_examples(project: Project, source: Path, overrides: dict[str, Any], *, record: bool, as_json: bool) -> None:
    from handlergen.local import examples  # imports torch

    if record:
        show_recorded(examples.record_examples(project, source, overrides=overrides), err=as_json)
    else:
        warn(*examples.require_right_examples(project, source, overrides=overrides))


@click.command("generate")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=options.FILE, help="Write to this file instead of stdout.")
@options.settings("name", "form", "call", "weights", "weights_format", "batch", "lock")
def generate(source: Path, output: Path | None, **overrides: Any) -> None:
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


def _workers(result: ArchiveResult) -> str:
    if result.device_ids is not None:
        return f"{result.workers} on GPUs {', '.join(str(index) for index in result.device_ids)}"
    where = {"cpu": "on the CPU"}.get(result.device_type or "", "on the GPU if the server has one, else on the CPU")
    return f"{result.workers} {where}"


def _as_json(result: ArchiveResult, *, verified: bool) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "size": result.size,
        "sha256": result.sha256,
        "name": result.settings.name,
        "version": result.settings.version,
        "form": result.contract.form,
        "hooks": {role: hook.name for role, hook in result.contract.hooks.items()},
        "workers": result.workers,
        "placement": result.placement.as_json(),
        "device_type": result.device_type,
        "device_ids": result.device_ids,
        "files": [{"path": file.archive_path, "size": file.size} for file in result.files],
        "verified": verified,
        "signature": {"path": str(result.signature.path), "key": result.signature.fingerprint}
        if result.signature
        else None,
        "warnings": list(result.warnings),
    }


def _report_plan(project: Project, model_store: Path, *, force: bool, all_files: bool, as_json: bool) -> None:
    from handlergen.archives.build import target_path
    from handlergen.archives.model_config import gpus_for
    from handlergen.archives.staging import make_plan
    from handlergen.project.settings import shown

    target = target_path(project, model_store, force=force)
    plan = make_plan(project, gpus=gpus_for(project.settings), model_store=model_store)
    warn(*project.warnings, *plan.warnings)
    files = [
        (file.size, file.archive_path, file.origin if isinstance(file.origin, Path) else None) for file in plan.files
    ]
    if as_json:
        report = {
            "path": str(target),
            "size": plan.size,
            "placement": project.placement.as_json(),
            "files": [
                {"path": place, "size": size, "origin": str(origin) if origin else None}
                for size, place, origin in files
            ],
        }
        print_json(report)
        return
    click.echo(f"{target} would hold {len(files) + 1} files, {plan.size:,} bytes:")
    rows, width = listed(
        ((size, place, shown(origin) if origin else "written by handlergen") for size, place, origin in files),
        all_files=all_files,
        version=f"handlergen {__version__}",
    )
    for size, place, origin_shown in rows:
        click.echo(f"  {size:>{width},}  {place}  <- {origin_shown}")
    _report_placement(project.placement)


def listed(files: Iterable[Row], *, all_files: bool, version: str = "") -> tuple[list[Row], int]:
    """Return the rows of a list of an archive's files, and the width of their sizes.

    The user's files come first, then the generated ones, then the runtime's or a row that stands for them. A row has
    size, path in the archive and note, which is `version` for the runtime's row.
    """
    runtime: list[Row] = []
    others: list[Row] = []
    for row in files:
        (runtime if row[1].startswith(f"{RUNTIME_PACKAGE}/") else others).append(row)
    rows = sorted(others, key=lambda row: row[1] in _GENERATED)
    if all_files:
        rows += runtime
    elif runtime:
        name = f"{RUNTIME_PACKAGE}/ ({len(runtime)} files, listed with --all)"
        rows.append((sum(size for size, _, _ in runtime), name, version))
    return rows, max((len(f"{size:,}") for size, _, _ in rows), default=1)


def _report_placement(placed: Placement) -> None:
    click.echo(f"model    {placed.summary}")
    if placed.reasons and placed.stages == "predictor":
        first, more = placed.reasons[0], len(placed.reasons) - 1
        click.echo(f"         {first.place}: {first.what}{f' ({more} more: handlergen check)' if more else ''}")


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function that draws a progress bar for large archives; None when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bar: Any = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            if total >= _PROGRESS_FROM:
                if bar is None:
                    bar = stack.enter_context(click.progressbar(length=total, label="packing", file=sys.stderr))
                bar.update(done - bar.pos)

        yield progress
