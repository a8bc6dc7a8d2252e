"""A stand-in for a server: forks workers off itself when it is told to.

multiprocessing's fork server, which imports torch once for all tests, runs `serve` in a process whose death means that
the server is gone.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch

from handlergen.runtime.contract import Bundle
from handlergen.runtime.worker import Worker, backend_of, report_failed_load
from tests.serving import ServerContext


class Context(ServerContext):
    """Chunks go to the test."""

    def __init__(self, connection: Connection, names: list[str], properties: list[dict[str, Any]]) -> None:
        super().__init__(properties)
        self.request_ids = dict(enumerate(names))
        self.connection = connection
        self.outlet = self

    def send(self, item: Any, body: bytes, _content_type: str) -> None:
        self.connection.send(("chunk", item.request.id, bytes(body)))

    def break_off(self, failure: Any) -> None:
        self.connection.send(("broken off", failure.status))


def work(directory: Path, address: str) -> None:
    """Answer what is sent through a connection to `address`, as a worker of the model in `directory`."""
    os.chdir(directory)
    sys.path.insert(0, str(directory))
    connection = Client(address)
    try:
        bundle = Bundle.from_json((directory / "handlergen.json").read_text("utf-8"))
        worker = Worker(bundle, directory, gpu_id=None, batch_size=8, backend=backend_of(bundle))
    except Exception as error:
        connection.send((os.getpid(), report_failed_load(error, directory)))
        return
    connection.send((os.getpid(), None))
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


def serve(orders: Connection, model: Path, address: str, environ: Mapping[str, str]) -> None:
    """Fork a worker off for each log file that `orders` names, until nobody can send one any more."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ.update(environ)
    os.chdir(model.parent)  # where its logs are
    torch.set_num_threads(1)
    while True:
        try:
            log = orders.recv()
        except EOFError:
            return
        if os.fork():
            continue
        try:
            orders.close()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO, force=True)
            work(model, address)
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
