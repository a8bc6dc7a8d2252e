"""What is safe unless somebody chooses otherwise; a server is tried in tests/e2e/test_server_talk.py."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from handlergen import runtime
from handlergen.runtime.forms.weights import WeightsError, load_weights
from handlergen.server.properties import ServerSettings

RUNTIME = Path(runtime.__file__).parent

OPENS_PICKLES = {
    "forms/weights.py: pickle.load": "weights_format: pickle, which the author must have written",
    "forms/flow.py: pickle.load": "a flow's scikit-learn model, a file of the archive",
    "forms/flow.py: joblib.load": "the same",
    "store.py: pickle.loads": "what a hook of the model saved, from a file that only this user may write",
    "predictor_process/serialization.py: pickle.loads": "what workers and the predictor process, all of one user, send",
}
"""Every place of the runtime that can carry out a pickle, and why no client can reach it."""


def names_of(tree: ast.Module) -> Iterator[str]:
    """Every dotted name that ends in load or loads, or names an unpickler, called or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "Unpickler"):
            yield ast.unparse(node)


def test_every_place_that_opens_a_pickle_is_known() -> None:
    found = set()
    for path in RUNTIME.rglob("*.py"):
        tree = ast.parse(path.read_bytes())
        place = path.relative_to(RUNTIME).as_posix()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                # `from pickle import loads` would hide from the names below.
                assert node.module not in ("pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"), place
        for name in names_of(tree):
            module = name.partition(".")[0]
            assert module not in ("marshal", "shelve", "dill", "cloudpickle"), place
            if module in ("pickle", "joblib") and not name.endswith("Unpickler"):
                found.add(f"{place}: {name}")
    assert found == set(OPENS_PICKLES)


def test_nothing_that_reads_requests_opens_pickles() -> None:
    codec = {f"codec/{name}.py" for name in ("content", "encode", "kserve")}
    for place in codec | {
        "request.py",
        "forms/sagemaker.py",
        "pipeline/typed_hooks.py",
        "torchserve/frontend.py",
    }:
        tree = ast.parse((RUNTIME / place).read_bytes())
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"pickle", "joblib", "marshal", "shelve"}, place


def test_arrays_and_weights_are_loaded_without_pickles() -> None:
    seen = 0
    for path in RUNTIME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name, given = (
                ast.unparse(node.func),
                {each.arg: ast.unparse(each.value) for each in node.keywords},
            )
            if name in ("np.load", "numpy.load"):
                seen += 1
                assert given.get("allow_pickle") == "False", path
            if name == "torch.load":
                seen += 1
                assert "weights_only" in given, path
                # The one that says False is the format that the author asked for by its name, pickle.
                assert given["weights_only"] == "True" or "pickle_module" in given, path
    assert seen >= 3


def test_settings_that_keep_a_server_closed() -> None:
    usual = ServerSettings()
    assert {host for host, _ in usual.addresses().values()} == {"127.0.0.1"}
    assert usual.token_authorization
    assert not usual.model_api
    assert not usual.install_requirements
    assert usual.allowed_urls == "(?!)"


class Opened:
    """What runs when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.canary,))


def test_a_state_dict_that_is_a_pickle_is_not_opened(tmp_path: Path) -> None:
    Opened.canary = tmp_path / "canary"
    torch.save({"weight": Opened()}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="weights_format: pickle"):
        load_weights(
            tmp_path / "weights.pt",
            "state_dict",
            make=lambda: torch.nn.Linear(1, 1),
            main=sys.modules[__name__],
        )
    assert not Opened.canary.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)  # the control: somebody who opens it
    assert Opened.canary.exists()
