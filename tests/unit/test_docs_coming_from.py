"""The pages for people who come from another system: what they write there is accepted here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from handlergen.cli import VERBS
from handlergen.errors import ContractError
from handlergen.inspection.forms.flow import STAGE_TYPES
from handlergen.inspection.forms.foreign import SYSTEMS
from handlergen.inspection.project import open_project

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("coming-from-*.md"))
_FILE = re.compile(r"^```\w*\n# (\S+\.(?:py|yaml))\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# TorchScript is deprecated since torch 2.13, and what the pages' models are.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def written(page: str, directory: Path) -> Path:
    """The files of a page, the later of one name counting; with the models that they name."""
    for name, text in _FILE.findall((DOCS / page).read_text(encoding="utf-8")):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name in ("encoder.pt", "model.pt", "model.pth"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.zeros(1, 2)), directory / name)  # type: ignore[no-untyped-call]
    (directory / "head.json").write_text("{}")
    (directory / "labels.json").write_text("[]")
    return directory


def test_sagemaker(tmp_path: Path) -> None:
    import handlergen

    code = written("coming-from-sagemaker.md", tmp_path) / "code" / "inference.py"
    project = open_project(code, overrides={"weights": "../model.pth"}, environ={})
    assert (project.contract.form, project.warnings) == ("sagemaker", ())
    mar = handlergen.archive(code, weights="../model.pth", model_store=tmp_path / "store").path
    with handlergen.load(mar) as model:
        assert list(model.predict({"inputs": [[1.0, 2.0]]})) == ["outputs"]


def test_cerebrium(tmp_path: Path) -> None:
    directory = written("coming-from-cerebrium.md", tmp_path)
    assert open_project(directory / "steps.py", environ={}).contract.form == "flow"
    contract = open_project(directory / "main.py", environ={}).contract
    assert (contract.form, contract.call) == ("functions", "keywords")
    page = (DOCS / "coming-from-cerebrium.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(STAGE_TYPES)


def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import handlergen

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "foreign_packages"))
    directory = written("coming-from-other-systems.md", tmp_path)
    with handlergen.load(directory / "halver.py") as model:
        assert model.predict({"x": 5}) == {"half": 2.5}
    with handlergen.load(directory / "predictor.py") as model:
        assert model.predict({"input": {"x": 5.25, "digits": 2}}) == 2.62
    page = (DOCS / "coming-from-other-systems.md").read_text(encoding="utf-8")
    for system in SYSTEMS:
        assert all(f"`{hook}`" in page or f"`{hook}(" in page for hook in system.hooks), system.title


def test_torchserve_handler(tmp_path: Path) -> None:
    directory = written("coming-from-a-torchserve-handler.md", tmp_path)
    project = open_project(directory, environ={})
    assert (project.contract.form, project.settings.batch) == ("functions", "collate")
    (directory / "handlergen.yaml").unlink()
    with pytest.raises(ContractError, match="torch-model-archiver"):
        open_project(directory / "handler.py", environ={})


def test_verbs_and_requests_are_real() -> None:
    wrong = []
    for page in PAGES:
        blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        text = "\n".join(blocks)
        verbs = re.findall(r"^(?:\$ )?handlergen (\w+)", text, re.MULTILINE)
        if not verbs or not set(verbs) <= set(VERBS):
            wrong.append((page.name, verbs))
        for body in re.findall(r"--data '(.*)'$", text, re.MULTILINE):
            json.loads(body)
    assert wrong == []
