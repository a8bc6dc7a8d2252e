"""What tells one model from another, for a run that goes on where another has ended."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from handlergen.inspection.project import Project
from handlergen.runtime.contract import Bundle

_READ_WHOLE = 1 << 20
"""Bytes up to which a file is known by its content; a larger one by its size and time."""


def identity_of_archive(path: Path) -> str:
    """From names, sizes and checksums of what is in a .mar, wherever it lies and whenever it was made."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(
            (info.filename, info.file_size, info.CRC)
            for info in archive.infolist()
            if _is_the_models(info.filename)
        )
    return f"mar-{zlib.crc32(repr(entries).encode()):08x}"


def identity_of_project(project: Project, bundle: Bundle) -> str:
    """From the files that would be packed, and from what they would be packed with.

    Raises:
        HandlergenError: They could not be packed.
    """
    from handlergen.archives.staging import make_plan

    value = zlib.crc32(bundle.to_json().encode())
    for staged in make_plan(project).files:
        if not _is_the_models(str(staged.archive_path)):
            continue
        value = zlib.crc32(str(staged.archive_path).encode(), value)
        if isinstance(staged.origin, Path):
            status = staged.origin.stat()
            if status.st_size > _READ_WHOLE:
                value = zlib.crc32(f"{status.st_size} {status.st_mtime_ns}".encode(), value)
            else:
                value = zlib.crc32(staged.origin.read_bytes(), value)
    return f"source-{value:08x}"


def _is_the_models(name: str) -> bool:
    """Handlergen's own runtime does not make another model: it may be upgraded between two runs."""
    return not name.startswith(("handlergen_runtime/", "MAR-INF/"))
