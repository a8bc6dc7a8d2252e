"""Globals that load binds by another way than their name: through the module as an object, or unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

THROUGH_THE_MODULE = {
    "setattr": "setattr(sys.modules[__name__], 'TOKENS', 1)",
    "an attribute": "sys.modules[__name__].TOKENS = 1",
    "a local name of the module": "this = sys.modules[__name__]\n    this.TOKENS = 1",
    "get": "sys.modules.get(__name__).TOKENS = 1",
    "import_module": "importlib.import_module(__name__).TOKENS = 1",
    "the file's name": "sys.modules['digits'].TOKENS = 1",
}


@pytest.mark.parametrize("change", THROUGH_THE_MODULE.values(), ids=THROUGH_THE_MODULE)
def test_a_module_that_is_asked_for_by_its_name(change: str, tmp_path: Path) -> None:
    text = f"import importlib, sys\nTOKENS = None\ndef load(context):\n    {change}\n"
    found = placed(tmp_path, functions(text + "def preprocess(data): return TOKENS\n"))
    assert [reason.name for reason in found.reasons] == ["TOKENS"]
    assert placed(tmp_path / "other", functions(text + "def preprocess(data): return data\n")).reasons == ()


UNSEEN = {
    "the globals of a function": ("load.__globals__['TOKENS'] = 1", "__globals__"),
    "the builtins": ("builtins.TOKENS = 1", "builtins.TOKENS"),
    "a computed module": ("sys.modules[context.config['name']].TOKENS = 1", "sys.modules"),
    "a computed import": ("importlib.import_module(context.config['name']).TOKENS = 1", "import_module"),
    "inspect": ("inspect.getmodule(load).TOKENS = 1", "inspect.getmodule()"),
}


@pytest.mark.parametrize(("change", "name"), UNSEEN.values(), ids=UNSEEN)
def test_what_load_binds_where_the_source_does_not_show_it(change: str, name: str, tmp_path: Path) -> None:
    text = f"import builtins, importlib, inspect, sys\nTOKENS = None\ndef load(context): {change}\n"
    found = placed(tmp_path, functions(text + "def preprocess(data): return TOKENS\n"))
    assert [(reason.hook, reason.line) for reason in found.reasons] == [("load", 3)]
    assert found.reasons[0].name.startswith(name)
    assert "Write the names out" in found.reasons[0].fix
