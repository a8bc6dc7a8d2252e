"""`handlergen predict`: run the served pipeline in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.examples import chosen
from handlergen.cli.printing import failures_kept, named, stdout_of_its_own, warn, writable
from handlergen.cli.requests import HOW_TO_QUOTE, field_of, headers_of, refuse_file_name
from handlergen.errors import HandlergenError, ModuleFailed, RequestFailed
from handlergen.runtime.codec.content import JSON

if TYPE_CHECKING:
    from handlergen.local.model import LocalAnswer, LocalModel
    from handlergen.runtime.contract import Hook

_ENCODING = "EncodeError: "


@click.command("predict")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("data", nargs=-1)
@click.option("--data", "more_data", multiple=True, metavar="JSON", help="The same as DATA, for symmetry with invoke.")
@click.option(
    "--file",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Send a file; - is standard input. May be repeated.",
)
@click.option("--example", metavar="NAME", help="Send an example of SOURCE, by name or number, and compare the answer.")
@options.multipart
@options.gpu
@options.any_runtime
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the answer to this file instead of stdout.",
)
@click.option(
    "--raise", "raises", is_flag=True, help="Show the module's traceback for a failed request; exit status 4."
)
@options.settings("name", "form", "call", "weights", "weights_format", "batch", "config", "nan")
def command(
    *,
    source: Path,
    data: tuple[str, ...],
    more_data: tuple[str, ...],
    files: tuple[Path, ...],
    example: str | None,
    fields: tuple[str, ...],
    content_type: str | None,
    headers: tuple[str, ...],
    gpu: int | None,
    any_runtime: bool,
    output: Path | None,
    raises: bool,
    **overrides: Any,
) -> None:
    """Predict for one request, or several as one batch, in this process: no server, no Java.

    SOURCE is a source as for `handlergen archive`, or a .mar. DATA is JSON text; `-` reads it from standard input.
    The answer is byte for byte what a client of the served model would get; a streamed answer is printed as it
    arrives. An error goes to stderr, with exit status 6. Several DATA or --file form one batch, with one answer per
    line.

    \b
    Examples:
      handlergen predict digits.py --file seven.png
      handlergen predict model-store/digits.mar '{"x": [1, 2]}'
      handlergen predict digits.py '{"x": 1}' '{"x": 2}'
      handlergen predict model-store/digits.mar --example three
    """
    data += more_data
    if sum(map(bool, (data, files, fields, example))) != 1:
        raise click.UsageError("give exactly one of DATA (JSON text), --file PATH, --field NAME=VALUE, --example NAME")
    inputs, kind = _inputs(data, files, content_type)
    form = dict(map(field_of, fields))
    named = headers_of(headers)
    from handlergen.local.examples import ExampleRun, examples_of, require_right
    from handlergen.local.model import load
    from handlergen.runtime.codec.errors import body_without_server

    settings = {name: value for name, value in overrides.items() if value is not None}
    asked = chosen(examples_of(source, overrides=settings), example, where=str(source)) if example else None
    tracebacks: list[str] = []
    if output is not None:
        output = writable(output.absolute())
    with (
        failures_kept(tracebacks),
        stdout_of_its_own() as stdout,
        load(source, gpu=gpu, any_runtime=any_runtime, **settings) as model,
        model.surroundings.entered(),
    ):
        warn(*model.warnings)
        if asked is not None:
            answers = [model.ask(asked)]
            if answers[0].status < 400:
                newline = output is None and answers[0].content_type.startswith((JSON, "text/"))
                _write(answers[0].body + (b"\n" if newline else b""), output, stdout)
        elif len(inputs) > 1:
            answers = model.batch(inputs, content_type=kind, headers=named)
            bodies = [body_without_server(a.body) if a.status >= 400 else a.body for a in answers]
            _write(b"".join(body + b"\n" for body in bodies), output, stdout)
        else:
            body = {"fields": form} if form else {"data": inputs[0], "content_type": kind}
            answers = [_one(model, {**body, "headers": named}, output, stdout)]
        hooks = model.worker.bundle.contract.hooks
    if asked is not None and answers[0].status < 400:
        require_right([ExampleRun.of(asked, answers[0])], hint="`handlergen check SOURCE --examples` asks all examples")
    _check(answers, tracebacks, raises=raises, last_hook=hooks.get("postprocess") or hooks.get("predict"))


def _inputs(data: tuple[str, ...], files: tuple[Path, ...], content_type: str | None) -> tuple[list[Any], str | None]:
    if data:
        if content_type is None:
            for text in data:
                refuse_file_name(text)
        texts = [sys.stdin.buffer.read() if text == "-" else os.fsencode(text) for text in data]
        return texts, content_type or JSON
    found: list[Any] = []
    for path in files:
        if str(path) == "-":
            found.append(sys.stdin.buffer.read())
        elif path.is_file():
            found.append(path.absolute())
        else:
            raise HandlergenError(f"cannot read {path}: no such file")
    return found, content_type


def _one(model: LocalModel, body: dict[str, Any], output: Path | None, stdout: IO[bytes]) -> LocalAnswer:
    def write(chunk: bytes, _content_type: str = "") -> None:
        stdout.write(chunk)
        stdout.flush()

    answer = model.request(**body, on_chunk=write if output is None else None)
    if answer.status < 400:
        newline = output is None and answer.content_type.startswith((JSON, "text/"))
        _write(answer.body + (b"\n" if newline else b""), output, stdout)
    return answer


def _write(data: bytes, output: Path | None, stdout: IO[bytes]) -> None:
    if output is None:
        stdout.write(data)
        stdout.flush()
        return
    with named(output):
        output.write_bytes(data)


def _check(answers: list[LocalAnswer], tracebacks: list[str], *, raises: bool, last_hook: Hook | None) -> None:
    """Raise an error if any request failed; `last_hook` is the one whose value is the answer."""
    from handlergen.local.model import error_message

    failed = [answer for answer in answers if answer.status >= 400]
    if not failed:
        return
    first = failed[0]
    what = f"{len(failed)} of {len(answers)} requests failed"
    if len(answers) == 1:
        what = f"{first.status}: {error_message(first)}"
    hint: str | None
    if any(_ENCODING in text for text in tracebacks):
        # handlergen raised it after the hook returned: the traceback has no frame of the user's code.
        what_returned = last_hook.name if last_hook else "the model"
        line = f" (line {last_hook.line})" if last_hook and last_hook.line else ""
        hint = (
            f"{what_returned}{line} returned this value; return dicts, lists, text, numbers, tensors, arrays or bytes"
        )
        tracebacks = [text for text in tracebacks if _ENCODING not in text]
    elif b'"type":"BadRequest"' in first.body and b"not valid JSON" in first.body:
        hint = HOW_TO_QUOTE
    else:
        hint = "--raise shows the traceback" if tracebacks and first.status >= 500 and not raises else None
    if raises and (tracebacks or hint):
        raise ModuleFailed(what, traceback="\n".join(tracebacks), hint=hint)
    raise RequestFailed(what, status=first.status, body=first.body, hint=hint)
