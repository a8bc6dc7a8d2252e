"""The form `module`: which class is the model, its weights, its batches."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.project.weights_file import pickled_class
from handlergen.runtime.contract import Contract
from handlergen.runtime.forms.weights import WeightsError
from tests.inspecting import inspect_source

SUMS = """
    import torch
    from torch import nn

    class Sums(nn.Module):
        def __init__(self, features=3, scale=1.0):
            super().__init__()
            self.layer = nn.Linear(features, 1, bias=False)
            self.scale = scale
            nn.init.ones_(self.layer.weight)
        def preprocess(self, x):
            return torch.tensor(x, dtype=torch.float32)
        def forward(self, batch):
            return {"sum": self.layer(batch)[:, 0] * self.scale, "batch": torch.full((len(batch),), len(batch))}
        def postprocess(self, output):
            return {name: float(value) for name, value in output.items()}
    """


def read(directory: Path, text: str, **settings: Any) -> Contract:
    (directory / "net.py").write_text(textwrap.dedent(text))
    return open_project(directory / "net.py", overrides=settings, environ={}).contract


HOOK = "    def preprocess(self, x): ...\n    def forward(self, batch): ...\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from torch import nn\nclass Net(nn.Module):\n" + HOOK, "Net"),
        ("import torch\nclass Net(torch.nn.Module):\n" + HOOK, "Net"),
        ("from torch.nn import Module\nclass Net(Module):\n" + HOOK, "Net"),
        ("import torch.nn as nn\nclass Net(nn.Sequential):\n    def postprocess(self, y): ...\n", "Net"),
        ("from torch import nn\nclass A(nn.Module): ...\nclass B(A):\n" + HOOK, "B"),
        # The base has the hooks, the class that is served inherits them.
        ("from torch import nn\nclass A(nn.Module):\n" + HOOK + "class B(A): ...\n", "B"),
        # A building block beside it.
        ("from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module):\n" + HOOK, "B"),
    ],
)
def test_the_class_is_found(tmp_path: Path, text: str, name: str) -> None:
    contract = read(tmp_path, text)
    assert (contract.form, contract.class_name) == ("module", name)


def test_a_class_of_another_file_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("from .net import Net\n")
    (package / "net.py").write_text("from torch import nn\nclass Net(nn.Module):\n" + HOOK)
    contract = inspect_source(package)
    assert (contract.module, contract.class_name) == ("nets", "Net")


def test_a_parameter_of_collate_whose_name_misleads(tmp_path: Path) -> None:
    text = f"from torch import nn\nclass Net(nn.Module):\n{HOOK}    def collate(self, outputs): ...\n"
    (tmp_path / "net.py").write_text(text)
    warnings = open_project(tmp_path / "net.py", environ={}).warnings
    assert "net.py:5: `outputs` of collate receives a list of what preprocess returned" in "\n".join(warnings)


@pytest.mark.parametrize("decorator", ["@staticmethod\n    def preprocess(x)", "def preprocess(self, x, /)"])
def test_self_is_not_an_argument(tmp_path: Path, decorator: str) -> None:
    text = f"from torch import nn\nclass N(nn.Module):\n    {decorator}: ...\n    def forward(self, b): ...\n"
    (parameter,) = read(tmp_path, text).hooks["preprocess"].parameters
    assert (parameter.name, parameter.source) == ("x", "data")


def test_samples_are_collated_split_and_answered_in_order(serve_project: Callable[..., Any]) -> None:
    model = serve_project(SUMS, model_kwargs={"scale": 10})
    assert model([1, 2, 3]) == [(200, {"sum": 60, "batch": 1})]
    assert model([1, 1, 1], [2, 2, 2], [3, 3, 3]) == [(200, {"sum": 30.0 * index, "batch": 3}) for index in (1, 2, 3)]


def test_ragged_samples_are_predicted_one_by_one(serve_project: Callable[..., Any]) -> None:
    text = SUMS.replace("self.layer(batch)[:, 0]", "batch.sum(dim=1)")
    assert serve_project(text)([1, 2], [1, 2, 3]) == [(200, {"sum": total, "batch": 1}) for total in (3, 6)]


def test_ragged_samples_with_collate_asked_for_are_told_apart(
    serve_project: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    answers = serve_project(SUMS, batch="collate")([1, 2], [1, 2, 3])
    assert [status for status, _ in answers] == [500, 500]
    assert "sample 0 is tensor(2), but sample 1: tensor(3)" in caplog.text


def test_batch_each_sees_batches_of_one(serve_project: Callable[..., Any]) -> None:
    assert serve_project(SUMS, batch="each")([1, 2, 3], [2, 2, 2]) == [(200, {"sum": 6, "batch": 1})] * 2


@pytest.mark.parametrize("place", ["method", "function"])
@pytest.mark.parametrize("batch", ["auto", "each"])
def test_an_own_collate_pads(serve_project: Callable[..., Any], place: str, batch: str) -> None:
    collate = "return nn.utils.rnn.pad_sequence(samples, batch_first=True)"
    text = textwrap.dedent(SUMS.replace("self.layer(batch)[:, 0]", "batch.sum(dim=1)"))
    if place == "method":
        text += f"    def collate(self, samples):\n        {collate}\n"
    else:
        text += f"def collate(samples):\n    {collate}\n"
    answers = serve_project(text, batch=batch)([1, 2], [1, 2, 3])
    count = 2 if batch == "auto" else 1
    assert answers == [(200, {"sum": 3, "batch": count}), (200, {"sum": 6, "batch": count})]


def test_one_bad_sample_harms_nobody_else(serve_project: Callable[..., Any]) -> None:
    text = SUMS.replace('return {"sum"', 'assert (batch >= 0).all()\n            return {"sum"')
    answers = serve_project(text)([1, 1, 1], [-1, 1, 1], "no numbers", [2, 2, 2])
    assert [status for status, _ in answers] == [200, 500, 500, 200]
    assert answers[3][1]["sum"] == 6


def test_nested_structures_in_and_out(serve_project: Callable[..., Any]) -> None:
    model = serve_project("""
        import collections
        import torch
        from torch import nn
        Out = collections.namedtuple("Out", "total parts")
        class Net(nn.Module):
            def preprocess(self, x):
                return {"a": torch.tensor(x), "more": [torch.tensor(1.0), len(x)]}
            def forward(self, batch):
                one, length = batch["more"]
                return Out(batch["a"].sum(1) + one, {"length": length, "nothing": None})
            def postprocess(self, output, input_data):
                assert output.parts["nothing"] is None
                return [float(output.total), int(output.parts["length"]), input_data]
        """)
    assert model([1, 2], [3, 4]) == [(200, [4, 2, [1, 2]]), (200, [8, 2, [3, 4]])]


@pytest.mark.parametrize("parts", ['{"ids": x, "mask": mask}', "(x, mask)"])
def test_a_forward_of_several_parameters_gets_the_parts(serve_project: Callable[..., Any], parts: str) -> None:
    model = serve_project(f"""
        import torch
        from torch import nn
        class Net(nn.Module):
            def preprocess(self, x):
                x = torch.tensor(x)
                mask = x > 0
                return {parts}
            def forward(self, ids, mask):
                return (ids * mask).sum(1)
        """)
    assert model([1, -2], [3, 4]) == [(200, 1), (200, 7)]


def test_inference_mode_and_eval(serve_project: Callable[..., Any]) -> None:
    model = serve_project("""
        import torch
        from torch import nn
        class Net(nn.Module):
            def postprocess(self, output):
                return output
            def forward(self, batch):
                return [[torch.is_inference_mode_enabled(), self.training] for _ in batch]
        """)
    assert model([1.0]) == [(200, [True, False])]


@pytest.mark.parametrize("mode", ["torch.inference_mode()", "torch.inference_mode(False)"])
def test_postprocess_may_change_its_sample_in_place(serve_project: Callable[..., Any], mode: str) -> None:
    model = serve_project(f"""
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))
            def preprocess(self, x):
                return torch.tensor(x)
            @{mode}
            def forward(self, batch):
                return batch.clone() * self.weight
            def postprocess(self, output):
                with torch.enable_grad():
                    output += 10
                return output
        """)
    assert model([1.0, 2.0], [3.0, 4.0]) == [(200, [11.0, 12.0]), (200, [13.0, 14.0])]


def test_load_returns_the_finished_module(serve_project: Callable[..., Any]) -> None:
    text = textwrap.dedent(SUMS) + "def load(context):\n    return Sums(2, context.config['scale'])\n"
    assert serve_project(text, config={"scale": 7})([1, 1])[0] == (200, {"sum": 14, "batch": 1})
    with pytest.raises(TypeError, match=r"load returned dict, which is no torch\.nn\.Module"):
        serve_project(textwrap.dedent(SUMS) + "def load(context):\n    return {}\n")


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))


@pytest.mark.parametrize(
    "saved",
    [
        lambda model: model.state_dict(),
        lambda model: nn.DataParallel(model).state_dict(),
        lambda model: {f"_orig_mod.module.{key}": value for key, value in model.state_dict().items()},
        lambda model: {"epoch": 3, "state_dict": model.state_dict()},
    ],
    ids=["plain", "DataParallel", "compiled DataParallel", "checkpoint"],
)
def test_a_state_dict_is_loaded(
    serve_project: Callable[..., Any], tmp_path: Path, saved: Callable[[nn.Module], Any]
) -> None:
    torch.save(saved(Sums()), tmp_path / "net.pt")
    assert serve_project(SUMS, weights="net.pt")([1, 2, 3])[0][1]["sum"] == 321


def test_safetensors_are_loaded(serve_project: Callable[..., Any], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(Sums().state_dict(), tmp_path / "net.safetensors")
    assert serve_project(SUMS, weights="net.safetensors")([1, 2, 3])[0][1]["sum"] == 321


def test_keys_that_do_not_fit_are_all_named(serve_project: Callable[..., Any], tmp_path: Path) -> None:
    torch.save({"layer.wait": torch.ones(1, 3), "head.bias": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"it lacks layer\.weight; Sums has no head\.bias, layer\.wait"):
        serve_project(SUMS, weights="net.pt")
    torch.save({"layer.weight": torch.ones(1, 4)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"size mismatch for layer\.weight"):
        serve_project(SUMS, weights="net.pt")


def test_a_whole_pickled_module_is_refused_and_told_how_to_export(tmp_path: Path) -> None:
    torch.save(Sums(), tmp_path / "net.pt")
    with pytest.raises(ContractError) as refused:
        read(tmp_path, SUMS, weights="net.pt")
    message = str(*refused.value.problems)
    assert f"a pickle of a whole object ({Sums.__module__}.Sums)" in message
    assert 'torch.save(model.state_dict(), "net.pt")' in message
    assert "weights_format: pickle" in message


def test_a_whole_pickled_module_is_refused_by_the_worker_too(serve_project: Callable[..., Any], tmp_path: Path) -> None:
    # In the old format, which cannot be looked into without loading it.
    torch.save(Sums(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="weights_format: pickle"):
        serve_project(SUMS, weights="net.pt")


def test_a_whole_pickled_module_loads_when_asked_for(
    serve_project: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training script pickles it: its class is called __main__.Sums, which the worker finds in the module."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(SUMS), namespace)
    main = __import__("sys").modules["__main__"]
    monkeypatch.setattr(main, "Sums", namespace["Sums"], raising=False)
    torch.save(namespace["Sums"](scale=5), tmp_path / "net.pt")
    monkeypatch.delattr(main, "Sums")
    assert serve_project(SUMS, weights="net.pt", weights_format="pickle")([1, 2, 3])[0][1]["sum"] == 30
    (tmp_path / "sums.py").write_text(textwrap.dedent(SUMS))
    overrides = {"weights": "net.pt", "weights_format": "pickle"}
    assert open_project(tmp_path / "sums.py", overrides=overrides, environ={}).warnings == ()


def test_what_a_pickle_would_make_is_told_without_loading_it(tmp_path: Path) -> None:
    state = Sums().state_dict()
    for value, found in (
        (state, None),
        ({"epoch": 1, "state_dict": state, "best": torch.tensor(1.0, dtype=torch.bfloat16)}, None),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"model": nn.ReLU()}, "torch.nn.modules.activation.ReLU"),
    ):
        torch.save(value, tmp_path / "net.pt")
        assert pickled_class(tmp_path / "net.pt") == found
