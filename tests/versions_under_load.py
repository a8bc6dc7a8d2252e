"""Clients that ask a model whose default version changes, and what each of them was answered."""

from __future__ import annotations

import itertools
import json
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.client import Client
from handlergen.errors import HandlergenError
from tests.archives import make_archive

SOURCE = """
import time

VERSION = "{version}"


def load(context):
    return "loaded by " + VERSION


def preprocess(data):
    return data


def predict(inputs, model):
    time.sleep({seconds})
    return [{{"n": each["n"], "version": VERSION, "model": model}} for each in inputs]
"""
"""Answers with the request's number and the version, of the code and of what `load` returned."""


def source_of(version: str, seconds: float = 0.004) -> str:
    """The source of one version; a batch takes `seconds`."""
    return textwrap.dedent(SOURCE.format(version=version, seconds=seconds))


def archive_of(directory: Path, name: str, version: str, **settings: Any) -> Path:
    """An archive of that version of the model, in a directory of its own."""
    settings = {"batch": "list", "batch_size": 1, "version": version, "devices": "cpu", "force": True, **settings}
    return make_archive(directory / version, name, source_of(version), **settings)


def right_answer(number: int, version: str) -> dict[str, Any]:
    """What that version answers."""
    return {"n": number, "version": version, "model": f"loaded by {version}"}


@dataclass(frozen=True)
class Answered:
    """One request: its number, when it was sent and answered on the monotonic clock, and what was answered."""

    number: int
    began_s: float
    ended_s: float
    said: Any
    grpc: bool

    @property
    def version(self) -> str:
        return str(self.said["version"]) if isinstance(self.said, dict) else ""


@dataclass
class VersionLoad:
    """Clients that ask without a pause while the block runs: half over REST, each on a connection of its own that is
    kept alive, half over gRPC."""

    connect: Callable[[], Client]
    name: str
    clients: int = 8
    answered: list[Answered] = field(default_factory=list)

    numbers = itertools.count(1)

    def __enter__(self) -> VersionLoad:
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(index % 2 == 1,), daemon=True) for index in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def wrong(self, *versions: str) -> list[Answered]:
        """The requests that none of these versions answered rightly."""
        return [
            each for each in list(self.answered) if each.said not in [right_answer(each.number, v) for v in versions]
        ]

    def versions(self) -> Counter[str]:
        """How many requests each version answered."""
        return Counter(each.version for each in list(self.answered))

    def slowest_s(self) -> float:
        """The longest time that a client waited."""
        return max(each.ended_s - each.began_s for each in list(self.answered))

    def _ask(self, grpc: bool) -> None:
        with self.connect() as client:
            while not self._ended.is_set():
                number = next(self.numbers)
                began = time.monotonic()
                try:
                    answer = (client.predict_grpc if grpc else client.predict)(self.name, {"n": number})
                    said = json.loads(answer.body)
                except HandlergenError as error:
                    said = str(error)
                self.answered.append(Answered(number, began, time.monotonic(), said, grpc))
