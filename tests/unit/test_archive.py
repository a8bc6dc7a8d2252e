"""Writing the archive: reproducible, in one step, touching nothing else, leaving nothing behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives import packing
from handlergen.archives.build import ArchiveResult, archive
from handlergen.archives.mar import read_mar
from handlergen.errors import HandlergenError

MODULE = "def load(context):\n    return None\n\n\ndef predict(inputs, model):\n    return inputs\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "mylib" / "deep").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "digits.py").write_text(MODULE)
    (root / "mylib" / "__init__.py").write_text("")
    (root / "mylib" / "deep" / "core.py").write_text("X = 1\n")
    (root / "data" / "labels.txt").write_text("a\nb\n")
    (root / "weights.bin").write_bytes(bytes(range(256)) * (3 << 12))
    return root / "digits.py"


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temp directory that only this test uses; it must be as it was afterwards."""
    directory = tmp_path / "temp"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert not [path for path in directory.iterdir() if path.name.startswith("handlergen-")]


def build(source: Path, model_store: Path, **options: Any) -> ArchiveResult:
    usual = {"weights": "weights.bin", "weights_format": "other", "extra_files": ["data"], "packages": ["mylib"]}
    return archive(source, model_store=model_store, **{**usual, "environ": {}, "count_gpus": lambda: 0, **options})


def test_what_comes_out(source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path / "store", requirements=["six"])
    assert result.path == tmp_path / "store" / "digits.mar"
    content = result.path.read_bytes()
    assert result.size == len(content)
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    with zipfile.ZipFile(result.path) as opened:
        assert opened.testzip() is None
        assert set(opened.namelist()) == {file.archive_path for file in result.files} | {"MAR-INF/MANIFEST.json"}
        assert opened.read("weights.bin") == (source.parent / "weights.bin").read_bytes()
        assert opened.read("mylib/deep/core.py") == b"X = 1\n"
        model = json.loads(opened.read("MAR-INF/MANIFEST.json"))["model"]
    assert model == {
        "modelName": "digits",
        "modelVersion": "1.0",
        "handler": "handlergen_handler.py",
        "requirementsFile": "requirements.txt",
        "configFile": "model-config.yaml",
    }
    assert (result.workers, result.device_type, result.device_ids) == (4, None, None)


def test_java_can_stream_stored_entries(source: Path, tmp_path: Path) -> None:
    # TorchServe reads with ZipInputStream, which refuses a stored entry whose sizes follow its data (flag 8).
    with zipfile.ZipFile(build(source, tmp_path / "store").path) as opened:
        for info in opened.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.flag_bits & 8 == 0
            opened.fp.seek(info.header_offset)  # type: ignore[union-attr]
            header = opened.fp.read(30)  # type: ignore[union-attr]
            assert int.from_bytes(header[22:26], "little") == info.file_size


def test_equal_inputs_give_equal_bytes(source: Path, tmp_path: Path) -> None:
    first = build(source, tmp_path / "one")
    # Another place, another time, other modes, another order in the directory, another process.
    elsewhere = tmp_path / "elsewhere" / "project"
    elsewhere.mkdir(parents=True)
    for path in sorted(source.parent.rglob("*"), reverse=True):
        if path.is_file():
            copy = elsewhere / path.relative_to(source.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o700)
            os.utime(copy, (1_000_000_000, 1_000_000_000))
    program = (
        "import sys\nfrom handlergen.archives.build import archive\n"
        "archive(sys.argv[1], model_store=sys.argv[2], weights='weights.bin', weights_format='other', "
        "extra_files=['data'], packages=['mylib'], count_gpus=lambda: 1)"
    )
    second = tmp_path / "two"
    command = [sys.executable, "-c", program, str(elsewhere / "digits.py"), str(second)]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"})
    assert (second / "digits.mar").read_bytes() == first.path.read_bytes()


def test_deflated_is_smaller_and_holds_the_same(source: Path, tmp_path: Path) -> None:
    stored = build(source, tmp_path / "one")
    deflated = build(source, tmp_path / "two", compression="deflated", verify=True)
    assert deflated.size < stored.size / 2
    contents = [{file.name: file.sha256 for file in read_mar(made.path).files} for made in (stored, deflated)]
    assert contents[0] == contents[1]
    assert build(source, tmp_path / "three", compression="deflated").sha256 == deflated.sha256


def test_an_existing_archive_stays_unless_forced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "digits.mar"
    target.parent.mkdir()
    target.write_bytes(b"precious")
    with pytest.raises(HandlergenError, match="exists already") as caught:
        build(source, target.parent)
    assert "--force" in str(caught.value.hint)
    assert target.read_bytes() == b"precious"
    build(source, target.parent, force=True)
    assert read_mar(target).name == "digits"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("links", [True, False])
def test_an_archive_that_appears_meanwhile_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    target = tmp_path / "store" / "digits.mar"
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)

    def progress(done: int, total: int) -> None:
        target.write_bytes(b"somebody else's")

    with pytest.raises(HandlergenError, match="exists already"):
        build(source, target.parent, progress=progress)
    assert target.read_bytes() == b"somebody else's"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_in_the_store_is_replaced_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "outside").write_bytes(b"precious")
    (tmp_path / "store" / "digits.mar").symlink_to(tmp_path / "outside")
    with pytest.raises(HandlergenError, match="exists already"):
        build(source, tmp_path / "store")
    build(source, tmp_path / "store", force=True)
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert not (tmp_path / "store" / "digits.mar").is_symlink()


@pytest.mark.parametrize("what", ["store", "target"])
def test_a_store_or_target_of_the_wrong_kind(source: Path, tmp_path: Path, what: str) -> None:
    if what == "store":
        (tmp_path / "store").write_text("a file")
    else:
        (tmp_path / "store" / "digits.mar").mkdir(parents=True)
    with pytest.raises(HandlergenError, match="directory"):
        build(source, tmp_path / "store", force=True)


def test_a_project_of_the_models_name_in_the_temp_directory_survives(source: Path, tmp_path: Path, temp: Path) -> None:
    # torch-model-archiver deletes $TMPDIR/<model name> before it starts.
    (temp / "digits").mkdir()
    (temp / "digits" / "thesis.txt").write_text("years of work")
    build(source, tmp_path / "store")
    assert (temp / "digits" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in temp.iterdir()] == ["digits"]


def test_several_archives_of_one_name_at_once(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as executor:
        runs = [executor.submit(build, source, tmp_path / f"store{number}") for number in range(6)]
        assert len({run.result().sha256 for run in runs}) == 1


def test_of_several_at_once_into_one_store_one_wins(source: Path, tmp_path: Path) -> None:
    barrier = threading.Barrier(5)

    def attempt(_number: int) -> str:
        barrier.wait()
        try:
            return build(source, tmp_path / "store").sha256
        except HandlergenError as error:
            return error.message

    with ThreadPoolExecutor(5) as executor:
        outcomes = list(executor.map(attempt, range(5)))
    assert sum("exists already" in outcome for outcome in outcomes) == 4
    assert hashlib.sha256((tmp_path / "store" / "digits.mar").read_bytes()).hexdigest() in outcomes
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["digits.mar"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("progress broke"), OSError(28, "No space left")])
def test_nothing_is_left_after_a_failure(
    source: Path, tmp_path: Path, error: BaseException | type[BaseException]
) -> None:
    def progress(done: int, total: int) -> None:
        assert list((tmp_path / "store").iterdir())
        raise error

    with pytest.raises((KeyboardInterrupt, RuntimeError, HandlergenError)):
        build(source, tmp_path / "store", progress=progress)
    assert list((tmp_path / "store").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    left = store / f".other.mar.{'0' * 16}.part"
    left.write_bytes(b"half")
    (store / ".mine.part").write_bytes(b"not handlergen's")
    building = store / f".more.mar.{'1' * 16}.part"
    with building.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a process does that is still at it
        build(source, store)
        assert building.exists()
    assert not left.exists()
    assert (store / ".mine.part").exists()


def test_a_running_archive_is_not_stale_for_another(source: Path, tmp_path: Path) -> None:
    """Every partial file is locked from its first byte until it has its name."""
    stale: list[bool] = []

    def progress(_done: int, _total: int) -> None:
        (partial,) = (tmp_path / "store").glob(".*.part")
        with partial.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stale.append(True)
            except BlockingIOError:
                stale.append(False)

    build(source, tmp_path / "store", progress=progress)
    assert stale
    assert not any(stale)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing(source: Path, tmp_path: Path, temp: Path, number: str) -> None:
    with (source.parent / "weights.bin").open("wb") as weights:
        weights.truncate(1 << 40)  # more than could be packed before the signal; takes no room itself
    started = tmp_path / "store"
    command = [sys.executable, "-c", "from handlergen.cli import main; main()", "archive", str(source)]
    command += ["--extra-file", "weights.bin", "--model-store", str(started), "--compression", "deflated"]
    environ = {**os.environ, "TMPDIR": str(temp)}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (started.is_dir() and list(started.iterdir())) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert list(started.iterdir()) == []
    assert list(temp.iterdir()) == []


def test_a_file_that_grows_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    weights = source.parent / "weights.bin"
    weights.write_bytes(b"w" * (9 << 20))

    def progress(done: int, total: int) -> None:
        # Weights come last and are read in pieces: somewhere in the middle of them.
        if done > 4 << 20:
            with weights.open("ab") as output:
                output.write(b"more")

    with pytest.raises(HandlergenError, match="changed while it was being packed"):
        build(source, tmp_path / "store", progress=progress)
    assert list((tmp_path / "store").iterdir()) == []


def test_progress_reaches_the_end_and_never_goes_back(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = build(source, tmp_path / "store", progress=lambda done, total: seen.append((done, total)))
    total = sum(file.size for file in result.files)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_awkward_temp_directories_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch-model-archiver splits paths at commas and expands wildcards.
    awkward = tmp_path / "a,b [c]* ü"
    awkward.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(awkward))
    assert build(source, tmp_path / "store, too", verify=True).size > 0


def test_the_archivers_own_error_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    (broken / "model_archiver").mkdir(parents=True)
    (broken / "model_archiver" / "__init__.py").write_text("raise RuntimeError('archiver is broken')")
    monkeypatch.syspath_prepend(str(broken))
    with pytest.raises(HandlergenError, match="archiver is broken"):
        build(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_verify_notices_a_difference(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = source.parent / "data" / "labels.txt"
    check = packing.check_copy

    def change_and_check(path: Path, plan: Any) -> None:
        labels.write_text("c\n")
        check(path, plan)

    monkeypatch.setattr(packing, "check_copy", change_and_check)
    with pytest.raises(HandlergenError, match=r"data/labels\.txt"):
        build(source, tmp_path / "store", verify=True)
    assert list((tmp_path / "store").iterdir()) == []


def refuse_links(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    first = build(source, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["digits.mar"]
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256


def test_the_archive_is_readable_as_the_umask_says(source: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert build(source, tmp_path / "store").path.stat().st_mode == plain.stat().st_mode


def test_gpus_are_counted_for_auto_only(source: Path, tmp_path: Path) -> None:
    def count() -> int:
        raise AssertionError

    with pytest.raises(AssertionError):
        build(source, tmp_path / "one", count_gpus=count)
    result = build(source, tmp_path / "two", count_gpus=count, devices=[0, 3], workers_per_device=2)
    assert (result.workers, result.device_ids) == (4, (0, 3))
    many = build(source, tmp_path / "three", count_gpus=lambda: 2)
    assert (many.workers, many.device_ids) == (8, (0, 1))
    assert read_mar(many.path).model_config["deviceIds"] == [0, 1]


HELD = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from handlergen.archives.packing import private_directory
with private_directory() as directory:
    (directory / "weights").write_bytes(b"1")
    print(directory, flush=True)
    time.sleep(600)
"""


def test_the_private_directory_of_a_killed_process_is_removed_by_the_next(
    source: Path, tmp_path: Path, temp: Path
) -> None:
    command = [sys.executable, "-c", HELD, str(temp)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        others = [temp / "handlergen", temp / "somebody-archive-1"]
        for other in others:
            other.mkdir()
        (temp / "target").mkdir()
        link = temp / f"{left.name}-link"
        link.symlink_to(temp / "target")
        build(source, tmp_path / "store")
        assert (left / "weights").exists(), "its process is at it still"
        process.kill()
        process.wait()
    build(source, tmp_path / "store", force=True)
    assert not left.exists()
    assert all(other.exists() for other in others)
    assert link.is_symlink()
    link.unlink()


# A project that its model store lies in: what an archive holds does not depend on the archives made before.


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "beside" / "digits.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    return path


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
    module: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    monkeypatch.chdir(module.parent)
    (module.parent / "model-store").mkdir()
    (module.parent / "model-store" / "notes.txt").touch()
    first = archive(module, extra_files=[extra], environ={})
    again = archive(module, extra_files=[extra], force=True, environ={})
    assert again.sha256 == first.sha256
    assert "model-store/notes.txt" in {file.archive_path for file in again.files}
    assert [warning for warning in again.warnings if "model store" in warning] == [
        "left out the archives in the model store model-store (digits.mar)"
    ]


def test_an_archive_that_is_named_itself_is_packed(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(module.parent)
    (module.parent / "model-store").mkdir()
    (module.parent / "model-store" / "other.mar").touch()
    made = archive(module, extra_files=["model-store/other.mar"], environ={})
    assert "model-store/other.mar" in {file.archive_path for file in made.files}
