"""What load or predict changes in place, however the object was made: the hook that reads it runs beside the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

MADE = {
    "a repeated list": "[None] * 4",
    "a sum of lists": "[1] + [2]",
    "a merged dict": '{"a": 1} | {"b": 2}',
    "an unpacked dict": "{**DEFAULTS}",
    "a copy": "DEFAULTS.copy()",
    "a copy of a copy": "DEFAULTS.copy().copy()",
    "a slice": "WORDS[:]",
    "a part of an array": "numpy.zeros(4)[:2]",
    "a view of an array": "numpy.zeros(4).flat",
    "a dict of keys": 'dict.fromkeys("abc")',
    "a split text": '"a b".split()',
    "a split variable": 'os.environ.get("WORDS", "").split(",")',
    "a file's lines": 'open("labels.txt").read().splitlines()',
    "a path's lines": 'Path("labels.txt").read_text().splitlines()',
    "bytes": "bytearray(10)",
    "json": "json.loads(\"{'a': {}}\")",
    "inside json": "json.loads(\"{'a': {}}\")['a']",
    "inside json, by get": "json.loads(\"{'a': {}}\").get('a')",
    "a function's list": "made()",
    "a conditional": "[None] * 4 if os.name else None",
    "a comprehension of splits": "[line.split() for line in open('labels.txt')][0]",
    "a file": 'open("labels.txt")',
    "an error": 'ValueError("none")',
}
CHANGES = {
    "an item": "X[0] = 1",
    "an item of a helper's parameter": "put(X)",
    "a method": "X.extend([1])",
    "deleted": "del X[0]",
    "added to": "global X; X += [1]",
}
MAKING = """
import json, numpy, os
from pathlib import Path
DEFAULTS = {{"a": 1}}
WORDS = ["a", "b"]
def made(): return [None] * 3
def put(where): where[0] = 1
X = {made}
"""


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_load_changes_in_place(made: str, change: str, tmp_path: Path) -> None:
    text = MAKING.format(made=made) + f"def load(context):\n    {change}\ndef preprocess(data): return X\n"
    found = placed(tmp_path, functions(text))
    assert found.stages == "predictor"
    assert [(reason.hook, reason.name) for reason in found.reasons] == [("preprocess", "X")]


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_load_only_reads_stays_free(made: str, tmp_path: Path) -> None:
    text = MAKING.format(made=made) + "def load(context): return list(X), X[0], len(X)\n"
    found = placed(tmp_path, functions(text + "def preprocess(data): return X[0]\n"))
    assert found.reasons == ()


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_predict_leaves_in_it_for_postprocess(made: str, tmp_path: Path) -> None:
    text = MAKING.format(made=made) + "def predict(inputs):\n    X[0] = inputs\n    return inputs\n"
    found = placed(tmp_path, text + "def postprocess(outputs): return X[0]\n")
    assert [(reason.hook, reason.name) for reason in found.reasons] == [("postprocess", "X")]


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_class_attribute_and_another_file_are_no_different(made: str, tmp_path: Path) -> None:
    model = "class Model:\n    x = X\n    def load(self): self.x[0] = 1\n    def preprocess(self, d): return self.x\n"
    found = placed(tmp_path / "a", MAKING.format(made=made) + model + "    def predict(self, x): return x\n")
    assert [reason.name for reason in found.reasons] == ["self.x"]
    text = "import state\ndef load(c): state.X[0] = 1\ndef preprocess(d): return state.X\n"
    found = placed(tmp_path / "b", functions(text), {"state.py": MAKING.format(made=made)})
    assert [reason.name for reason in found.reasons] == ["X"]


def test_the_rest_of_an_unpacked_list_is_a_list_of_its_own(tmp_path: Path) -> None:
    text = "a, *b = [1, 2, 3]\ndef load(c): b.append(2)\ndef preprocess(d): return b\n"
    assert [reason.name for reason in placed(tmp_path / "rest", functions(text)).reasons] == ["b"]
    text = "a, *b = [1, 2, 3]\ndef load(c): b.append(2)\ndef preprocess(d): return a\n"
    assert placed(tmp_path / "first", functions(text)).reasons == ()


def test_what_the_toolkits_load_changes(tmp_path: Path) -> None:
    text = "T = [0] * 3\ndef model_fn(model_dir): T[0] = 1\ndef input_fn(d, ct): return T\n"
    found = placed(tmp_path, text + "def predict_fn(x, model): return x\n")
    assert [(reason.hook, reason.name) for reason in found.reasons] == [("input_fn", "T")]


UNKNOWN = {
    "an item": "X['a'] = 1",
    "an attribute": "X.words = 1",
    "inside": "X.words['a'] = 1",
    "a method": "X.append(1)",
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_a_global_of_which_nothing_is_known_counts_as_changed(change: str, tmp_path: Path) -> None:
    taken = "try: pass\nexcept OSError as error: X = error.words\n"
    text = f"{taken}def load(c): {change}\ndef preprocess(d): return X\n"
    assert [reason.name for reason in placed(tmp_path / "own", functions(text)).reasons] == ["X"]
    text = f"import state\ndef load(c): state.{change}\ndef preprocess(d): return state.X\n"
    found = placed(tmp_path / "other", functions(text), {"state.py": taken})
    assert [reason.name for reason in found.reasons] == ["X"]


METHODS = {
    "a parser": ("from configparser import ConfigParser\nX = ConfigParser()", "X.read('labels.ini')"),
    "a parser's own name": ("from configparser import ConfigParser\nX = ConfigParser()", "X.read_string('')"),
    "a reader": ("from somewhere import Reader\nX = Reader()", "X.open('x')"),
    "a network on a device": ("import torch\nX = torch.nn.Linear(1, 1)", "X.to(torch.float64)"),
    "a network in halves": ("import torch\nX = torch.nn.Linear(1, 1)", "X.half()"),
    "what a reader hands out": ("from somewhere import Reader\nX = Reader()", "X.get_words()['a'] = 1"),
    "what a reader has": ("from somewhere import Reader\nX = Reader()", "X.words['a'] = 1"),
    "a tensor in place": ("import torch\nX = torch.zeros(3)", "X.fill_(1)"),
}


@pytest.mark.parametrize(("made", "change"), METHODS.values(), ids=METHODS)
def test_a_method_of_a_librarys_object_by_which_load_may_fill_it(
    made: str, change: str, tmp_path: Path
) -> None:
    text = f"import torch\n{made}\ndef load(context): {change}\ndef preprocess(data): return X[data]\n"
    assert [reason.name for reason in placed(tmp_path, functions(text)).reasons] == ["X"]


@pytest.mark.parametrize("change", ["context.config['x'] = 1", "context.config.update(x=1)"])
def test_load_changes_the_contexts_configuration(change: str, tmp_path: Path) -> None:
    text = f"def load(context): {change}\ndef postprocess(outputs, context): return context.config['x']\n"
    (reason,) = placed(tmp_path, functions(text)).reasons
    assert (reason.hook, reason.name, reason.line) == ("postprocess", "context.config", 2)
    assert reason.fix == "Do that in setup(context), which every worker runs."
