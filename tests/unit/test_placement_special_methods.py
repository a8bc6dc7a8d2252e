"""What Python calls without a call being written: properties, descriptors, special methods, imports that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

LOAD = """
TOKENS = None
def load(context):
    global TOKENS
    TOKENS = [1]
"""

READS = {
    "__bool__ in if": ("def __bool__(self): return TOKENS", "if X: return 1"),
    "__bool__ in while": ("def __bool__(self): return TOKENS", "while X: return 1"),
    "__bool__ in a conditional": ("def __bool__(self): return TOKENS", "return 1 if X else 2"),
    "__bool__ with and": ("def __bool__(self): return TOKENS", "return X and 2"),
    "__bool__ with not": ("def __bool__(self): return TOKENS", "return not X"),
    "__bool__ in a comprehension": ("def __bool__(self): return TOKENS", "return [1 for x in d if X]"),
    "__iter__ in unpacking": ("def __iter__(self): yield TOKENS", "a, = X"),
    "__iter__ with a star": ("def __iter__(self): yield TOKENS", "return [*X]"),
    "__iter__ in a call": ("def __iter__(self): yield TOKENS", "return max(*X)"),
    "keys with two stars": ("def __getitem__(self, k): return TOKENS", "return dict(**X)"),
    "a property in a pattern": (
        "__match_args__ = ('v',)\n    @property\n    def v(self): return TOKENS",
        "match X:\n        case Words(v): return v",
    ),
    "__eq__ in a pattern": ("def __eq__(self, other): return TOKENS", "match X:\n        case 3: return 1"),
}


@pytest.mark.parametrize(("method", "use"), READS.values(), ids=READS)
def test_a_special_method_that_reads(method: str, use: str, tmp_path: Path) -> None:
    text = f"class Words:\n    {method}\nX = Words()\ndef preprocess(d):\n    {use}\n"
    found = placed(tmp_path, functions(text) + LOAD)
    assert {reason.name for reason in found.reasons} == {"TOKENS"}


def test_an_object_that_is_awaited(tmp_path: Path) -> None:
    text = "class X:\n    def __await__(self): yield TOKENS\nasync def preprocess(d): return await X()\n"
    assert {reason.name for reason in placed(tmp_path, functions(text) + LOAD).reasons} == {"TOKENS"}


def test_a_descriptor_that_reads(tmp_path: Path) -> None:
    text = """
        class Lazy:
            def __get__(self, owner, kind=None): return TOKENS
        class Words:
            tokens = Lazy()
        X = Words()
        def preprocess(data): return X.tokens
    """
    assert {reason.name for reason in placed(tmp_path, functions(text) + LOAD).reasons} == {"TOKENS"}


WRITES = {
    "__setitem__": ("def __setitem__(self, k, v):", "X['a'] = 1"),
    "__delitem__": ("def __delitem__(self, v):", "del X['a']"),
    "__setattr__": ("def __setattr__(self, k, v):", "X.a = 1"),
    "__setattr__ by setattr": ("def __setattr__(self, k, v):", "setattr(X, 'a', 1)"),
    "__iadd__": ("def __iadd__(self, v):", "global X; X += 1"),
    "a property": ("@property\n    def a(self): pass\n    @a.setter\n    def a(self, v):", "X.a = 1"),
    "__enter__": ("def __exit__(self, *e): pass\n    def __enter__(self, v=1):", "with X: pass"),
}


@pytest.mark.parametrize(("method", "use"), WRITES.values(), ids=WRITES)
def test_a_special_method_that_writes(method: str, use: str, tmp_path: Path) -> None:
    text = (
        f"class Words:\n    {method}\n        global TOKENS\n        TOKENS = v\nTOKENS = None\nX = Words()\n"
    )
    hooks = f"def load(context):\n    {use}\ndef preprocess(d): return TOKENS\n"
    found = placed(tmp_path, functions(text + hooks))
    assert [reason.name for reason in found.reasons] == ["TOKENS"]


def test_a_descriptor_that_writes(tmp_path: Path) -> None:
    text = """
        TOKENS = None
        class Kept:
            def __set__(self, owner, value):
                global TOKENS
                TOKENS = value
        class Words:
            tokens = Kept()
        X = Words()
        def load(context): X.tokens = 1
        def preprocess(data): return TOKENS
    """
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["TOKENS"]


def test_a_modules_own_getattr(tmp_path: Path) -> None:
    files = {"state.py": "STATE = {}\ndef __getattr__(name): return STATE[name]\n"}
    text = "import state\ndef load(c): state.STATE['x'] = 1\ndef preprocess(d): return state.x\n"
    assert [reason.name for reason in placed(tmp_path, functions(text), files).reasons] == ["STATE"]


@pytest.mark.parametrize("statement", ["import other", "from other import NAME"])
def test_a_file_that_only_load_imports_and_that_sets_something(statement: str, tmp_path: Path) -> None:
    files = {"state.py": "TOKENS = None\n", "other.py": "import state\nNAME = 1\nstate.TOKENS = 1\n"}
    text = f"import state\ndef load(c):\n    {statement}\ndef preprocess(d): return state.TOKENS\n"
    assert [reason.name for reason in placed(tmp_path, functions(text), files).reasons] == ["TOKENS"]
    every = placed(tmp_path, functions(f"{statement}\n{text}"), files)
    assert every.reasons == ()


FILLS = {
    "an output": ("import numpy as np\nX = np.zeros(3)", "np.add(1, 2, out=X)"),
    "weights": (
        "import torch\nfrom safetensors.torch import load_model\nX = torch.nn.Linear(1, 1)",
        "load_model(X, 'x')",
    ),
    "an initialisation": ("import torch\nX = torch.zeros(3)", "torch.nn.init.ones_(X)"),
}


@pytest.mark.parametrize(("made", "change"), FILLS.values(), ids=FILLS)
def test_a_librarys_function_that_fills_what_it_gets(made: str, change: str, tmp_path: Path) -> None:
    text = f"{made}\ndef load(context): {change}\ndef preprocess(data): return X\n"
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["X"]


DEFAULTS = {
    "the data type": ("torch.set_default_dtype(torch.float64)", "torch.tensor(data)", "torch.default_dtype"),
    "the directory": ("os.chdir(context.model_dir)", "open(data).read()", "os.getcwd"),
    "the directory, for a path": ("os.chdir('x')", "Path(data).read_text()", "os.getcwd"),
}


@pytest.mark.parametrize(("change", "use", "name"), DEFAULTS.values(), ids=DEFAULTS)
def test_what_load_sets_for_the_whole_process(change: str, use: str, name: str, tmp_path: Path) -> None:
    text = f"import os, torch\nfrom pathlib import Path\ndef load(context): {change}\ndef preprocess(data): "
    assert name in [reason.name for reason in placed(tmp_path, functions(f"{text}return {use}\n")).reasons]
    assert placed(tmp_path, functions(f"{text}return data\n")).reasons == ()


def test_what_a_generator_hands_out_is_what_it_yields(tmp_path: Path) -> None:
    text = "X = {}\ndef each(): yield X\ndef load(c):\n    for x in each(): x['a'] = 1\ndef preprocess(d): return X\n"
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["X"]


def test_what_entering_returns(tmp_path: Path) -> None:
    text = """
        STATE = {}
        class Opened:
            def __enter__(self): return STATE
            def __exit__(self, *error): pass
        def load(context):
            with Opened() as state: state["x"] = 1
        def preprocess(data): return STATE["x"]
    """
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["STATE"]
