"""What a hook can reach by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlergen.runtime.process.code_reads import reads_of
from handlergen.runtime.process.own_files import OwnFiles
from handlergen.runtime.process.reach import Reach

Write = Callable[..., ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write(text, other=text)` imports a module and its neighbours; `other` is `reached_other`."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(text: str, **others: str) -> ModuleType:
        for name, source in {**others, "main": text}.items():
            path = tmp_path / f"reached_{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module("reached_main")

    yield make
    for name in [name for name in sys.modules if name.startswith("reached_")]:
        del sys.modules[name]


def reached(module: ModuleType, tmp_path: Path, **options: Any) -> set[str]:
    """What `preprocess` reaches, as it is shown; without functions, classes and modules."""
    owner = options.get("served", module)
    found = Reach(vars(owner)["preprocess"], OwnFiles(tmp_path), **options)
    kinds = (type(len), type(reached), type, ModuleType)
    return {each.shown for each in found.values.values() if not isinstance(each.value, kinds)}


def test_globals_of_the_hook_and_of_what_it_calls(write: Write, tmp_path: Path) -> None:
    module = write(
        """
import json
TABLE, OTHER, UNUSED, INNER, DEFAULT, LATER = [], [], [], [], [], []

def preprocess(data, table=DEFAULT):
    words = [OTHER[word] for word in helper(data)]
    return (lambda: INNER)(), json.dumps(words)

def helper(data):
    return TABLE

def predict(inputs):
    return UNUSED
"""
    )
    found = reached(module, tmp_path)
    assert found == {"TABLE", "OTHER", "INNER", "a default of preprocess"}
    values = Reach(module.preprocess, OwnFiles(tmp_path)).values
    assert values["reached_main", "TABLE"].through == ("helper",)
    assert values["reached_main", "TABLE"].value is module.TABLE
    assert not [name for _, name in values if name == "UNUSED"]


def test_attributes_of_the_projects_modules(write: Write, tmp_path: Path) -> None:
    module = write(
        """
import json
import reached_cfg
import reached_cfg as again

def preprocess(data):
    from reached_late import LATE, clean
    return reached_cfg.TOKENS, json.decoder, clean(LATE), passed(again)

def passed(module):
    return module.PASSED
""",
        cfg="TOKENS = {}\nUNUSED = {}\nPASSED = {}\n",
        late="LATE = {}\nCLEAN = {}\nUNUSED = {}\ndef clean(x):\n    return CLEAN\n",
    )
    assert "reached_late" not in sys.modules
    found = reached(module, tmp_path)
    assert found == {
        "reached_cfg.TOKENS",
        "reached_late.LATE",
        "CLEAN",
        "reached_cfg.PASSED",
    }


def test_classes_and_objects_of_the_project(write: Write, tmp_path: Path) -> None:
    module = write(
        """
import functools

class Base:
    shared = []

class Reader(Base):
    _only = None
    unused = []

    @classmethod
    def only(cls):
        return cls._only

    @property
    def labels(self):
        return LABELS, self.shared

    def __getitem__(self, key):
        return ITEMS

    def never(self):
        return NEVER

LABELS, ITEMS, NEVER, STEPS = [], [], [], []
READERS = {"first": Reader()}

def step(data):
    return STEPS

TO_DO = [functools.partial(step, 1)]

def preprocess(data):
    return READERS["first"].labels, Reader.only(), [each() for each in TO_DO]
"""
    )
    found = reached(module, tmp_path)
    assert {"LABELS", "ITEMS", "Base.shared", "STEPS", "TO_DO", "READERS", "Reader._only"} <= found
    assert not found & {"NEVER", "Reader.unused"}


def test_decorated_functions_and_closures(write: Write, tmp_path: Path) -> None:
    module = write(
        """
import contextlib
import functools

ONE, TWO, THREE, FOUR = [], [], [], []

def ours(function):
    seen = []
    def wrapper(*args):
        seen.append(1)
        return function(*args), ONE
    return wrapper

@ours
def preprocess(data):
    with managed():
        return cached(1), TWO

@functools.lru_cache
def cached(key):
    return THREE

@contextlib.contextmanager
def managed():
    yield FOUR
"""
    )
    assert {"ONE", "TWO", "THREE", "FOUR", "seen of wrapper"} <= reached(module, tmp_path)


def test_names_that_are_texts(write: Write, tmp_path: Path) -> None:
    module = write(
        """
import reached_cfg
TABLE, OTHER = [], []

def preprocess(data):
    return getattr(reached_cfg, "TOKENS"), globals()["TABLE"], data["OTHER"]
""",
        cfg="TOKENS = {}\nUNUSED = {}\n",
    )
    assert {"TABLE", "reached_cfg.TOKENS"} <= reached(module, tmp_path)


def test_texts_are_no_names_without_a_function_that_takes_them(write: Write, tmp_path: Path) -> None:
    module = write("OTHER = []\ndef preprocess(data):\n    return data['OTHER']\n")
    assert reached(module, tmp_path) == set()


CLASS = """
class Base:
    def helped(self, x):
        return self.of_base, LABELS

class Model(Base):
    kinds = []

    def __init__(self):
        self.made = BUILT

    def load(self):
        self.loaded = LOADED

    def preprocess(self, data):
        import json
        other = data.not_mine
        return self.table, self._helper(data), json.load(data), type(self).kinds

    def _helper(self, data):
        return [self.inner for _ in data], super().helped(data), self.viewed

    @property
    def viewed(self):
        return self.behind

    def passes(self, data):
        return outside(self)

LABELS, LOADED, BUILT = [], [], []

def outside(model):
    return model.looked_at
"""


def test_attributes_of_the_served_instance(write: Write, tmp_path: Path) -> None:
    module = write(CLASS)
    found = Reach(
        module.Model.preprocess,
        OwnFiles(tmp_path),
        served=module.Model,
        skipped=("load", "predict", "__init__"),
    )
    assert {"table", "inner", "of_base", "viewed", "behind"} <= found.own
    assert not found.own & {"not_mine", "load", "looked_at", "made", "loaded", "passes"}
    names = {name for _, name in found.values}
    assert "LABELS" in names
    assert not names & {"LOADED", "BUILT"}


def test_an_instance_that_is_passed_on(write: Write, tmp_path: Path) -> None:
    module = write(CLASS)
    found = Reach(module.Model.passes, OwnFiles(tmp_path), served=module.Model, skipped=("load",))
    assert "looked_at" in found.own
    assert not found.own & {"table", "loaded"}


def test_what_is_installed_beside_the_project_is_not_its_own(tmp_path: Path) -> None:
    for name in ("model.py", "lib/__init__.py", "venv/site-packages/other.py", "single.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lib-1.0.dist-info").mkdir()
    (tmp_path / "lib-1.0.dist-info" / "RECORD").write_text("lib/__init__.py,,\nsingle.py,sha256=x,0\n\n")
    files = OwnFiles(tmp_path)
    found = [
        name
        for name in ("model.py", "lib/__init__.py", "venv/site-packages/other.py", "single.py")
        if files.has_file(str(tmp_path / name))
    ]
    assert found == ["model.py"]
    assert not files.has_file("")
    assert not files.has_file(json_file := importlib.import_module("json").__file__ or ""), json_file


def test_what_stands_behind_a_variable_and_what_is_done_with_it() -> None:
    def function(self: Any, other: Any) -> Any:
        self.stored = other.attribute
        inner = [self.inside for _ in ()]
        call = self(inner)
        return type(self), isinstance(self, int), call, other

    reads = reads_of(function.__code__)
    assert reads.after["self"] >= {"inside"}
    assert "stored" not in reads.after["self"]
    assert reads.after["other"] == {"attribute"}
    assert "other" in reads.bare
    assert reads.attributes == {"attribute", "inside"}
    if sys.version_info >= (3, 11):
        assert "self" not in reads.bare
        assert "__call__" in reads.after["self"]
