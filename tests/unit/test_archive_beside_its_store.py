"""A project that its model store lies in: what an archive holds does not depend on the archives made before."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.archives.build import archive

MODULE = "def predict(inputs):\n    return inputs\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "digits.py").write_text(MODULE)
    return tmp_path / "digits.py"


def test_a_package_that_holds_its_model_store_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "digits"
    package.mkdir()
    (package / "__init__.py").write_text(MODULE)
    monkeypatch.chdir(package)
    first = archive(".", environ={})
    assert not [warning for warning in first.warnings if "model store" in warning]
    (package / "model-store" / "digits.mar.sig").touch()
    again = archive(".", force=True, environ={})
    assert again.sha256 == first.sha256
    assert "left out the archives in the model store model-store (digits.mar, …)" in again.warnings
    monkeypatch.chdir(tmp_path)
    assert archive("digits", force=True, environ={}).sha256 == first.sha256
    assert archive("digits", model_store="digits", force=True, environ={}).sha256 == first.sha256
    assert archive("digits", model_store="digits", force=True, environ={}).sha256 == first.sha256


@pytest.mark.parametrize("extra", ["*", "model-store", "model-store/*"])
def test_extra_files_take_no_archives_of_the_model_store(
    source: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "model-store").mkdir()
    (source.parent / "model-store" / "notes.txt").touch()
    first = archive(source, extra_files=[extra], environ={})
    again = archive(source, extra_files=[extra], force=True, environ={})
    assert again.sha256 == first.sha256
    assert "model-store/notes.txt" in {file.archive_path for file in again.files}
    assert [warning for warning in again.warnings if "model store" in warning] == [
        "left out the archives in the model store model-store (digits.mar)"
    ]


def test_an_archive_that_is_named_itself_is_packed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "model-store").mkdir()
    (source.parent / "model-store" / "other.mar").touch()
    made = archive(source, extra_files=["model-store/other.mar"], environ={})
    assert "model-store/other.mar" in {file.archive_path for file in made.files}
