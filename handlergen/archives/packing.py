"""From a plan to an archive in the model store: laid out by torch-model-archiver, written and published in one step."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from handlergen.archives import deterministic_zip
from handlergen.archives.mar import check_copy, read_manifest
from handlergen.archives.staging import Plan
from handlergen.errors import HandlergenError
from handlergen.project.names import HANDLER_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE
from handlergen.project.settings import Settings

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the total."""

_PARTIAL = re.compile(r"\..+\.mar\.[0-9a-f]{16}\.part")
"""The names of the files of `_partial_beside`."""

_PRIVATE = "handlergen-archive-"
"""How the names of private directories begin, and no others."""

_ARCHIVER = "from model_archiver.model_packaging import generate_model_archive; generate_model_archive()"
"""The program `torch-model-archiver`, whichever directory pip put its script into."""


def manifest(plan: Plan, settings: Settings) -> bytes:
    """Return the text of `MAR-INF/MANIFEST.json`, as torch-model-archiver writes it for the files of `plan`.

    The archiver packs empty files with the names of the plan: it copies every file twice, and reads none of them. Their
    contents are written once, by `publish`.

    Raises:
        HandlergenError: The archiver failed, or left out a file.
    """
    # The archiver takes three kinds of file by options of their own, and all others as one directory.
    special = {HANDLER_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE}
    names = {file.archive_path for file in plan.files}
    with private_directory() as private:
        for directory in ("special", "staged", "temp", "out"):
            (private / directory).mkdir()
        for name in names:
            place = private / ("special" if name in special else "staged") / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        options = {
            "model-name": settings.name,
            "version": settings.version,
            "handler": f"special/{HANDLER_FILE}",
            "extra-files": "staged",
            "config-file": f"special/{MODEL_CONFIG_FILE}",
            "export-path": "out",
            "archive-format": "zip-store",
        }
        if REQUIREMENTS_FILE in names:
            options["requirements-file"] = f"special/{REQUIREMENTS_FILE}"
        _run_archiver([f"--{option}={value}" for option, value in options.items()], private)
        found, packed = read_manifest(private / "out" / f"{settings.name}.mar")
    if difference := names ^ (set(packed) - {MANIFEST_FILE}):
        raise HandlergenError(f"torch-model-archiver did not pack what it was given: {', '.join(sorted(difference))}")
    found["createdOn"] = "01/01/1980 00:00:00"  # fixed, so that equal inputs give equal bytes
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def _run_archiver(options: list[str], private: Path) -> None:
    """Run torch-model-archiver in a process of its own, in the directory `private`.

    In this process it would configure the root logger (generate_model_archive) and delete a directory that is called
    like the model in the temp directory (ModelExportUtils.copy_artifacts). It gets relative paths, because it splits
    paths at commas and expands wildcards.
    """
    result = subprocess.run(
        [sys.executable, "-c", _ARCHIVER, *options],
        cwd=private,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
            "TMPDIR": str(private / "temp"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        lines = result.stdout.strip().splitlines() or [f"exit status {result.returncode}"]
        missing = "No module named 'model_archiver'" in result.stdout
        hint = "pip install torch-model-archiver" if missing else None
        raise HandlergenError(f"torch-model-archiver failed: {lines[-1]}", hint=hint)


def publish(
    plan: Plan,
    target: Path,
    *,
    manifest: bytes,
    deflated: bool = False,
    force: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the archive beside `target`, then give it that name in one step; return its SHA-256 in hexadecimal.

    `target`'s directory is created if it does not exist. With `verify`, the archive is read back before it gets its
    name: every file is compared with its origin, and the archive must be reproducible.

    Raises:
        FileExistsError: Without `force`: there is a file at `target`, even if it appeared a moment ago.
        HandlergenError: A file changed while it was read, or the disk is too small.
        OSError: Reading or writing failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(part for part in target.parent.glob(".*.mar.*.part") if _PARTIAL.fullmatch(part.name))
    total, done, free = plan.size, 0, shutil.disk_usage(target.parent).free
    if not deflated and total > free:
        raise HandlergenError(f"{target.parent} has {free:,} bytes left; the archive takes {total:,}")

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)  # the manifest is not part of the total

    files = {file.archive_path: file.origin for file in plan.files}
    with _locked(lambda: _partial_beside(target)) as partial:
        with partial.open("r+b", buffering=1 << 20) as output:
            try:
                deterministic_zip.write_zip(output, {**files, MANIFEST_FILE: manifest}, deflated=deflated, wrote=wrote)
            except ValueError as error:
                raise HandlergenError(str(error), hint="archive again when no other program writes to it") from error
            sha256 = _flush_and_hash(output)
        if verify:
            check_copy(partial, plan)
            if (problem := deterministic_zip.irregularity(partial)) is not None:
                raise HandlergenError(f"the archive is not reproducible: {problem}")
        if force:
            partial.replace(target)
        else:
            _link(partial, target)
        _flush_directory(target.parent)
    return sha256


def _flush_and_hash(output: IO[bytes]) -> str:
    """Return the SHA-256 of a file that was just written, computed while the disk writes it."""
    output.flush()
    digest = hashlib.sha256()

    def read() -> None:
        output.seek(0)
        buffer = memoryview(bytearray(4 << 20))
        while count := output.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:count])

    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as executor:
        reading = executor.submit(read)
        os.fsync(output.fileno())
        reading.result()
    return digest.hexdigest()


def _link(partial: Path, target: Path) -> None:
    """Give `partial` the name `target`.

    Raises:
        FileExistsError: There is a file with that name, even if it appeared a moment ago.
    """
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: reserve the name with an empty file, then replace that file.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            partial.replace(target)
        except BaseException:
            target.unlink()
            raise


def _flush_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut, if the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Files and directories of work in progress are locked by their process. The kernel releases the locks of a process that
# is killed, so that the next one can tell what is stale.


@contextmanager
def private_directory() -> Iterator[Path]:
    """Create a directory in the temp directory that only this user can read; remove it, with its contents, at the end.

    The directories of processes that were killed are removed first.
    """
    _remove_stale(left for left in Path(tempfile.gettempdir()).glob(f"{_PRIVATE}*") if left.is_dir())
    with _locked(lambda: Path(tempfile.mkdtemp(prefix=_PRIVATE))) as directory:
        yield directory


def _partial_beside(target: Path) -> Path:
    """Create the empty file that is to become `target`.

    Its name does not end in .mar, so that a TorchServe that loads every archive of the store does not load half a file.
    """
    partial = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
    partial.touch(exist_ok=False)
    return partial


@contextmanager
def _locked(make: Callable[[], Path]) -> Iterator[Path]:
    """Make a file or directory and lock it; at the end, remove it if it still has its name."""
    while True:
        path = make()
        with suppress(FileNotFoundError):
            descriptor = _opened(path)
            with suppress(OSError):  # on a file system without locks, nothing is ever taken for stale either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                break
            os.close(descriptor)
        # Before it was locked, another process took it for stale and removed it.
    try:
        yield path
    finally:
        _remove(path)
        os.close(descriptor)


def _remove_stale(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # in use, or no access
            descriptor = _opened(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                status = os.fstat(descriptor)
                if status.st_uid == os.geteuid() or not stat.S_ISDIR(status.st_mode):
                    _remove(path)
            finally:
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
