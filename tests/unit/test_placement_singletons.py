"""Objects that are made once and handed out again: what load sets on one, preprocess finds there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

SINGLE = {
    "__new__": """
        class Resources:
            _instance = None
            def __new__(cls):
                if cls._instance is None:
                    cls._instance = super().__new__(cls)
                    cls._instance.tokens = None
                return cls._instance
    """,
    "object.__new__": """
        class Resources:
            _instances = {}
            def __new__(cls, *arguments):
                if cls not in cls._instances:
                    cls._instances[cls] = object.__new__(cls)
                return cls._instances[cls]
    """,
    "a metaclass": """
        class Single(type):
            _instances = {}
            def __call__(cls, *arguments):
                if cls not in Single._instances:
                    Single._instances[cls] = super().__call__(*arguments)
                return Single._instances[cls]
        class Resources(metaclass=Single):
            tokens = None
    """,
    "a base's metaclass": """
        from somewhere import Single
        class Base(metaclass=Single): pass
        class Resources(Base):
            tokens = None
    """,
    "a function that decorates": """
        def single(kind):
            made = []
            def get(*arguments):
                if not made:
                    made.append(kind(*arguments))
                return made[0]
            return get
        @single
        class Resources:
            tokens = None
    """,
    "a decorator of a library": """
        from somewhere import single
        @single
        class Resources:
            tokens = None
    """,
    "a decorator of a library with arguments": """
        from somewhere import single
        @single(per="process")
        class Resources:
            tokens = None
    """,
}


@pytest.mark.parametrize("text", SINGLE.values(), ids=SINGLE)
def test_load_sets_what_the_only_instance_has(text: str, tmp_path: Path) -> None:
    hooks = "def load(context): Resources().tokens = 1\ndef preprocess(data): return Resources().tokens\n"
    found = placed(tmp_path, functions(text) + hooks)
    assert ("preprocess", "Resources") in [(reason.hook, reason.name) for reason in found.reasons]


def test_a_registry_that_a_decorator_fills(tmp_path: Path) -> None:
    text = """
        REGISTRY = []
        def register(kind):
            REGISTRY.append(kind())
            return kind
        @register
        class Reader:
            words = {}
        def load(context): REGISTRY[0].words["x"] = 1
        def preprocess(data): return Reader.words["x"]
    """
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["Reader"]


MANY = {
    "a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass Resources: tokens: int = 0\n",
    "one with slots": "from dataclasses import dataclass\n@dataclass(slots=True)\nclass Resources: tokens = 0\n",
    "an abstract base": "import abc\nclass Base(abc.ABC): pass\nclass Resources(Base): tokens = None\n",
    "an abstract metaclass": "import abc\nclass Resources(metaclass=abc.ABCMeta): tokens = None\n",
    "a __new__ of its own": "class Resources:\n    def __new__(cls): return super().__new__(cls)\n",
    "a decorator that hands it on": "def named(kind): return kind\n@named\nclass Resources: tokens = None\n",
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_an_instance_of_load_is_not_that_of_preprocess(text: str, tmp_path: Path) -> None:
    hooks = """
def load(context): Resources().tokens = 1
def preprocess(data):
    mine = Resources()
    mine.tokens = 2
    return mine.tokens
"""
    assert placed(tmp_path, functions(text + hooks)).reasons == ()
