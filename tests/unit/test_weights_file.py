"""What weights hold, told by their file, and which hooks they need beside them."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen.project.weights_file import weights_format
from tests.inspecting import problems, read


def archive_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/version", *names):
            archive.writestr(name, "")
    return path


def torchscript(path: Path) -> Path:
    return archive_of(path, "m/code/__torch__.py", "m/constants.pkl")


def state_dict(path: Path) -> Path:
    return archive_of(path, "m/byteorder", "m/data/0")


def test_formats_of_weights(tmp_path: Path) -> None:
    assert weights_format(torchscript(tmp_path / "a.pt")) == "torchscript"
    (tmp_path / "old.pth").write_bytes(b"\x80\x02")
    assert weights_format(tmp_path / "old.pth") == "state_dict"
    named = {"c.pt2": "exported", "c.ONNX": "onnx", "c.safetensors": "safetensors", "c.joblib": "other"}
    assert {name: weights_format(tmp_path / name) for name in named} == named
    assert weights_format(tmp_path / "missing.pt") is None


def test_formats_of_what_torch_itself_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    assert weights_format(tmp_path / "a.pt") == "state_dict"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2),)), tmp_path / "c.pt2")
    assert weights_format(tmp_path / "c.pt2") == "exported"


def test_executable_weights_need_no_predict_and_no_load(tmp_path: Path) -> None:
    torchscript(tmp_path / "net.pt")
    contract = read(tmp_path, "def preprocess(data): ...", weights="net.pt")
    assert set(contract.hooks) == {"preprocess"}
    assert read(tmp_path, "", weights="net.pt").hooks == {}
    assert set(read(tmp_path, "def predict(x, model): ...", weights="net.pt").hooks) == {"predict"}


def test_a_state_dict_needs_a_load(tmp_path: Path) -> None:
    state_dict(tmp_path / "net.pt")
    assert "nothing loads the weights" in problems(tmp_path, "def predict(x): ...", weights="net.pt")[0]
    both = problems(tmp_path, "", weights="net.pt")
    assert len(both) == 2
    assert read(tmp_path, "def predict(x): ...\ndef load(): ...", weights="net.pt").hooks


NETWORK = """
import torch

class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2
"""
PREDICT = """
def predict(inputs, model):
    return model(torch.tensor(inputs)).tolist()
"""
LOAD = """
def load(context):
    return torch.load(context.model_dir / "net.pt")
"""


def test_a_pickled_whole_module_gets_advice_that_leads_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    Path("m.py").write_text("from net import Double\nimport torch\n" + PREDICT)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = __import__("net").Double()
    values = {"model": model, "torch": torch, "example_input": torch.ones(2)}

    torch.save(model, "net.pt")
    del sys.modules["net"]
    status, _, said = run("check", "m.py", "--weights", "net.pt")
    assert status == 3
    assert "net.pt: they hold a pickle of a whole object (net.Double)" in said
    tensors, program = re.findall(r"(torch\.(?:export\.)?save\(.*?\"\))", said)
    load = re.findall(r"def load\(context\): .*", said)[0].replace("(...)", "()")

    exec(program, values)
    assert run("predict", "m.py", "[1.0, 2.0]", "--weights", "net.pt2")[:2] == (0, "[2.0,4.0]\n")

    Path("m.py").write_text(Path("m.py").read_text() + LOAD)
    line = "m.py:8: torch.load refuses net.pt, a pickle of a whole object (net.Double)"
    assert line in run("check", "m.py", "--weights", "net.pt")[2]
    Path("m.py").write_text(Path("m.py").read_text().replace('net.pt")', 'net.pt", weights_only=False)'))
    assert run("check", "m.py", "--weights", "net.pt")[2] == ""
    assert run("predict", "m.py", "[1.0, 2.0]", "--weights", "net.pt")[:2] == (0, "[2.0,4.0]\n")

    exec(tensors, values)
    Path("m.py").write_text(f"from net import Double\nimport torch\n{PREDICT}\n{load}\n")
    assert run("predict", "m.py", "[1.0, 2.0]", "--weights", "net.pt")[:2] == (0, "[2.0,4.0]\n")


def test_the_setting_says_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(b"?")
    assert read(tmp_path, "", weights="net.bin", weights_format="torchscript").hooks == {}
