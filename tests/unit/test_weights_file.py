"""What weights hold, told by their file, and which hooks they need beside them."""

from __future__ import annotations

import zipfile
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


def test_the_setting_says_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(b"?")
    assert read(tmp_path, "", weights="net.bin", weights_format="torchscript").hooks == {}
