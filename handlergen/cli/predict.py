"""`handlergen predict`: the served pipeline in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from handlergen.errors import HandlergenError, RequestFailed


@click.command("predict")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("data", required=False)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Send a file's bytes."
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="NAME=VALUE",
    help="A field of a multipart form; NAME=@PATH sends a file. May be repeated.",
)
@click.option("--content-type", help="Content type of what is sent; guessed by default.")
@click.option("--gpu", type=int, help="Predict on this GPU instead of the CPU.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the answer to a file instead of standard output.",
)
def command(
    *,
    source: Path,
    data: str | None,
    file: Path | None,
    fields: tuple[str, ...],
    content_type: str | None,
    gpu: int | None,
    output: Path | None,
) -> None:
    """Answer one request in this process: no server, no Java.

    SOURCE is what `handlergen archive` takes, or a .mar. DATA is JSON text; `-` reads it from standard input. The
    answer is what a client of the served model would get, byte for byte, and is printed as it is made when the model
    streams; an error exits with status 6.

    \b
    Examples:
      handlergen predict digits.py --file seven.png
      handlergen predict model-store/digits.mar '{"x": [1, 2]}'
    """
    if sum(given is not None and given != () for given in (data, file, fields)) != 1:
        raise click.UsageError("give one of DATA, --file and --field")
    from handlergen.local import load

    with load(source, gpu=gpu) as model:
        on_chunk = None if output is not None else _write_chunk
        if fields:
            answer = model.request(fields=dict(_field(text) for text in fields), on_chunk=on_chunk)
        elif file is not None:
            answer = model.request(file, content_type=content_type, on_chunk=on_chunk)
        else:
            text = sys.stdin.read() if data == "-" else str(data)
            answer = model.request(
                text.encode(), content_type=content_type or "application/json", on_chunk=on_chunk
            )
    if answer.status >= 400:
        raise RequestFailed(answer.body.decode(), status=answer.status, body=answer.body)
    if output is not None:
        output.write_bytes(answer.body)
        return
    sys.stdout.buffer.write(answer.body)
    if answer.content_type.startswith(("application/json", "text/")):
        click.echo()


def _write_chunk(chunk: bytes, _content_type: str) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--field takes NAME=VALUE or NAME=@PATH, not {text!r}")
    if not value.startswith("@"):
        return name, value
    path = Path(value[1:])
    if not path.is_file():
        raise HandlergenError(f"cannot read {path}: no such file")
    return name, path
