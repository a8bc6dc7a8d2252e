"""A zip file of a plan's files, made by torch-model-archiver in a process of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from handlergen.errors import HandlergenError
from handlergen.names import HANDLER_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE
from handlergen.settings import Settings
from handlergen.staging import Plan

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
    _remove_stale(Path(tempfile.gettempdir()))
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
            with suppress(
                OSError
            ):  # a file system without locks: then nothing there is ever taken for stale either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)
        # Another process came in between, and took it for stale.


def _remove_stale(temp: Path) -> None:
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
