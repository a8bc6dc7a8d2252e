"""Several models in one process: each has its own modules, directory and `sys.path`; the caller keeps its own."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

import handlergen

Write = Callable[[str, str], Path]

NAMES = """
import names

def predict(inputs):
    import late
    return [names.NAME, late.NAME]
"""
TRUSS = """
from . import names

class Model:
    def predict(self, model_input):
        from . import late
        return [names.NAME, late.NAME]
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("a/x.py", text)` -> the path of that file below a temporary directory."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    return write


def project(write: Write, kind: str, name: str) -> Path:
    """A model that answers with its name, twice: from a module imported at the top, and from one imported late."""
    directory = "model/" if kind == "truss" else ""
    for module in ("names", "late"):
        write(f"{name}/{directory}{module}.py", f"NAME = {name!r}\n")
    if kind == "truss":
        write(f"{name}/model/__init__.py", "")
        write(f"{name}/model/model.py", TRUSS)
        return write(f"{name}/config.yaml", f"model_name: {name}\n").parent
    write(f"{name}/serve.py", NAMES)
    found = write(f"{name}/handlergen.yaml", "source: serve.py\npackages: [names.py, late.py]\n").parent
    return handlergen.archive(found, model_store=found.parent / "store", name=name).path if kind == "mar" else found


@pytest.mark.parametrize("kind", ["source", "truss", "mar"])
def test_models_keep_modules_of_equal_names_apart(write: Write, kind: str) -> None:
    first, second = project(write, kind, "a"), project(write, kind, "b")
    with handlergen.load(first) as a, handlergen.load(second) as b:
        assert [a.predict({}), b.predict({}), a.predict({})] == [["a", "a"], ["b", "b"], ["a", "a"]]
        a.close()
        assert b.predict({}) == ["b", "b"]
    with handlergen.load(first) as a, handlergen.load(second) as b:
        assert [b.predict({}), a.predict({})] == [["b", "b"], ["a", "a"]]


def test_models_at_once_in_threads(write: Write) -> None:
    sources = project(write, "source", "a"), project(write, "source", "b")
    with handlergen.load(sources[0]) as a, handlergen.load(sources[1]) as b, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: (a, b)[number % 2].predict({}), range(60)))
    assert answers == [["a", "a"], ["b", "b"]] * 30


def test_batch_map_and_stream_find_the_models_own_modules(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write("a/rows/one.json", "{}").parent
    with handlergen.load(project(write, "source", "a")) as a, handlergen.load(project(write, "source", "b")):
        monkeypatch.chdir(rows)
        assert [answer.value for answer in a.batch([1, 2])] == [["a", "a"]] * 2
        for workers, threads in ((0, False), (2, False), (2, True)):
            inputs = (Path("one.json") for _ in range(3))  # of the caller's directory
            found = a.map(inputs, batch_size=2, workers=workers, threads=threads)
            assert [result.value for result in found] == [["a", "a"]] * 3
        assert list(a.stream({})) == [b'["a","a"]']


def test_the_callers_surroundings_stay(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("caller/names.py", "NAME = 'caller'\n")
    monkeypatch.syspath_prepend(write("caller/late.py", "NAME = 'caller'\n").parent)
    monkeypatch.chdir(write("here/x", "").parent)
    mine = importlib.import_module("names")
    path, before, directory = sys.path, [*sys.path], Path.cwd()
    try:
        with handlergen.load(project(write, "source", "a")) as a:
            assert a.predict({}) == ["a", "a"]
            assert sys.modules["names"] is mine
            assert importlib.import_module("late").NAME == "caller"
            assert a.predict({}) == ["a", "a"]
            assert (sys.path, [*sys.path], Path.cwd()) == (path, before, directory)
        assert sys.modules["names"] is mine
    finally:
        for name in ("names", "late"):
            sys.modules.pop(name, None)


def test_directory_and_path_that_load_left_belong_to_the_model(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a/vendor/late.py", "NAME = 'vendor'\n")
    write("a/data/value.txt", "7")
    source = write(
        "a/serve.py",
        """
        import os, sys
        from pathlib import Path

        sys.path.insert(0, os.path.join(os.path.dirname(__file__), "vendor"))

        def load(context):
            os.chdir("data")

        def predict(inputs):
            import late
            return [late.NAME, Path("value.txt").read_text()]
        """,
    )
    monkeypatch.chdir(write("here/x", "").parent)
    before = Path.cwd(), [*sys.path]
    with handlergen.load(source) as a, handlergen.load(project(write, "source", "b")) as b:
        assert [a.predict({}), b.predict({}), a.predict({})] == [["vendor", "7"], ["b", "b"], ["vendor", "7"]]
        assert before == (Path.cwd(), [*sys.path])
        assert "late" not in sys.modules


def test_pickles_dataclasses_and_types_find_the_module(write: Write) -> None:
    source = """
        from __future__ import annotations

        import pickle
        import typing
        from dataclasses import dataclass

        @dataclass
        class Point:
            x: Other

        @dataclass
        class Other:
            name: str = NAME

        def predict(inputs):
            copied = pickle.loads(pickle.dumps(Point(Other())))
            return [copied.x.name, typing.get_type_hints(Point)["x"] is Other]
        """
    one, two = (write(f"{name}/serve.py", source.replace("= NAME", f"= {name!r}")) for name in "ab")
    with handlergen.load(one) as a, handlergen.load(two) as b:
        assert [a.predict({}), b.predict({}), a.predict({})] == [["a", True], ["b", True], ["a", True]]


def test_a_hook_uses_another_model(write: Write) -> None:
    inner = project(write, "source", "a")
    write("b/late.py", "NAME = 'b'\n")
    outer = write(
        "b/serve.py",
        f"""
        import handlergen
        import late

        def setup(context):
            global model
            model = handlergen.load({str(inner)!r})

        def preprocess(data):
            found = [*model.predict({{}}), *[r.value[0] for r in model.map([1, 2], threads=True, workers=2)]]
            return [late.NAME, *found, *[chunk.decode() for chunk in model.stream({{}})]]

        def predict(inputs):
            return inputs
        """,
    )
    with handlergen.load(outer) as b:
        right = ["b", "a", "a", "a", "a", '["a","a"]']
        assert b.predict({}) == right
        assert [answer.value for answer in b.batch([1, 2, 3])] == [right] * 3


def test_a_busy_model_does_not_keep_another_out(write: Write) -> None:
    with handlergen.load(project(write, "source", "a")) as a, handlergen.load(project(write, "source", "b")) as b:
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                a.predict({})

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            try:
                assert [b.predict({}) for _ in range(20)] == [["b", "b"]] * 20
            finally:
                ended.set()
            for each in asking:
                each.result()


def test_a_module_that_fails_to_load_leaves_nothing(write: Write) -> None:
    write("a/names.py", "import os\nos.chdir('/')\n")
    source = write("a/serve.py", "import names\n1 / 0\ndef predict(inputs):\n    return 1\n")
    before = Path.cwd(), [*sys.path]
    with pytest.raises(handlergen.ModuleFailed, match="ZeroDivisionError"):
        handlergen.load(source)
    assert before == (Path.cwd(), [*sys.path])
    assert "names" not in sys.modules
