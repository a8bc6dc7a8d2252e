"""What a module uses is packed, or named: imports, directories on `sys.path`, pickled classes, data files, links."""

from __future__ import annotations

import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import handlergen
from handlergen.archives.build import archive
from handlergen.archives.staging import make_plan
from handlergen.errors import HandlergenError
from handlergen.inspection.project import open_project


def project(directory: Path, files: Mapping[str, str]) -> Path:
    """Write files; return the first."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return directory / next(iter(files))


def told(source: Path, **settings: Any) -> str:
    """Everything that `check` and `archive` warn of."""
    opened = open_project(source, overrides=settings)
    return "\n".join((*opened.warnings, *make_plan(opened).warnings))


def answers(source: Path, data: Any, tmp_path: Path, **settings: Any) -> list[Any]:
    """What the source answers, and the archive where the source is gone."""
    made = archive(source, model_store=tmp_path / "store", force=True, **settings).path
    found = []
    for each in (source, made):
        with handlergen.load(each) as model:
            found.append(model.predict(data))
    return found


def test_a_vendored_directory(tmp_path: Path) -> None:
    # bentoml/BentoML issue 2602, ultralytics/yolov5 issue 22
    files = {
        "detect.py": """
            import pathlib, sys
            sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "vendor"))
            from shapes.box import box
            def predict(inputs):
                return box(inputs["x"])
            """,
        "vendor/shapes/__init__.py": "",
        "vendor/shapes/box.py": "from units.scale import up\ndef box(x): return [0, 0, up(x), up(x)]\n",
        "vendor/units/__init__.py": "",
        "vendor/units/scale.py": "def up(x): return x * 10\n",
    }
    source = project(tmp_path, files)
    assert told(source) == ""
    assert answers(source, {"x": 2}, tmp_path) == [[0, 0, 20, 20], [0, 0, 20, 20]]


@pytest.mark.parametrize(
    "statement",
    [
        "import os; sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'lib'))",
        "import os.path as osp; sys.path.insert(1, osp.join(osp.dirname(osp.realpath(__file__)), 'lib'))",
        "from pathlib import Path; sys.path.extend([str(Path(__file__).parent.joinpath('lib')), '/nowhere'])",
        "from pathlib import Path; HERE = Path(__file__).parents[0]; sys.path += [f'{HERE}/lib']",
        "from pathlib import Path; sys.path = [str(Path(__file__).parent / 'lib')] + sys.path",
        "import site; site.addsitedir('lib')",
        "for part in ('absent', 'lib'): sys.path.append(__import__('os').path.abspath(part)); sys.path.append(part)",
        "def add(entry): sys.path.insert(0, entry)\nadd('lib')",
        "import os; sys.path.append(os.getcwd() + '/lib')",
    ],
)
def test_ways_to_put_a_directory_on_the_path(tmp_path: Path, statement: str) -> None:
    source = project(tmp_path, {"m.py": "", "lib/own_numbers.py": "seven = 7\n"})
    source.write_text(f"import sys\n{statement}\nimport own_numbers\ndef predict(x): return own_numbers.seven * x\n")
    before = list(sys.path)
    assert answers(source, 2, tmp_path) == [14, 14]
    sys.path[:] = before


def test_a_hook_from_a_directory_on_the_path_is_read(tmp_path: Path) -> None:
    text = "import sys\nsys.path.insert(0, 'lib')\nfrom steps import postprocess\ndef predict(x): return x\n"
    source = project(tmp_path, {"m.py": text, "lib/steps.py": "def postprocess(outputs): return [outputs]\n"})
    assert "postprocess" in open_project(source).contract.hooks
    assert answers(source, 2, tmp_path) == [[2], [2]]


def test_a_directory_that_the_source_does_not_show(tmp_path: Path) -> None:
    text = "import os, sys\nsys.path.append(os.environ['LIBS'])\ndef predict(x): return x\n"
    assert "m.py:2: puts os.environ['LIBS'] on sys.path" in told(project(tmp_path, {"m.py": text}))


def test_modules_beside_the_source_are_packed_at_any_depth(tmp_path: Path) -> None:
    files = {
        "m.py": """
            import importlib
            def predict(x):
                from kit.api import times
                return importlib.import_module("plugins.first").scale(times(x))
            if __name__ == "__main__":
                import train
            """,
        "kit/__init__.py": "",
        "kit/api.py": "from kit.inner.deep import times\n",
        "kit/inner/__init__.py": "",
        "kit/inner/deep.py": "import own_factor\ndef times(x): return x * own_factor.F\n",
        "own_factor.py": "F = 8\n",
        "plugins/first.py": "def scale(x): return x + 1\n",
        "train.py": "",
    }
    source = project(tmp_path, files)
    assert answers(source, 2, tmp_path) == [17, 17]
    packed = {file.archive_path for file in make_plan(open_project(source)).files}
    assert "train.py" not in packed


def test_imports_that_cannot_be_packed_are_named(tmp_path: Path) -> None:
    text = "import sys, importlib\nsys.path.append('..')\nimport far_away.consts\nimport json\nimport socket\n"
    text += "def predict(x): return importlib.import_module(x['name']).run()\n"
    files = {"proj/m.py": text, "far_away/__init__.py": "", "far_away/consts.py": "", "proj/socket.py": ""}
    source = project(tmp_path, files)
    found = told(source)
    assert "m.py:3: imports far_away.consts, which is not packed. Write packages: [../far_away]." in found
    assert "m.py:5: imports socket, which is not packed. Rename it" in found
    assert "m.py:6: imports x['name'], a name that is computed" in found
    assert "far_away" not in told(source, packages=["../far_away"])


@pytest.mark.parametrize("compress", [0, 3])
def test_the_class_of_a_pickle_is_packed(tmp_path: Path, compress: int, monkeypatch: pytest.MonkeyPatch) -> None:
    joblib = pytest.importorskip("joblib")
    numpy = pytest.importorskip("numpy")
    files = {
        "m.py": "import joblib\ndef load(context): return joblib.load('own.joblib')\n"
        "def predict(x, model): return model['plus'].add(x)\n",
        "own_steps.py": "class Plus:\n    def __init__(self, n): self.n = n\n    def add(self, x): return x + self.n\n",
    }
    source = project(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_steps  # type: ignore[import-not-found]

    joblib.dump({"values": numpy.arange(5.0), "plus": own_steps.Plus(2)}, tmp_path / "own.joblib", compress=compress)
    del sys.modules["own_steps"]
    monkeypatch.undo()
    assert answers(source, 3, tmp_path, extra_files=["own.*"]) == [5, 5]


@pytest.mark.parametrize(
    ("module", "said"),
    [("__main__", "the script that saved it"), ("nowhere_at_all", "neither in the project nor installed here")],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_class_of_a_pickle_that_is_not_there_is_named(
    tmp_path: Path, module: str, said: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = type("Net", (), {"__module__": module})
    monkeypatch.setitem(sys.modules, "nowhere_at_all", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[module], "Net", made, raising=False)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps([made(), made()], protocol))
    monkeypatch.undo()
    source = project(tmp_path, {"m.py": "def predict(x): return x\n"})
    assert said in told(source, extra_files=["net.pkl"])


def test_data_files_are_named(tmp_path: Path) -> None:
    files = {
        "proj/m.py": """
            import json, os
            from pathlib import Path
            HERE = Path(__file__).resolve().parent
            LABELS = (HERE / "data" / "labels.txt").read_text()
            FAR = open(os.path.join(os.path.dirname(__file__), "..", "far.txt"))
            MODEL = transformers.AutoModel.from_pretrained("weights/bert")
            HOSTS = Path("/etc/hosts")
            def predict(x): return x
            """,
        "proj/data/labels.txt": "a",
        "proj/weights/bert/config.json": "{}",
        "far.txt": "b",
    }
    source = project(tmp_path, files)
    found = told(source)
    assert "--extra-file data/labels.txt" in found
    assert "--extra-file weights/bert" in found
    assert "far.txt" in found
    assert "/etc/hosts" not in found
    assert len(found.splitlines()) == 3
    assert "labels" not in told(source, extra_files=["data", "weights"])


@pytest.mark.parametrize("by_file", [True, False])
def test_the_files_that_a_module_names_are_packed_on_request(tmp_path: Path, by_file: bool) -> None:
    files = {
        "m.py": """
            import pickle
            from pathlib import Path
            from helpers import words
            HERE = Path(__file__).parent
            POINT = pickle.loads((HERE / "data" / "point.pkl").read_bytes())
            def predict(x):
                return [POINT.x, words(), (HERE / "many").is_dir()]
            """,
        "helpers.py": "import pathlib\ndef words(): return pathlib.Path('words.txt').read_text().split()\n",
        "points.py": "class Point:\n    x = 7\n",
        **dict.fromkeys(("words.txt", "many/1.txt", "many/2.txt", "data/unused.txt", ".env", "far/auto"), "a b"),
    }
    source = project(tmp_path / "proj", files)
    point = b"\x80\x04\x8c\x06points\x94\x8c\x05Point\x94\x93\x94)\x81\x94."
    (source.parent / "data" / "point.pkl").write_bytes(point)
    chosen = {} if by_file else {"extra_files": ["far", "auto"]}
    if by_file:
        (source.parent / "handlergen.yaml").write_text("source: m.py\nextra_files: [far, auto]\n")
    opened = open_project(source, overrides=chosen)
    packed = {file.archive_path for file in make_plan(opened).files} & {*files, "data/point.pkl"}
    assert packed == {*files, "data/point.pkl"} - {"data/unused.txt", ".env"}
    assert opened.missing == ()
    (said,) = [warning for warning in opened.warnings if warning.startswith("extra_files: auto packs")]
    assert re.findall(r"([\w./]+) \(\S+m\.py:6\)", said) == ["data/point.pkl"]
    assert answers(source, 0, tmp_path, **chosen) == [[7, ["a", "b"], True]] * 2


def test_predict_warns_of_what_an_archive_would_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    project(
        tmp_path,
        {"m.py": "import pathlib\ndef predict(x): return pathlib.Path('words.txt').read_text()\n", "words.txt": "a"},
    )
    status, out, err = run("predict", "m.py", "1")
    assert (status, out) == (0, '"a"\n')
    assert err.startswith("Warning: m.py:2: pathlib.Path('words.txt') is named here and is beside the module")
    assert "--extra-file words.txt, or auto" in err


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + "/y.txt"])
def test_a_text_that_is_too_long_for_a_file(tmp_path: Path, name: str) -> None:
    source = project(tmp_path, {"m.py": f"WHAT = str('{name}')\ndef predict(x): return x\n"})
    assert told(source) == ""


def snapshot(tmp_path: Path) -> Path:
    """Write a model in the layout of a Hugging Face cache, and a project with a link to it."""
    cache = tmp_path / "cache" / "models--a--b"
    for name in ("blobs", "snapshots/abc"):
        (cache / name).mkdir(parents=True)
    (cache / "blobs" / "123").write_text("7")
    (cache / "snapshots" / "abc" / "config.json").symlink_to("../../blobs/123")
    text = (
        "import pathlib\nVALUE = int(pathlib.Path('model/config.json').read_text())\ndef predict(x): return VALUE * x\n"
    )
    source = project(tmp_path / "proj", {"m.py": text})
    (source.parent / "model").symlink_to(cache / "snapshots" / "abc")
    return source


def test_links_out_of_the_project_are_packed_on_request(tmp_path: Path) -> None:
    source = snapshot(tmp_path)
    with pytest.raises(HandlergenError, match=r"model is a link out of the project.*--follow-links"):
        archive(source, model_store=tmp_path / "store", extra_files=["model"])
    assert answers(source, 3, tmp_path, extra_files=["model"], follow_links=True) == [21, 21]


def test_a_snapshot_outside_the_project(tmp_path: Path) -> None:
    entry = str((snapshot(tmp_path).parent / "model").resolve())
    opened = open_project(tmp_path / "proj" / "m.py", overrides={"extra_files": [entry], "follow_links": True})
    assert "abc/config.json" in [file.archive_path for file in make_plan(opened).files]


@pytest.mark.parametrize(("target", "said"), [("/", "contains the project"), ("{tmp}/loop", "contains it")])
def test_links_without_end_are_refused(tmp_path: Path, target: str, said: str) -> None:
    source = project(tmp_path / "proj", {"m.py": "def predict(x): return x\n", "data/a.txt": ""})
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    (source.parent / "data" / "link").symlink_to(target.format(tmp=tmp_path))
    with pytest.raises(HandlergenError, match=said):
        archive(source, model_store=tmp_path / "store", extra_files=["data"], follow_links=True)


def test_a_source_in_a_directory_below_its_settings(tmp_path: Path) -> None:
    files = {
        "handlergen.yaml": "source: src/m.py\n",
        "src/m.py": "import own_beside\ndef predict(x): return own_beside.N * x\n",
        "src/own_beside.py": "N = 4\n",
    }
    assert answers(project(tmp_path, files).parent, 2, tmp_path) == [8, 8]
