"""Requirements files are read as pip reads them, and what no server can install is named with what to write."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from handlergen.archives.requirements import CONSTRAINTS_FILE, Requirements
from handlergen.archives.staging import make_plan
from handlergen.inspection.project import open_project


def read(directory: Path, text: str | bytes, **others: str) -> Requirements:
    """Read a requirements file; `others` are further files, by name without `.txt`."""
    for name, other in others.items():
        path = directory / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(other)
    (directory / "requirements.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    found = Requirements()
    found.add_file(directory / "requirements.txt")
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, "# größe\nnumpy\n".encode(encoding)).text() == "# größe\nnumpy\n".encode()


def test_a_named_encoding_and_a_wrong_one(tmp_path: Path) -> None:
    assert read(tmp_path, "# coding: latin-1 é\nsix".encode("latin-1")).text() == "# coding: latin-1 é\nsix\n".encode()
    assert "save it as UTF-8" in read(tmp_path, "six # é".encode("latin-1")).problems[0]
    without_mark = "six\n".encode("utf-16").removeprefix(codecs.BOM_UTF16_LE)
    assert "null bytes" in read(tmp_path, without_mark).problems[0]


def test_files_that_name_others(tmp_path: Path) -> None:
    others = {"sub__more": "scipy\n-rthird.txt\n-c ../limits.txt\n", "sub__third": "deep\n", "limits": "urllib3<2\n"}
    found = read(tmp_path, "six\n--requirement=sub/more.txt\nlast\n", **others)
    assert found.problems == []
    assert found.text() == b"-c handlergen-constraints.txt\nsix\nscipy\ndeep\nlast\n"
    assert found.constraints == ["urllib3<2"]


def test_files_that_are_not_there_or_name_themselves(tmp_path: Path) -> None:
    found = read(tmp_path, "-r absent.txt\n-r a.txt\n", a="-r requirements.txt\n")
    assert "requirements.txt:1: '-r absent.txt' names another file, which does not exist" in found.problems[0]
    assert "a.txt:1: '-r requirements.txt' names a file that includes this one" in found.problems[1]


@pytest.mark.parametrize(
    "line",
    [
        "Pillow[webp] >=10 ; python_version > '3'  # why",
        "a==1 --hash=sha256:00 \\\n    --hash=sha256:11",
        "--extra-index-url https://example.org/simple",
        "--find-links https://example.org/wheels",
        "-r https://example.org/requirements.txt",
        "git+https://example.org/x.git",
        "own @ https://example.org/own-1.0-py3-none-any.whl",
        "https://example.org/own-1.0-py3-none-any.whl",
        "torch==2.1.0+cu118",
        "numpy===1.26",
    ],
)
def test_lines_that_stay_as_they_are(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"{line}\n")
    assert found.problems == []
    assert found.warnings == []
    assert found.text() == f"{line}\n".encode()


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (
            "numpy @ file:///croot/numpy_1/work/dist/numpy-1.26.4-cp311-cp311-linux_x86_64.whl#sha256=ab",
            "numpy==1.26.4",
        ),
        ("no-such-package @ file:///croot/x_1", "no-such-package==VERSION"),
        ("pytest @ file:///opt/conda/work", f"pytest=={pytest.__version__} (the version installed here)"),
        ("file:///home/me/own_lib-1.2-py3-none-any.whl", "own-lib==1.2"),
        ("./wheels/own-1.2.tar.gz", "own==1.2"),
        ("C:\\wheels\\own-1.2-py3-none-any.whl", "own==1.2"),
        ("-e .", "packages: [DIRECTORY]"),
        ("-e git+https://example.org/x.git@main#egg=x", "x @ git+https://example.org/x.git@main"),
        ("--find-links wheels/", "--extra-index-url URL"),
        ("pandas=1.3.0=py39h_0", "pandas==1.3.0"),
    ],
)
def test_lines_that_no_server_can_install(tmp_path: Path, line: str, fix: str) -> None:
    (problem,) = read(tmp_path, f"six\n{line}\n").problems
    assert "requirements.txt:2: " in problem
    assert problem.endswith(fix)


def test_lines_that_may_fail(tmp_path: Path) -> None:
    found = read(tmp_path, "a==1 --hash=sha256:00\npywin32==306\npkg_resources==0.0.0\n")
    found.text()
    assert [warning.rpartition("requirements.txt:")[2][0] for warning in found.warnings[:2]] == ["2", "3"]
    assert "pip requires a hash for every line" in found.warnings[2]


def test_constraints_are_packed_once(tmp_path: Path) -> None:
    read(tmp_path, "six\n-c limits.txt\n", limits="urllib3<2\n")
    (tmp_path / "model.py").write_text("def predict(x): ...\n")
    project = open_project(tmp_path / "model.py", overrides={"requirements": ["requirements.txt"]}, environ={})
    packed = [file.origin for file in make_plan(project).files if file.archive_path == CONSTRAINTS_FILE]
    assert packed == [b"urllib3<2\n"]
