"""Which class is the model, where classes inherit from, or use, classes in other files of the project."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive
from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.local.model import load

BASE = """
    import torch
    from torch import nn

    class TextNet(nn.Module):
        def preprocess(self, x):
            return torch.tensor([float(len(word)) for word in x["text"].split()])
        def forward(self, batch):
            return batch
        def postprocess(self, out):
            return {"lengths": out.tolist()}
    """
NET = """
    class Net({base}):
        def forward(self, batch):
            return batch * 10
    """
MODEL = """
    class Base:
        def load(self):
            self.factor = 3
        def predict(self, x):
            return x * self.factor
    class Other(Base):
        pass
    """


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return directory / next(iter(files))


def net(base: str, imported: str) -> str:
    return textwrap.dedent(imported) + textwrap.dedent(NET.format(base=base))


TENS = ({"text": "a bird"}, {"lengths": [10.0, 40.0]})
NETWORKS: dict[str, tuple[dict[str, str], dict[str, Any], tuple[Any, Any]]] = {
    "imported by name": (
        {"net.py": net("TextNet", "from base import TextNet"), "base.py": BASE},
        {"extra_files": ["base.py"]},
        TENS,
    ),
    "of an imported module": ({"net.py": net("b.TextNet", "import base as b"), "base.py": BASE}, {}, TENS),
    "of the package's module": (
        {"net/__init__.py": net("base.TextNet", "from . import base"), "net/base.py": BASE},
        {},
        TENS,
    ),
    "two files away": (
        {
            "net.py": net("Middle", "from middle import Middle"),
            "middle.py": "from base import TextNet as T\nclass Middle(T): ...\n",
            "base.py": BASE,
        },
        {"extra_files": ["middle.py", "base.py"]},
        TENS,
    ),
    "re-exported by a package": (
        {
            "net.py": net("nets.Shared", "import nets"),
            "nets/__init__.py": "from .text import *\nShared = TextNet\n",
            "nets/text.py": BASE,
        },
        {"packages": ["nets"]},
        TENS,
    ),
    "in a module of a package": (
        {
            "net.py": net("nets.text.TextNet", "import nets.text"),
            "nets/__init__.py": "",
            "nets/text.py": BASE,
        },
        {"packages": ["nets"]},
        TENS,
    ),
    "of the same name": (
        {
            "net.py": "from base import TextNet as B\n"
            + textwrap.dedent(NET.format(base="B").replace("Net", "TextNet")),
            "base.py": BASE,
        },
        {"extra_files": ["base.py"]},
        TENS,
    ),
    "abstract": (
        {
            "net.py": net("TextNet", "from base import TextNet"),
            "base.py": BASE.replace("nn.Module", "nn.Module, abc.ABC")
            .replace("import torch", "import abc, torch", 1)
            .replace("        def forward", "        @abc.abstractmethod\n        def forward"),
        },
        {"extra_files": ["base.py"]},
        TENS,
    ),
    "used by a class Model": (
        {
            "net.py": """
                from base import TextNet
                class Model:
                    def load(self):
                        self.net = TextNet()
                    def predict(self, x):
                        return self.net.postprocess(self.net.preprocess(x) * 10)
                """,
            "base.py": BASE,
        },
        {"extra_files": ["base.py"]},
        TENS,
    ),
    "used by SageMaker's functions": (
        {
            "net.py": """
                from base import TextNet
                def model_fn(model_dir):
                    return TextNet()
                def input_fn(data, content_type):
                    return [10 * float(x) for x in data[1:-1].split(",")]
                def predict_fn(data, model):
                    return model(data)
                """,
            "base.py": BASE,
        },
        {"extra_files": ["base.py"]},
        ("1,2", [10.0, 20.0]),
    ),
    "a Model's base": (
        {"net.py": "import base\nclass Model(base.Other):\n    pass\n", "base.py": MODEL},
        {"extra_files": ["base.py"]},
        (2, 6),
    ),
    "an imported Model": (
        {"net.py": "from base import Other as Model\n", "base.py": MODEL},
        {"extra_files": ["base.py"]},
        (2, 6),
    ),
    "a diamond": (
        {
            "net.py": "from base import Base, Other\nclass Mixin(Base): ...\nclass Model(Mixin, Other): ...\n",
            "base.py": MODEL.replace("        pass", "        def predict(self, x):\n            return x * -1"),
        },
        {"extra_files": ["base.py"]},
        (2, -2),
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_the_sources_own_class_is_the_model(tmp_path: Path, case: str) -> None:
    files, settings, (data, right) = NETWORKS[case]
    source = write(tmp_path, files)
    source = source.parent if source.name == "__init__.py" else source
    with load(source, **settings) as model:
        assert model.predict(data) == right


@pytest.mark.parametrize("case", ["imported by name", "re-exported by a package", "a Model's base"])
def test_so_it_is_in_the_archive(tmp_path: Path, case: str) -> None:
    files, settings, (data, right) = NETWORKS[case]
    made = archive(write(tmp_path / "src", files), model_store=tmp_path / "store", **settings)
    for path in (tmp_path / "src").rglob("*.py"):
        path.unlink()
    with load(made.path) as model:
        assert model.predict(data) == right


@pytest.mark.parametrize(
    ("files", "words"),
    [
        # Its own class has no hook: not the imported one in its place.
        (
            {
                "net.py": "from torch import nn\nfrom base import TextNet\nclass Net(nn.Module):\n"
                "    def forward(self, x):\n        return x\n",
            },
            ["Net has no preprocess or postprocess of its own"],
        ),
        (
            {"net.py": "from base import TextNet\nclass Modle:\n    def predict(self, x):\n        return x\n"},
            ["Rename Modle to Model"],
        ),
        (
            {"net.py": "from base import TextNet\ndef preprocess(x):\n    return x\ndef predcit(x):\n    return x\n"},
            ["Is `predcit` meant to be it?"],
        ),
        (
            {"net.py": "import torchx\nclass Net(torchx.Base):\n    def preprocess(self, x):\n        return x\n"},
            ["does not show whether Net is an nn.Module", "torchx.Base", "class Net(torchx.Base, nn.Module)"],
        ),
        # Two that are possible.
        (
            {"net.py": "from base import TextNet, Second\n"},
            ["TextNet, ", "base.py, line 5 and Second, ", "base.py, line 13"],
        ),
        (
            {"net.py": "from base import TextNet\nclass A(TextNet): ...\nclass B(TextNet): ...\n"},
            ["A, line 2 and B, line 3"],
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    second = "\nclass Second(nn.Module):\n    def preprocess(self, x):\n        return x\n"
    source = write(tmp_path, {**files, "base.py": textwrap.dedent(BASE) + second})
    with pytest.raises(ContractError) as refused:
        open_project(source, environ={})
    for word in words:
        assert word in str(refused.value), str(refused.value)
