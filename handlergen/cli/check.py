"""`handlergen check`: the contract of a source, or all problems in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.examples import show_runs
from handlergen.cli.printing import counted, print_json, stdout_of_its_own, warn
from handlergen.errors import ContractError, HandlergenError, ModuleFailed, Problem, RequestFailed
from handlergen.inspection.project import Project, open_project
from handlergen.local.sample import SampleRun, run_sample
from handlergen.project.examples import examples_of_project
from handlergen.project.settings import shown
from handlergen.runtime.contract import Hook
from handlergen.runtime.forms.table import FORMS

if TYPE_CHECKING:
    from handlergen.local.examples import ExampleRun

_WHEN = {
    "setup": "once per worker",
    "load": "once per copy of the model, on the device",
    "preprocess": "beside other requests",
    "predict": "one at a time on the device",
    "postprocess": "beside other requests",
    "explain": "when a client asks for an explanation",
    "is_healthy": "when a client asks whether the model is healthy",
}


@click.command("check")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, problems included.")
@click.option(
    "--schema",
    is_flag=True,
    help="Also load the module and its model in this process, and show the JSON Schemas of its input and output.",
)
@click.option(
    "--sample",
    type=options.EXISTING_FILE,
    help="Also send this file as a request in a separate process, and show what each stage receives and returns.",
)
@click.option(
    "--examples",
    "ask_examples",
    is_flag=True,
    help="Also ask the examples in a separate process; exit status 1 if an answer is wrong.",
)
@options.gpu
@options.settings()
@click.pass_context
def command(
    context: click.Context,
    /,
    source: Path,
    *,
    as_json: bool,
    schema: bool,
    sample: Path | None,
    ask_examples: bool,
    gpu: int | None,
    **overrides: Any,
) -> None:
    """Check SOURCE against the contract without importing it; report all problems at once.

    SOURCE is a .py file, a package directory, or a directory with handlergen.yaml. Exit status 3 means that the
    source or its settings do not meet the contract. JSON Schemas need the loaded module's annotations: --schema loads
    it (exit status 4 if that fails).

    \b
    Example:
      handlergen check digits.py
      handlergen check . --json
      handlergen check . --json --schema
      handlergen check digits.py --sample seven.png
      handlergen check . --examples
    """
    try:
        project = open_project(source, overrides=overrides)
        warnings = (*project.warnings, *_files(project))
        types = _types(source, overrides) if schema else {}
        ran = run_sample(source, sample, gpu=gpu, overrides=overrides) if sample is not None else None
        asked = _asked(project, source, gpu=gpu, overrides=overrides) if ask_examples else None
    except HandlergenError as error:
        if not as_json:
            raise
        print_json(_failed_as_json(source, error))
        context.exit(error.exit_status)
    if as_json:
        ran_as_json = {"sample": dataclasses.asdict(ran)} if ran is not None else {}
        asked_as_json = {"examples": [each.as_json() for each in asked]} if asked is not None else {}
        print_json({**_as_json(project, warnings), **types, **ran_as_json, **asked_as_json})
    else:
        warn(*warnings)
        _report(project, len(warnings))
        without = (
            "no schema" if find_spec("pydantic") else "no schema: install pydantic (handlergen[typed]) for schemas"
        )
        for name, found in types.items():
            click.echo(f"{name}: {json.dumps(found['schema'], indent=2) if found['schema'] else without}")
        if ran is not None:
            _report_sample(ran, str(sample))
        if asked is not None:
            show_runs(asked)
    if asked:
        _require_right(asked)
    if ran is not None and ran.status >= 400:
        context.exit(ModuleFailed.exit_status if ran.status >= 500 else RequestFailed.exit_status)


def _report_sample(ran: SampleRun, sample: str) -> None:
    from handlergen.runtime.codec.errors import body_without_server

    click.echo(f"{sample}, on {ran.device} (loaded in {ran.load_s:.1f} s):")
    width = max((len(stage.name) for stage in ran.stages), default=0)
    for stage in ran.stages:
        click.echo(f"  {stage.name:<{width}}  {stage.milliseconds:9.2f} ms  {stage.received} -> {stage.returned}")
    body = body_without_server(ran.body.encode()).decode() if ran.status >= 400 else ran.body
    click.echo(f"Answer: {ran.status} {ran.content_type}\n{body}")
    warn(*map(str, ran.findings))
    if ran.traceback:
        click.echo(ran.traceback, err=True)


def _types(source: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Load the module and return the schemas of its input and output, as describe shows them."""
    from handlergen.local.model import load

    given = {name: value for name, value in overrides.items() if value is not None}
    with stdout_of_its_own(), load(source, **given) as model:
        described = model.describe()
    return {name: described[name] for name in ("input", "output")}


def _require_right(asked: list[ExampleRun]) -> None:
    from handlergen.local.examples import require_right

    require_right(asked, hint="correct the module or the examples; `archive --record-examples` takes these answers")


def _asked(project: Project, source: Path, *, gpu: int | None, overrides: dict[str, Any]) -> list[ExampleRun]:
    from handlergen.local.examples import run_examples

    examples = examples_of_project(project.root, project.settings.examples)
    return run_examples(source, examples, gpu=gpu, overrides=overrides) if examples else []


def _files(project: Project) -> tuple[str, ...]:
    """Return the warnings about the archive's files; raise ContractError if files are missing or names conflict."""
    from handlergen.archives.staging import make_plan

    try:
        return make_plan(project).warnings
    except ContractError:
        raise
    except HandlergenError as error:
        place = shown(project.source)
        lines = [line.strip() for line in error.message.removeprefix("cannot pack:\n").splitlines()]
        raise ContractError([Problem(place, 0, line) for line in lines]) from error


def _report(project: Project, warned: int) -> None:
    from handlergen.archives.render import calls

    contract, settings = project.contract, project.settings
    click.echo(f"{shown(project.source)}: form {contract.form}, model {settings.name} {settings.version}")
    rows = [
        (_definition(call.hook), f"line {call.hook.line}" if call.hook.line else "imported", _WHEN.get(call.step, ""))
        if call.hook
        else (call.model, call.role.replace("predict", "stage"), _WHEN["predict"])
        for call in calls(contract)
    ]
    if "predict" not in {call.step for call in calls(contract)}:
        # Without predict the weights are the model, or what the module loads is.
        itself = FORMS[contract.form].runs_weights
        model = settings.weights if itself and settings.weights else "the model, called with its input"
        rows.append((f"({model})", settings.weights_format or "", _WHEN["predict"]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for definition, line, when in rows:
        click.echo(f"  {definition:<{widths[0]}}  {line:<{widths[1]}}  {when}".rstrip())
    if contract.call == "keywords":
        parameters = [p for p in contract.hooks["predict"].parameters if p.source == "key"]
        keys = [p.name if p.required else f"{p.name} (optional)" for p in parameters]
        click.echo(f"  predict takes the keys of a JSON object: {', '.join(keys)}")
    placed = project.placement
    tied = placed.reasons if placed.stages == "predictor" else ()  # overruled ones are warnings
    click.echo(f"  {placed.summary}{':' if tied else f' ({placed.why})'}")
    for reason in tied:
        click.echo(f"    {reason}")
    click.echo(f"No problems, {counted(warned, 'warning')}." if warned else "No problems.")


def _definition(hook: Hook) -> str:
    prefix = "async " if hook.is_async else ""
    return f"{prefix}{hook.name}({', '.join(parameter.name for parameter in hook.parameters)})"


def _as_json(project: Project, warnings: tuple[str, ...]) -> dict[str, Any]:
    contract, settings = project.contract, project.settings
    return {
        "ok": True,
        "source": shown(project.source),
        "name": settings.name,
        "version": settings.version,
        "form": contract.form,
        "call": contract.call,
        "batch": settings.batch,
        "placement": project.placement.as_json(),
        "weights": settings.weights,
        "weights_format": settings.weights_format,
        "hooks": {
            role: {
                "name": hook.name,
                "line": hook.line,
                "kind": hook.kind,
                "parameters": [{"name": p.name, "receives": p.source, "required": p.required} for p in hook.parameters],
            }
            for role, hook in contract.hooks.items()
        },
        "warnings": list(warnings),
        "problems": [],
    }


def _failed_as_json(source: Path, error: HandlergenError) -> dict[str, Any]:
    place = shown(source)
    problems: Sequence[Problem] = [Problem(place, 0, error.message, error.hint or "")]
    if isinstance(error, ContractError):
        problems = error.problems
    return {
        "ok": False,
        "source": place,
        "problems": [dataclasses.asdict(problem) for problem in problems],
        **({"traceback": error.traceback} if isinstance(error, ModuleFailed) else {}),
    }
