"""Zip files that depend on nothing but their contents: equal files give equal bytes, whenever and wherever.

Entries are sorted by name and have one fixed date and mode. Their sizes are in the local headers, because Java's
ZipInputStream (TorchServe's ZipUtils.unzip) reads stored entries only so; zipfile writes them there if its output is
seekable.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

_CHUNK = 4 << 20
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that the format can express
_MODE = 0o100644
_UNIX = 3


def write_zip(
    output: IO[bytes],
    files: Mapping[str, Path | bytes],
    *,
    deflated: bool = False,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a zip file to `output`, which is seekable and at position 0.

    `files` are, by name in the zip file, the file to copy or its content. `wrote` is called with the number of content
    bytes that each step has written.

    Raises:
        ValueError: A file changed while it was read; the message names it.
        OSError: Reading or writing failed.
    """
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    buffer = memoryview(bytearray(_CHUNK))
    with zipfile.ZipFile(output, "w") as archive:
        for name, origin in sorted(files.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type, info.create_system, info.external_attr = method, _UNIX, _MODE << 16
            size = len(origin) if isinstance(origin, bytes) else origin.stat().st_size
            # Deflated data may be a little longer than the content.
            largest = size + (size >> 10) + 1024 if deflated else size
            with (
                # Unbuffered: the chunks are large, and a buffer would copy each of them once more.
                io.BytesIO(origin) if isinstance(origin, bytes) else origin.open("rb", buffering=0) as source,
                archive.open(info, "w", force_zip64=largest >= zipfile.ZIP64_LIMIT) as entry,
            ):
                done = 0
                # One byte too many is enough to see that a file has grown; it may grow as fast as it is read.
                while count := source.readinto(buffer[: size + 1 - done]):
                    entry.write(buffer[:count])
                    done += count
                    wrote(count)
            if done != size:
                what = origin if isinstance(origin, Path) else name
                sizes = f"it had {size} bytes at first and {done} when it was read"
                raise ValueError(f"{what} changed while it was being packed: {sizes}")


def irregularity(path: Path) -> str | None:
    """Return in what a zip file differs from what `write_zip` writes; None if it does not."""
    with zipfile.ZipFile(path) as archive:
        entries, comment = archive.infolist(), archive.comment
    names, offsets = [info.filename for info in entries], [info.header_offset for info in entries]
    if names != sorted(names) or offsets != sorted(offsets):
        return "its entries are not sorted"
    for info in entries:
        if info.date_time != _DATE:
            return f"{info.filename} has a date"
        if info.create_system != _UNIX or info.external_attr != _MODE << 16 or info.comment:
            return f"{info.filename} has attributes of its own"
    return "it has a comment" if comment else None
