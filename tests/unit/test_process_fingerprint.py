"""What counts as a change of a value, and what does not."""

from __future__ import annotations

import configparser
import importlib
import math
import random
import re
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from handlergen.runtime.process import fingerprint
from handlergen.runtime.process.fingerprint import Fingerprint, Fingerprints
from handlergen.runtime.process.own_files import OwnFiles

PROJECT = """
import functools


class Reader:
    def __init__(self):
        self.table = {}

    @functools.cached_property
    def large(self):
        return object()

    def __getstate__(self):
        return None


class Slots:
    __slots__ = ("table",)

    def __init__(self):
        self.table = []


@functools.lru_cache
def cached(key):
    return key


def made():
    labels = []

    def labelled():
        return labels

    return labelled, labels
"""

LARGE = 3_000_000


@pytest.fixture(autouse=True)
def however_slow_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_SECONDS", math.inf)
    monkeypatch.setattr(fingerprint, "_SLOW_SECONDS", math.inf)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fingerprinted.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fingerprinted")
    del sys.modules["fingerprinted"]


def differs(value: Any, change: Callable[[Any], Any], directory: Path) -> bool:
    """Whether a change is seen; that nothing is seen without one is asserted."""
    taken = Fingerprints(OwnFiles(directory))
    before = taken.of(value)
    assert before.digest is not None
    assert before.same(taken.of(value))
    change(value)
    return not before.same(taken.of(value))


def read(parser: configparser.ConfigParser) -> None:
    parser.read_string("[labels]\nzero = null")


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "list": ([1, [2]], lambda value: value[1].append(3)),
    "dict": ({"a": {"b": 1}}, lambda value: value["a"].update(b=2)),
    "text in a tuple's list": (("a", ["b"]), lambda value: value[1].__setitem__(0, "c")),
    "set": ({1, 2}, lambda value: value.add(3)),
    "long list": (list(range(LARGE)), lambda value: value.append(1)),
    "deque": (deque([1]), lambda value: value.append(2)),
    "ordered dict": (OrderedDict(a=1), lambda value: value.update(a=2)),
    "default dict": (defaultdict(list), lambda value: value["new"]),
    "configuration": (configparser.ConfigParser(), read),
    "random numbers": (random.Random(1), lambda value: value.random()),
    "small tensor": (torch.zeros(3, 3), lambda value: value.data[1].fill_(1)),
    "large tensor": (torch.zeros(LARGE), lambda value: value[7].fill_(1)),
    "large transposed tensor": (torch.zeros(1000, 3000).t(), lambda value: value[7, 7].fill_(1)),
    "small array": (numpy.zeros(3), lambda value: value.__setitem__(1, 1)),
    "large array": (numpy.zeros(LARGE), lambda value: value.fill(1)),
    "array of objects": (numpy.array([{"a": 1}, None]), lambda value: value[0].update(a=2)),
    "module of torch": (torch.nn.Linear(2, 2), lambda value: value.bias.data.add_(1)),
    "method of an object": ([].append, lambda value: value(1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_content_is_seen(name: str, tmp_path: Path) -> None:
    assert differs(*CHANGES[name], tmp_path)


NO_CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "another lock": ({"lock": threading.Lock()}, lambda value: value.update(lock=threading.Lock())),
    "an equal list": ({"a": [1, "x"]}, lambda value: value.update(a=[1, "x"])),
    "an equal tensor": ({"a": torch.ones(3)}, lambda value: value.update(a=torch.ones(3))),
    "what has no content": (
        [re.compile("a"), torch.device("cpu"), torch.float32, print, object(), sys, (n for n in "a"), int],
        lambda _value: None,
    ),
}


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_makes_no_difference_is_none(name: str, tmp_path: Path) -> None:
    assert not differs(*NO_CHANGES[name], tmp_path)


def test_objects_of_the_project_count_by_their_attributes(project: Any, tmp_path: Path) -> None:
    assert differs(project.Reader(), lambda reader: reader.table.update(a=1), tmp_path)
    assert differs({"deep": [project.Slots()]}, lambda value: value["deep"][0].table.append(1), tmp_path)
    assert not differs(project.Reader(), lambda reader: reader.large, tmp_path)  # it is a cache


def test_functions_count_by_what_they_hold_and_not_by_their_caches(project: Any, tmp_path: Path) -> None:
    function, labels = project.made()
    assert differs(function, lambda _function: labels.append(1), tmp_path)
    assert not differs(project.cached, lambda cached: cached(1), tmp_path)
    assert differs({"f": project.made}, lambda value: value.update(f=project.cached), tmp_path)


class Fickle:
    """Pickles differently each time."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, (time.monotonic_ns(),))


class Hostile:
    """Lets nothing be done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "make", [Fickle, Hostile, lambda: [Hostile()]], ids=["fickle", "hostile", "a list of it"]
)
def test_what_cannot_be_told_is_the_same_as_long_as_it_is_the_same_object(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    taken, value = Fingerprints(OwnFiles(tmp_path)), make()
    assert taken.of(value).same(taken.of(value))
    assert not taken.of(value).same(taken.of([1, 2]))


def test_a_list_in_itself_counts_by_its_length(tmp_path: Path) -> None:
    taken, value = Fingerprints(OwnFiles(tmp_path)), [1]
    value.append(value)  # type: ignore[arg-type]
    before = taken.of(value)
    assert before.digest is None
    assert before.same(taken.of(value))
    value.append(3)
    assert not before.same(taken.of(value))


def test_when_the_time_is_up_identity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, value = Fingerprints(OwnFiles(tmp_path)), {"a": 1}
    monkeypatch.setattr(taken, "until", 0.0)
    late = taken.of(value)
    assert late == Fingerprint(id(value), ("dict", 1), None)
    assert Fingerprints(OwnFiles(tmp_path)).of(value).same(late)
    assert not Fingerprints(OwnFiles(tmp_path)).of({"a": 1}).same(late)


def test_large_values_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = fingerprint.hashlib.blake2b

    class Counting:
        def __init__(self, first: bytes, *, digest_size: int) -> None:
            self.real = real(first, digest_size=digest_size)
            self.digest = self.real.digest

        def update(self, data: memoryview) -> None:
            read.append(data.nbytes)
            self.real.update(data)

    monkeypatch.setattr(fingerprint.hashlib, "blake2b", Counting)
    taken = Fingerprints(OwnFiles(tmp_path))
    for value in (torch.zeros(50_000_000), "x" * 100_000_000, dict.fromkeys(range(1_000_000), "text")):
        read.clear()
        assert taken.of(value).digest is not None
        assert 0 < sum(read) <= 4 << 20


def test_an_inference_tensor_is_looked_at_too(tmp_path: Path) -> None:
    with torch.inference_mode():
        value = torch.zeros(LARGE)

    def change(tensor: torch.Tensor) -> None:
        with torch.inference_mode():
            tensor.fill_(1)

    assert differs(value, change, tmp_path)
