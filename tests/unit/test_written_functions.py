"""Live functions and classes as source: the written module, in a process of its own, computes what they compute."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import logging
import math
import operator
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from handlergen.creation.draft import Draft
from handlergen.creation.source_code import write, write_callable
from handlergen.errors import HandlergenError

LABELS = ["a", "b"]
WORDS = {f"word {number}": number for number in range(500)}
MEAN = np.array([0.1, 0.2])
TABLE = np.arange(100.0)
WEIGHTS = torch.arange(30.0)
PATTERN = re.compile("B+", re.IGNORECASE)
LIMIT = float("inf")
ORDER = collections.OrderedDict(x=1)
LOCK = threading.Lock()
log = logging.getLogger("words")


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Size:
    width: int = 3
    color: Color = Color.RED


class Point(NamedTuple):
    x: float
    y: Fraction


Span = collections.namedtuple("Span", "first last", defaults=[9])
SPAN = Span(1)
CHANGES = {"upper": str.upper, "reversed": lambda text: text[::-1]}
SIZE = Size(4)
POINT = Point(1.5, Fraction(1, 3))


class Scaler:
    """Built again from its constructor's arguments."""

    STEP = 2

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, value: float) -> float:
        return helped(value) * self.factor * self.STEP


SCALER = Scaler(5.0)


class Vocabulary:
    """Filled after it was made; its lock is its constructor's matter."""

    def __init__(self, lower: bool = True) -> None:
        self.lower = lower
        self.index: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, data: str) -> list[Any]:
        with self.lock:
            return [self.index.get(word) for word in (data.lower() if self.lower else data).split()]


FILLED = Vocabulary(lower=False)
FILLED.index["A"] = 7


class Names(dict[str, int]):
    def of(self, name: str) -> int:
        return self.get(name, -1)


NAMES, LAST = Names(a=4), collections.deque([1, 2], maxlen=2)


def with_default(data: Any, function: Callable[[Any], Any] = abs, more: Any = LABELS) -> Any:
    return [function(data), more, NAMES.of("a"), LAST.maxlen]


CONFIG = types.SimpleNamespace(width=3, get={"a": 1}.get, clean=[str.strip, operator.itemgetter(0)])


class Bits(enum.Flag):
    """Its values may be several at once."""

    ONE = 1
    TWO = 2


BOTH = Bits.ONE | Bits.TWO


def helped(value: float) -> float:
    """Half of it."""
    return value / 2  # a comment stays


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        log.debug("called")
        return ["logged", function(*arguments)]

    return wrapper


def plus(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(value: Any) -> Any:
        return function(value) + 1

    return wrapper


@logged
def everything(data: Any) -> Any:
    numbers = [float(MEAN.sum()), float(TABLE[7]), float(WEIGHTS[9]), math.floor(data), data < LIMIT]
    return [*numbers, LABELS, WORDS["word 9"], PATTERN.pattern, bool(PATTERN.match("b")), SIZE.width, ORDER["x"]]


@plus
def raised(value: float) -> float:
    return value * 2


def configured(data: Any) -> Any:
    cleaned = CONFIG.clean[1]([CONFIG.clean[0](" x ")])
    return [CONFIG.width, CONFIG.get("a"), cleaned, BOTH.value, FILLED("A b"), float(torch.relu(torch.tensor(data)))]


def indented() -> Callable[[Any], str]:
    def inner(data: Any) -> str:
        return """two
        lines"""

    return inner


def counter() -> Callable[[int], int]:
    total = 0

    def add(data: int) -> int:
        nonlocal total
        total += data
        return total

    return add


@functools.singledispatch
def dispatched(data: Any) -> str:
    return "any"


class Lost:
    """Does not keep what it was made of."""

    def __init__(self, path: str) -> None:
        self.size = len(path)


LOST, RING = Lost("a"), [0]
RING.append(RING)  # type: ignore[arg-type]


def loses(data: Any) -> Any:
    return LOST.size


def rings(data: Any) -> Any:
    return RING[0]


def factorial(number: int) -> int:
    return 1 if number < 2 else number * factorial(number - 1)


def colored(size: Size | None) -> str:
    return f"{Color.RED.name} {POINT.y}"


def preprocess(data: Any) -> Any:
    return data


def uses_a_name_of_a_hook(data: Any) -> Any:
    return [preprocess(data)]


def closed(factor: float, names: dict[str, Any]) -> Callable[[Any], Any]:
    def inner(data: Any) -> Any:
        return names["first"](data) * factor

    return inner


def changed(data: str) -> Any:
    return [CHANGES["upper"](data), CHANGES["reversed"](data), *SPAN]


def locked(data: Any) -> Any:
    with LOCK:
        return data


def powered(base: float, exponent: float, *, plus: float = 0.0) -> float:
    return float(base**exponent + plus)


RIGHT: dict[str, tuple[Any, Any]] = {
    "everything it uses": (everything, 2.5),
    "decorated without wraps": (raised, 3.0),
    "recursion": (factorial, 5),
    "annotations": (colored, None),
    "the name of a hook": (uses_a_name_of_a_hook, 3),
    "closure": (closed(3.0, {"first": abs}), -2.0),
    "lambda": (lambda data: [LABELS[0], data], 3),
    "lambda among others": ((lambda: 0, lambda data: data + 7)[1], 3),
    "partial": (functools.partial(powered, exponent=2.0, plus=helped(3)), 3.0),
    "partial of positions": (functools.partial(powered, 3.0), 2.0),
    "method": (SCALER.scale, 3.0),
    "objects": (configured, -1.0),
    "defaults that are functions": (functools.partial(with_default, more=["m"]), -3),
    "an object that is called": (FILLED, "a A"),
    "methods of types, tuples with names": (changed, "ab"),
    "indented texts": (indented(), None),
    "of a library": (json.dumps, [1, 2]),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_written_computes_the_same(case: str, tmp_path: Path) -> None:
    function, asked = RIGHT[case]
    assert written(function, asked, tmp_path) == json.loads(json.dumps(function(asked)))


def written(function: Any, asked: Any, directory: Path) -> Any:
    draft = Draft(write, title="Written.")
    write_callable(draft, "predict", function)
    (directory / "model.py").write_text(draft.module_text())
    for file, put in draft.files.items():
        put(directory / file)
    program = f"import json, model; print(json.dumps(model.predict(json.loads({json.dumps(asked)!r}))))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=directory, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{draft.module_text()}\n{ran.stderr}"
    return json.loads(ran.stdout)


def test_the_source_stays_as_it_was_written() -> None:
    draft = Draft(write)
    write_callable(draft, "predict", SCALER.scale)
    text = draft.module_text()
    assert "return value / 2  # a comment stays" in text
    assert '"""Built again from its constructor\'s arguments."""' in text
    assert "scaler = Scaler(factor=5.0)" in text


def test_names_that_mean_two_things_get_two_names() -> None:
    draft = Draft(write)
    for role, factor in (("preprocess", 2.0), ("postprocess", 3.0)):
        write_callable(draft, role, closed(factor, {"first": abs}))
    names: dict[str, Any] = {}
    exec(draft.module_text(), names)
    assert (names["preprocess"](-1), names["postprocess"](-1)) == (2.0, 3.0)


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    exec("unknown = lambda data: data\ndef made(data): return data", made)
    with (tmp_path / "log.txt").open("w") as file:
        cases = {
            "len has no Python source": len,
            "locked uses LOCK: a _thread.lock cannot be written down": locked,
            "inner uses factor: a _io.TextIOWrapper cannot be written down": closed(file, {}),  # type: ignore[arg-type]
            "add assigns a variable of the function around it": counter(),
            "dispatched is a functools.singledispatch": dispatched,
            "loses uses LOST: a Lost cannot be written down: its constructor's path cannot be found": loses,
            "rings uses RING: RING contains itself": rings,
            "the source of a lambda is not to be found": made["unknown"],
            "the source of made is not to be found": made["made"],
            f"inner uses names: {tmp_path} is a path of this machine": closed(1.0, {"first": tmp_path}),
        }
        for message, function in cases.items():
            with pytest.raises(HandlergenError) as caught:
                write_callable(Draft(write), "predict", function)
            assert message in caught.value.message
            assert caught.value.hint


SESSION = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in (
    "FACTOR = 2",
    "def helper(x):\\n    return x * FACTOR",
    "%%time\\ndef predict(x):\\n    return helper(x) + 1",
    "class Held:\\n    def __init__(self, k=1): self.k = k\\n    def add(self, x): return predict(x) + self.k",
    "def helper(x):\\n    # the newer one\\n    return x * FACTOR * 10",
    "held = Held(3)",
    "ask = lambda x: held.add(x)",
    "from handlergen.creation.draft import Draft",
    "from handlergen.creation.source_code import write, write_callable",
    "draft = Draft(write); write_callable(draft, 'postprocess', ask); text = draft.module_text()",
):
    shell.run_cell(cell, store_history=True).raise_error()
names = {}
exec(shell.user_ns["text"], names)
assert "# the newer one" in shell.user_ns["text"]
print("ANSWER", names["postprocess"](1), shell.user_ns["ask"](1))
"""


def test_the_cells_of_a_notebook(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    environ = {"IPYTHONDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, check=False, env=environ)
    assert "ANSWER 24 24" in ran.stdout, ran.stderr + ran.stdout


def test_a_python_that_keeps_no_source_is_told_so() -> None:
    program = (
        "from handlergen.creation.draft import Draft\n"
        "from handlergen.creation.source_code import write, write_callable\n"
        "def predict(x): return x + 1\n\n"
        "draft = Draft(write)\n"
        "write_callable(draft, 'predict', predict)\n"
        "print('WROTE', 'def predict' in draft.module_text())\n"
    )
    ran = subprocess.run([sys.executable, "-i"], input=program, capture_output=True, text=True, check=False)
    if sys.version_info < (3, 13):  # which keeps what is typed
        assert "the source of predict is not to be found" in ran.stderr
    else:
        assert "WROTE True" in ran.stdout or "is not to be found" in ran.stderr


CELLS = """
import linecache, sys
names = sys.modules["__main__"].__dict__
cells = (
    "import torch\\nlabels = ['small', 'large']",
    "class Net(torch.nn.Module):\\n    def __init__(self):\\n        super().__init__()\\n"
    "        self.layer = torch.nn.Linear(2, 2)\\n\\n    def forward(self, rows):\\n        return self.layer(rows)",
    "net = Net()\\nto_label = lambda outputs: [labels[each] for each in outputs.argmax(1)]",
)
for number, cell in enumerate(cells):
    file = f"<cell {number}>"
    linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
    exec(compile(cell, file, "exec"), names)
import handlergen
place = handlergen.create(net, sys.argv[1], postprocess=to_label, example=[[1.0, 2.0]])
right = labels[int(net(torch.tensor([[1.0, 2.0]])).argmax())]
print("CREATED", right, (place / "examples" / "1.answer.json").read_text())
"""


def test_the_cells_of_a_notebook_that_only_linecache_has(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CELLS, str(tmp_path / "out")]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)  # create asks a clean process
    right, _, answer = ran.stdout.partition("CREATED ")[2].partition(" ")
    assert right, ran.stderr
    assert json.loads(answer) == [right]
