"""The process of `ask_in_clean_process`: loads a project, asks examples, writes a JSON report to standard output."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import sys
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.local.ending import end
from handlergen.local.model import load
from handlergen.runtime.diagnostics import ROOT
from handlergen.runtime.worker import read_examples

_MOST_TRACEBACKS = 100


def main() -> None:
    """Run `python -m handlergen.local.clean_child SOURCE` in the directory of the examples."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # hooks may print; standard output is for the report
    given, report = json.loads(sys.argv[1]), dict[str, Any]()
    tracebacks = BufferingHandler(capacity=_MOST_TRACEBACKS)
    tracebacks.setLevel(logging.ERROR)
    ROOT.addHandler(tracebacks)
    try:
        examples = read_examples(Path.cwd())
        options = {"gpu": given["gpu"], "any_runtime": given["any_runtime"], **given["overrides"]}
        with load(given["source"], **options) as model:
            found = [dataclasses.asdict(model.ask(example)) for example in examples]
        report = {
            "answers": [{**each, "body": base64.b64encode(each["body"]).decode()} for each in found],
            "traceback": "\n".join(record.getMessage() for record in tracebacks.buffer),
        }
    except HandlergenError as error:
        traceback = error.traceback if isinstance(error, ModuleFailed) else ""
        report = {"error": error.message, "hint": error.hint, "traceback": traceback}
    with answers:
        answers.write(json.dumps(report).encode())


if __name__ == "__main__":
    main()
    end(0, [])
