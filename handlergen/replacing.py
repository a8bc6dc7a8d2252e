"""A file's content replaced in one step, so that nobody reads half of it, whatever ends the writer."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def replace_content(path: Path, content: bytes) -> None:
    """Write a file beside `path` and give it that name. A link stays one: what it leads to is replaced.

    Raises:
        OSError: It cannot be written; what was there is left as it was.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
