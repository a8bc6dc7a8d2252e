"""A stand-in for a server: forks workers off itself when it is told to, so that twenty cost no more than one import.

`python standin.py ADDRESS`; each line on its standard input, `DIRECTORY LOG`, forks a worker off, which connects to
ADDRESS and answers what it is sent there. It is the process whose death means that the server is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import torch

from handlergen.runtime.contract import Bundle
from handlergen.runtime.worker import Worker, backend_of


class Context:
    """TorchServe's, as far as the runtime uses it; chunks go to the test."""

    class Processor:
        def __init__(self, properties: dict[str, Any]) -> None:
            self.properties = properties

        def get_request_properties(self) -> dict[str, Any]:
            return self.properties

    def __init__(self, connection: Any, names: list[str], properties: list[dict[str, Any]]) -> None:
        self.request_ids = dict(enumerate(names))
        self.request_processor = [self.Processor(each) for each in properties]
        self.statuses = [200] * len(names)
        self.headers: list[dict[str, str]] = [{} for _ in names]
        self.connection = connection
        self.outlet = self

    def set_response_content_type(self, index: int, value: str) -> None:
        self.headers[index]["content-type"] = value

    def set_response_status(self, code: int, _phrase: str, index: int) -> None:
        self.statuses[index] = code

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.headers[index][name] = value

    def send(self, item: Any, body: bytes, _content_type: str) -> None:
        self.connection.send(("chunk", item.request.id, bytes(body)))

    def break_off(self, failure: Any) -> None:
        self.connection.send(("broken off", failure.status))


def work(directory: Path, address: str) -> None:
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    connection = Client(address)
    try:
        bundle = Bundle.from_json((directory / "handlergen.json").read_text("utf-8"))
        worker = Worker(bundle, directory, gpu_id=None, batch_size=8, backend=backend_of(bundle))
    except Exception as error:
        connection.send((os.getpid(), "failed", f"{type(error).__name__}: {error}"))
        return
    connection.send((os.getpid(), "ready", None))
    while True:
        kind, names, rows = connection.recv()
        if kind == "describe":
            answer: Any = worker.describe()
        elif kind == "cuda":
            answer = torch.cuda.is_initialized()
        else:
            properties = [
                {"content-type": "application/json", "body": {"content-type": "application/json"}, **headers}
                for _, headers in rows
            ]
            context = Context(connection, names, properties)
            bodies = worker.handle([{"body": bytearray(body)} for body, _ in rows], context)
            answer = list(zip(context.statuses, context.headers, map(bytes, bodies), strict=True))
        connection.send(("done", answer))


def main(address: str) -> None:
    for line in sys.stdin:
        directory, log = line.split()
        if os.fork():
            continue
        try:
            os.close(0)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO, force=True)
            work(Path(directory), address)
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
