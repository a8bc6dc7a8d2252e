"""An `nn.Module` gets its weights in the predictor process only: what that sets, and what it cannot do without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import placed

NETWORK = """
import math, os, random, time, uuid
import torch

class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(width, 2)
        self.labels = {labels}
    {methods}
    def preprocess(self, x): return torch.tensor(x)
    def forward(self, batch): return self.layer(batch)
    def postprocess(self, output): return self.labels
"""

RESTORED = {
    "set_extra_state": "def set_extra_state(self, state): self.labels = state['labels']",
    "set_extra_state, in place": "def set_extra_state(self, state): self.labels.extend(state['labels'])",
    "load_state_dict": "def load_state_dict(self, state, **options): self.labels = state.pop('labels')",
    "_load_from_state_dict": "def _load_from_state_dict(self, *given): self.labels = given[0]",
    "__setstate__": "def __setstate__(self, state): self.labels = state['labels']",
    "eval": "def eval(self): self.labels = ['a']; return super().eval()",
    "train": "def train(self, mode=True): self.labels = ['a']; return super().train(mode)",
    "to": "def to(self, *given): self.labels = ['a']; return super().to(*given)",
    "_apply": "def _apply(self, function): self.labels = ['a']; return super()._apply(function)",
}


@pytest.mark.parametrize(("name", "method"), RESTORED.items(), ids=list(RESTORED))
def test_an_attribute_that_comes_with_the_weights(name: str, method: str, tmp_path: Path) -> None:
    found = placed(tmp_path, NETWORK.format(labels="[]", methods=method))
    assert [(reason.hook, reason.name) for reason in found.reasons] == [("postprocess", "self.labels")]
    verb = "changes" if "in place" in name else "sets"
    assert f"which {name.partition(',')[0]} {verb} in line 10" in found.reasons[0].what
    assert (
        "constant of the module" in found.reasons[0].fix
        or "where the module is imported" in found.reasons[0].fix
    )


def test_a_network_whose_state_hooks_set_nothing_that_is_read(tmp_path: Path) -> None:
    methods = """def set_extra_state(self, state): self.epoch = state["epoch"]
    def get_extra_state(self): return {"epoch": self.epoch}
    def train(self, mode=True):
        self.frozen = not mode
        return super().train(mode)"""
    assert placed(tmp_path, NETWORK.format(labels="['a']", methods=methods)).reasons == ()


NEEDS_VALUES = {
    "float(torch.ones(3).sum())": "float()",
    "[int(x) for x in torch.arange(3)]": "int()",
    "bool(torch.ones(1))": "bool()",
    "str(torch.ones(1))": "str()",
    "'big' if max(torch.arange(3)) > 1 else 'small'": "max()",
    "int(math.floor(torch.ones(1)))": "math.floor()",
    "3 if torch.ones(3).sum() > 2 else 4": "a condition",
    "[1 for x in [2] if torch.ones(1)]": "a condition",
    "not torch.ones(1)": "a condition",
    "f'{torch.ones(3).sum()}'": "an f-string",
    "float(torch.linspace(0, 1, 3)[1] * 2 + 1)": "float()",
    "int(torch.ones(3).to(torch.float64).abs().max())": "int()",
}


@pytest.mark.parametrize(("labels", "name"), NEEDS_VALUES.items(), ids=list(NEEDS_VALUES))
def test_a_constructor_that_asks_a_tensor_for_its_value(labels: str, name: str, tmp_path: Path) -> None:
    found = placed(tmp_path, NETWORK.format(labels=labels, methods=""))
    reason = found.reasons[0]
    assert (found.stages, reason.hook, reason.name, reason.line) == ("predictor", "__init__", name, 9)
    assert f"Net needs a tensor's values for {name} when it is made" in reason.what


@pytest.mark.parametrize(
    "test", ["if torch.ones(1): pass", "while torch.zeros(1): pass", "assert torch.ones(1)"]
)
def test_a_statement_of_the_constructor_that_asks_for_it(test: str, tmp_path: Path) -> None:
    found = placed(tmp_path, NETWORK.format(labels=f"['a']\n        {test}", methods=""))
    reasons = [(reason.hook, reason.name, reason.line) for reason in found.reasons]
    assert reasons == [("__init__", "a condition", 10)]


WORKS_WITHOUT = {
    "numbers": "[float(width), int(width / 2), max(width, 3), round(0.5), str(width)]",
    "a shape": "int(torch.zeros(3, width).shape[0])",
    "a count": "float(torch.zeros(3).numel()) if self.layer.weight.dim() > 1 else 0",
    "a table": "[0] * width",
    "a copy": "list('ab').copy()",
    "a split": "'a b'.split()",
    "what the machine has": "'some' if torch.is_grad_enabled() or torch.get_num_threads() > 1 else 'none'",
    "an environment variable": "int(os.environ.get('SIZE', '3'))",
    "sizes": "math.prod([width, 2]) if width else math.sqrt(width)",
    "the layer's bias": "'bias' if self.layer.bias is not None else ''",
}


@pytest.mark.parametrize("labels", WORKS_WITHOUT.values(), ids=WORKS_WITHOUT)
def test_a_constructor_that_needs_no_values(labels: str, tmp_path: Path) -> None:
    assert placed(tmp_path, NETWORK.format(labels=labels, methods="")).reasons == ()


@pytest.mark.parametrize(
    "labels",
    [
        "random.random()",
        "int(time.time())",
        "f'run {uuid.uuid4()}'",
        "os.getpid()",
        "[random.choice('ab')] * 3",
    ],
)
def test_an_attribute_that_each_process_would_make_another(labels: str, tmp_path: Path) -> None:
    found = placed(tmp_path, NETWORK.format(labels=labels, methods=""))
    assert [(reason.hook, reason.name) for reason in found.reasons] == [("postprocess", "self.labels")]
