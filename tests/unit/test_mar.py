"""Reading archives and writing deterministic zip files; test_hostile_archives.py has those that are refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlergen.archives.build import archive
from handlergen.archives.deterministic_zip import write_zip
from handlergen.archives.mar import read_mar, unpack
from handlergen.archives.zip_safety import entry_problems
from handlergen.errors import HandlergenError

MANIFEST = json.dumps({"model": {"modelName": "m", "modelVersion": "2.0", "handler": "h.py"}, "runtime": "python"})


def crafted(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes | str], manifest: str = MANIFEST) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("MAR-INF/MANIFEST.json", manifest)
        for name, content in entries:
            opened.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.mkdir() or path, "is a directory"),
        (lambda path: path.write_bytes(b"PK not at all") and path, "not an archive"),
        (lambda path: crafted(path, manifest="not json"), "not JSON"),
        (lambda path: crafted(path, manifest="[1]"), "is not a JSON object"),
        (lambda path: crafted(path, manifest='{"model": 3}'), "not a manifest"),
        (lambda path: crafted(path, ("handlergen.json", "{}")), "archive the model again"),
        (lambda path: crafted(path, ("model-config.yaml", "{a: ")), "not YAML"),
    ],
)
def test_what_is_no_archive_is_told_so(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    with pytest.raises(HandlergenError, match=reason):
        read_mar(make(tmp_path / "bad.mar"))


def test_an_archive_of_somebody_elses(tmp_path: Path) -> None:
    path = crafted(tmp_path / "other.mar", ("h.py", "def handle(data, context): pass"))
    mar = read_mar(path)
    assert (mar.name, mar.version, mar.bundle, mar.model_config) == ("m", "2.0", None, {})
    assert [file.name for file in mar.files] == ["MAR-INF/MANIFEST.json", "h.py"]
    assert mar.files[1].sha256 == hashlib.sha256(b"def handle(data, context): pass").hexdigest()


class OneWay(io.RawIOBase):
    """A stream that cannot seek: zipfile then writes sizes behind each entry, as `jar` does."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_other_ways_to_write_a_zip_file_are_read(tmp_path: Path, method: int) -> None:
    contents = {"MAR-INF/MANIFEST.json": MANIFEST.encode(), "a.py": b"a = 1\n" * 999, "empty": b"", "ü.txt": b"x"}
    one_way, wide, appended = (tmp_path / f"{name}.mar" for name in ("one-way", "wide", "appended"))
    output = OneWay(one_way)
    with zipfile.ZipFile(output, "w", method) as opened:  # type: ignore[type-var]
        for name, content in contents.items():
            opened.writestr(name, content)
    output.close()
    with zipfile.ZipFile(wide, "w", method) as opened:
        opened.mkdir("a directory") if hasattr(opened, "mkdir") else None
        for name, content in contents.items():
            with opened.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    for name, content in contents.items():
        with zipfile.ZipFile(appended, "a", method) as opened:
            opened.writestr(name, content)
            opened.comment = b"written in parts"
    assert one_way.read_bytes()[6] & 8
    for path in (one_way, wide, appended):
        assert {file.name: file.sha256 for file in read_mar(path).files} == {
            name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
        }
        unpack(path, tmp_path / path.stem)
        assert (tmp_path / path.stem / "a.py").read_bytes() == contents["a.py"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_refused_or_harmless(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    """Bytes changed at random: an error in words, or an archive whose contents are sound; never another exception."""
    path = crafted(tmp_path / "damaged.mar", ("a/b.py", b"b = 1\n"), ("model-config.yaml", "minWorkers: 1\n"))
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        files = read_mar(path).files
    except HandlergenError:
        return
    assert "MAR-INF/MANIFEST.json" in {file.name for file in files}
    assert all(".." not in file.name.split("/") and not file.name.startswith("/") for file in files)


def test_our_own_archive_reads_back_and_unpacks(tmp_path: Path) -> None:
    source = tmp_path / "add.py"
    source.write_text("def predict(a, b):\n    return a + b\n")
    result = archive(source, model_store=tmp_path / "store", environ={}, config={"limit": 3}, devices="cpu")
    mar = read_mar(result.path)
    assert mar.bundle is not None
    assert mar.bundle.contract == result.contract
    assert mar.bundle.settings.config == {"limit": 3}
    assert mar.model_config["deviceType"] == "cpu"
    unpack(result.path, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {file.name for file in mar.files}
    assert (tmp_path / "out" / "add.py").read_bytes() == source.read_bytes()
    with pytest.raises(HandlergenError, match="not empty"):
        unpack(result.path, tmp_path / "out")


@pytest.mark.parametrize("deflated", [False, True])
def test_a_deterministic_zip_reads_back_in_zipfile(tmp_path: Path, deflated: bool) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 40_000)
    files: dict[str, Path | bytes] = {"c": b"x", "b/ü.bin": tmp_path / "large", "a.txt": b""}
    output = io.BytesIO()
    write_zip(output, files, deflated=deflated)
    with zipfile.ZipFile(output) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == sorted(files)
        assert opened.read("b/ü.bin") == (tmp_path / "large").read_bytes()
        assert (opened.read("a.txt"), opened.read("c")) == (b"", b"x")
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in opened.infolist()} == {0o100644}
        assert {info.flag_bits & 8 for info in opened.infolist()} == {0}


class Sparse(io.RawIOBase):
    """A file that stores zero bytes as holes, for archives of more than 4 GiB that take no room."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if any(memoryview(data)[:64]):
            return self._file.write(data)
        self._file.seek(len(data), io.SEEK_CUR)
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()


def test_more_than_a_plain_zip_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    size = (4 << 30) + 5
    with (tmp_path / "zeros").open("wb") as zeros:
        zeros.truncate(size)
    output = Sparse(path)
    write_zip(output, {"large": tmp_path / "zeros", "later": b"small"})  # type: ignore[arg-type]
    output.close()
    with path.open("rb") as raw, zipfile.ZipFile(path) as opened:
        assert opened.getinfo("large").file_size == size
        assert opened.getinfo("later").header_offset > size
        assert opened.read("later") == b"small"
        with opened.open("large") as content:
            assert content.read(3) == bytes(3)
        assert [problem for problem in entry_problems(opened, raw) if "unpack" not in problem] == []
    shutil.rmtree(tmp_path)


def test_more_entries_than_a_plain_zip_can_count() -> None:
    output = io.BytesIO()
    write_zip(output, {f"{number}": b"" for number in range(66_000)})
    with zipfile.ZipFile(output) as opened:
        assert len(opened.namelist()) == 66_000


@pytest.mark.parametrize(("later", "read"), [(6 << 20, (5 << 20) + 1), (1, 4 << 20)])
def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, later: int, read: int) -> None:
    path = tmp_path / "changing"
    path.write_bytes(bytes(5 << 20))
    with pytest.raises(ValueError, match=f"{5 << 20} bytes at first and {read} when it was read"):
        write_zip(io.BytesIO(), {"a": path}, wrote=lambda _: os.truncate(path, later))
