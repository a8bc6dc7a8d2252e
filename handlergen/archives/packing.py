"""From a plan to an archive in the model store: packed by torch-model-archiver, normalised, published in one step."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from handlergen.archives import normalise
from handlergen.archives.mar import check_copy, read_manifest
from handlergen.archives.staging import Plan
from handlergen.errors import HandlergenError
from handlergen.project.names import HANDLER_FILE, MANIFEST_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE
from handlergen.project.settings import Settings

Progress = Callable[[int, int], None]
"""Called with the bytes dealt with so far and the bytes in all."""

_PARTIAL = re.compile(r"\..+\.mar\.[0-9a-f]{16}\.part")
"""What `_partial_beside` calls its files."""

_CREATED_ON = "01/01/1980 00:00:00"
"""In the manifest's own format; fixed, so that equal inputs give equal bytes."""

_FILLED_FROM = 1 << 20
"""Bytes. torch-model-archiver copies every file to a staging directory, then into its zip file; normalising
copies it once more. Files from this size on are empty in the first two and get their content in the third, so
that gigabytes of weights are written once and need no room in the temp directory."""


_PRIVATE = "handlergen-archive-"
"""How the names of private directories begin, and of nothing else."""


@contextmanager
def private_directory() -> Iterator[Path]:
    """A new directory in the temp directory that nobody else may read; removed with all it holds.

    It is locked while it is used. Those of processes that were killed, whose locks the kernel gave up, are removed.
    """
    _remove_stale_directories(Path(tempfile.gettempdir()))
    directory, lock = _locked_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory() -> tuple[Path, int]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PRIVATE))
        with suppress(FileNotFoundError):
            lock = _opened(directory)
            _lock(lock)
            if directory.exists():
                return directory, lock
            os.close(lock)
        # Another process came in between, and took it for stale.


def _remove_stale_directories(temp: Path) -> None:
    for left in temp.glob(f"{_PRIVATE}*"):
        with suppress(OSError):  # it is another user's, no directory, or in use
            lock = _opened(left)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _opened(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def pack(plan: Plan, settings: Settings, private: Path) -> Path:
    """Let torch-model-archiver pack `plan` in `private`, large files still empty. Returns the zip file."""
    # Three kinds of file come to the archiver by options of their own; all others as one directory, whose
    # contents it puts into the root with packages and places kept.
    special = {HANDLER_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE}
    for name in ("special", "staged", "temp", "out"):
        (private / name).mkdir()
    left_empty = filled_later(plan)
    for file in plan.files:
        place = private / ("special" if file.archive_path in special else "staged") / file.archive_path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file.origin, bytes):
            place.write_bytes(file.origin)
        elif file.archive_path in left_empty:
            place.touch()
        else:
            shutil.copyfile(file.origin, place)
    has_requirements = any(file.archive_path == REQUIREMENTS_FILE for file in plan.files)
    _run_archiver(
        {
            "model_name": settings.name,
            "version": settings.version,
            "handler": f"special/{HANDLER_FILE}",
            "extra_files": "staged",
            "config_file": f"special/{MODEL_CONFIG_FILE}",
            "requirements_file": f"special/{REQUIREMENTS_FILE}" if has_requirements else None,
            "export_path": "out",
            "archive_format": "zip-store" if settings.compression == "stored" else "default",
        },
        private,
    )
    return private / "out" / f"{settings.name}.mar"


def _run_archiver(config: Mapping[str, Any], private: Path) -> None:
    """Run torch-model-archiver in a process of its own; see archiver_process.

    It works in `private` and gets relative paths, because it splits paths at commas and expands wildcards.
    """
    program = Path(__file__).with_name("archiver_process.py").read_text(encoding="utf-8")
    request = {
        "path": [str(Path(entry).absolute()) for entry in sys.path],
        "temp": str(private / "temp"),
        "config": config,
    }
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=private,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(json.dumps(request))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        lines = output.strip().splitlines() or [f"exit status {process.returncode}"]
        missing = "No module named 'model_archiver'" in output
        raise HandlergenError(
            f"torch-model-archiver failed: {lines[-1]}",
            hint="pip install torch-model-archiver" if missing else None,
        )


def filled_later(plan: Plan) -> dict[str, Path]:
    """Large files by archive path; see `_FILLED_FROM`."""
    return {
        file.archive_path: file.origin
        for file in plan.files
        if isinstance(file.origin, Path) and file.size >= _FILLED_FROM
    }


def publish(
    packed: Path,
    target: Path,
    *,
    plan: Plan,
    filled: Mapping[str, Path],
    deflated: bool = False,
    force: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the normal form of `packed` beside `target` and give it that name in one step.

    Args:
        packed: What torch-model-archiver wrote.
        target: Where the archive goes; its directory is made when it is missing.
        plan: What the archive must hold.
        filled: Files that are empty in `packed`, and where their contents are.
        deflated: How the filled files are packed.
        force: Replace what is at `target`.
        verify: Read the result back, compare every file with its origin and check the normal form, before it gets
            its name.
        progress: Called now and then while contents are written.

    Returns:
        The SHA-256 of the archive, in hexadecimal.

    Raises:
        FileExistsError: Without `force`: there is a file at `target`, even one that came a moment ago.
        HandlergenError: A file changed while it was read, there is no room, the archiver left something out.
        OSError: Reading or writing failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_archives(target.parent)
    total, done = plan.size, 0
    free = shutil.disk_usage(target.parent).free
    if not deflated and total > free:
        raise HandlergenError(f"{target.parent} has {free:,} bytes left; the archive takes {total:,}")

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            # The manifest comes on top of the planned files.
            progress(min(done, total), total)

    with _partial_beside(target) as partial:
        with partial.open("r+b", buffering=1 << 20) as output:
            try:
                normalise.normalise(
                    packed,
                    output,
                    replaced={MANIFEST_FILE: _manifest(packed, plan)},
                    filled=filled,
                    method=normalise.DEFLATED if deflated else normalise.STORED,
                    wrote=wrote,
                )
            except ValueError as error:
                raise HandlergenError(str(error), hint="archive again when nothing writes to it") from error
            sha256 = _flush_and_hash(output)
        if verify:
            check_copy(partial, plan)
            if (problem := normalise.abnormal(partial)) is not None:
                raise HandlergenError(f"the archive is not in its normal form: {problem}")
        if force:
            partial.replace(target)
        else:
            _link(partial, target)
        _flush_directory(target.parent)
    return sha256


@contextmanager
def _partial_beside(target: Path) -> Iterator[Path]:
    """A new empty file to become `target`, locked by this process; removed at the end if it still has its name.

    Not `.mar`, so that a TorchServe that loads everything in the store does not load half a file.
    """
    while True:
        partial = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(descriptor)
        if partial.exists():  # else another process came in between and took it for stale
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
        os.close(descriptor)


def _remove_stale_archives(store: Path) -> None:
    """Remove the partial archives of processes that were killed: the kernel gave up their locks."""
    for partial in store.glob(".*.mar.*.part"):
        if not _PARTIAL.fullmatch(partial.name):
            continue
        with suppress(OSError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _manifest(packed: Path, plan: Plan) -> bytes:
    """The archiver's manifest with a fixed date; checks on the way that it packed what was planned."""
    manifest, names = read_manifest(packed)
    dropped = {file.archive_path for file in plan.files} ^ (set(names) - {MANIFEST_FILE})
    if dropped:
        raise HandlergenError(f"torch-model-archiver did not pack as told: {', '.join(sorted(dropped))}")
    return (json.dumps({**manifest, "createdOn": _CREATED_ON}, indent=2, sort_keys=True) + "\n").encode()


def _flush_and_hash(output: IO[bytes]) -> str:
    """The SHA-256 of a file just written, computed while the disk takes it."""
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
    """Give `partial` the name `target` unless there is a file of that name.

    Raises:
        FileExistsError: There is, even if it came a moment ago.
    """
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: take the name first, then replace what took it.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            partial.replace(target)
        except BaseException:
            target.unlink()
            raise


def _flush_directory(directory: Path) -> None:
    """Make a rename in `directory` outlive a power cut, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock what is in use until this process ends or closes it."""
    with suppress(OSError):  # a file system without locks: then nothing there is ever taken for stale either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
