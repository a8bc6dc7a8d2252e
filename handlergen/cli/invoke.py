"""`handlergen invoke`: send one request to a running model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from handlergen.cli import options
from handlergen.cli.examples import example_of, require_right_answer
from handlergen.cli.printing import named, print_json, writable
from handlergen.cli.requests import advised, field_of, headers_of, option_for, refuse_file_name
from handlergen.client.connection import request_of
from handlergen.errors import RequestFailed
from handlergen.runtime.codec.content import JSON


@click.command("invoke")
@click.argument("name")
@click.argument("surplus", nargs=-1, metavar="")
@click.option("--data", default=None, help="The request as JSON.")
@click.option(
    "--file",
    type=options.EXISTING_FILE,
    default=None,
    help="The request as a file; its name determines the content type.",
)
@click.option(
    "--example", metavar="NAME", help="Send an example of the archive, by name or number; compare the answer."
)
@options.multipart
@click.option("--grpc", "over_grpc", is_flag=True, help="Use gRPC instead of REST.")
@click.option("--stream", is_flag=True, help="Print the parts of the answer as they arrive.")
@options.version
@options.timeout(300.0, "Seconds to wait.")
@click.option("-o", "--output", type=options.FILE, help="Write the answer to a file.")
@options.server
def command(
    *,
    name: str,
    surplus: tuple[str, ...],
    data: str | None,
    file: Path | None,
    example: str | None,
    fields: tuple[str, ...],
    content_type: str | None,
    headers: tuple[str, ...],
    over_grpc: bool,
    stream: bool,
    version: str | None,
    timeout: float,
    output: Path | None,
    config: Path,
    key_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Send one request to model NAME and print the answer unchanged.

    An error response goes to stderr, with exit status 6.

    \b
    Example:
      handlergen invoke digits --data '{"pixels": [0, 1, 2]}'
      handlergen invoke digits --file three.png --grpc
      handlergen invoke digits --field image=@three.png --field top=3
      handlergen invoke digits --example 1
    """
    if surplus:
        raise click.UsageError(f"Got unexpected extra argument ({surplus[0]}). Did you mean {option_for(surplus[0])} ?")
    sources = sum((data is not None, file is not None, bool(fields), example is not None))
    misuse = {
        "give exactly one of --data, --file, --field and --example": sources != 1,
        "--header and --content-type have no effect over gRPC, which has no headers": over_grpc
        and bool(headers or content_type),
        "--stream and --json cannot be combined: JSON needs the whole answer": stream and as_json,
        "--example compares a whole answer, and has a content type of its own": example is not None
        and bool(stream or content_type),
    }
    for text in (text for text, found in misuse.items() if found):
        raise click.UsageError(text)
    if data is not None and content_type is None:
        refuse_file_name(data)
    body: dict[str, Any] = {"inputs": _grpc_inputs(data, file, fields)}
    if not over_grpc:
        body = _rest_body(data, file, fields, content_type=content_type, headers=headers_of(headers))
    if output is not None:
        writable(output)
    asked = None
    with options.connected(config, key_file, ca, timeout=timeout) as client:
        if example is not None:
            asked, version = example_of(client, config, name, example, version=version)
            body |= request_of(asked, over_grpc=over_grpc)
        try:
            with advised(client, config, name, data=data):
                if stream:
                    call = client.stream_grpc if over_grpc else client.stream
                    _write(call(name, version=version, **body), output)
                    return
                answer = (client.predict_grpc if over_grpc else client.predict)(name, version=version, **body)
        except RequestFailed as error:
            if as_json:
                print_json({"status": error.status, "body": _readable(error.body)})
            raise
    if as_json:
        report = {"status": answer.status, "headers": dict(answer.headers), "body": _readable(answer.body)}
        print_json(report, ensure_ascii=False)
    else:
        _write([answer.body], output)
    if asked is not None:
        require_right_answer(asked, answer.status, "" if over_grpc else answer.content_type, answer.body)


def _rest_body(
    data: str | None, file: Path | None, fields: tuple[str, ...], *, content_type: str | None, headers: dict[str, str]
) -> dict[str, Any]:
    kind = {"content_type": content_type} if content_type else {}
    if data is not None:
        # Send the text as it was typed: the model decides whether it is valid JSON.
        return {"content": os.fsencode(data), "content_type": JSON, "headers": headers, **kind}
    source = {"file": file} if file is not None else {"fields": dict(map(field_of, fields))} if fields else {}
    return {**source, "headers": headers, **kind}


def _grpc_inputs(data: str | None, file: Path | None, fields: tuple[str, ...]) -> dict[str, bytes]:
    if data is not None:
        return {"data": os.fsencode(data)}
    if file is not None:
        return {"data": file.read_bytes()}
    values = dict(field_of(text) for text in fields)
    return {key: value.read_bytes() if isinstance(value, Path) else os.fsencode(value) for key, value in values.items()}


def _write(parts: Iterable[bytes], output: Path | None) -> None:
    """Write the bytes unchanged; on a terminal add a line break if there is none."""
    if output is not None:
        with named(output), output.open("wb") as file:
            for part in parts:
                file.write(part)
        return
    last = b"\n"
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        last = part or last
    if not last.endswith(b"\n") and sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def _readable(body: bytes) -> Any:
    """Return JSON as a value, other text as a string, and the number of other bytes."""
    for read in (json.loads, bytes.decode):
        with suppress(ValueError):
            return read(body)
    return {"bytes": len(body)}
