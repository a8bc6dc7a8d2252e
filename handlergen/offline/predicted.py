"""The outputs of the batch that was predicted last, until its rows are in the output.

While one batch is postprocessed, the next one is predicted: a run that is killed then has two batches under way. So
that another run predicts only one of them again, the outputs of the first are in a file before the second prediction
begins, OUTPUT.predicted: a line `[version, number of the chunk, CRC-32 of its input, bytes, CRC-32 of them]`, and so
many bytes. As with the journal, what a process wrote survives its SIGKILL. After a crash of the machine the file may be
torn; then both batches are predicted again.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handlergen.offline.journal import written
from handlergen.offline.rows import Chunk
from handlergen.offline.transport import Packed, pack
from handlergen.runtime.failures import Failure
from handlergen.runtime.hooks import Item

SUFFIX = ".predicted"
VERSION = 1
_MOST = 32 << 20
"""Bytes of outputs above which writing them costs more than the overlap of two stages gives."""


class Predicted:
    """The file of one run.

    Args:
        path: Where it is, if an earlier run left it; it is made when it is needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._hopeless = False
        self._left = _read(path)

    def keep(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Write down what the postprocessing of a chunk needs of its prediction; replaces the chunk before it.

        Returns:
            False when that cannot be: it is too much, or cannot be pickled. No later chunk is tried then.

        Raises:
            HandlergenError: The disk is full, say.
        """
        if self._hopeless:
            return False
        content = _content(items)
        if content is None:
            self._hopeless = True
            return False
        head = [VERSION, chunk.number, chunk.checksum(), len(content), zlib.crc32(content)]
        with written(self._path):
            self._write(memoryview(json.dumps(head).encode() + b"\n" + content))
        return True

    def _write(self, whole: memoryview) -> None:
        if self._file is None:
            self._path.unlink(missing_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        place = 0
        while place < len(whole):
            place += os.pwrite(self._file, whole[place:], place)

    def restore(self, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Give prepared items the outputs that an earlier run has predicted for them.

        Returns:
            False when this is not the chunk that it left.
        """
        left = self._left
        if left is None or left[0] != (chunk.number, chunk.checksum()):
            return False
        self._left = None
        try:
            values = _values(left[1])
        except Exception:  # made by another version of what the module imports
            return False
        for item, (failure, stage, outputs, metadata) in zip(items, values, strict=True):
            if failure is not None:
                item.failure = Failure(*failure)
            elif item.failure is None:
                item.stage, item.outputs = stage, outputs
                item.request.metadata.update(metadata)
        return True

    def close(self, *, complete: bool) -> None:
        """Close the file; that of a complete run is removed."""
        if self._file is not None:
            os.close(self._file)
        if complete:
            self._path.unlink(missing_ok=True)


def _content(items: Sequence[Item]) -> bytes | None:
    values = []
    for item in items:
        if item.http is not None:  # an object of the hooks' own, on which predict may have left anything
            return None
        failure = item.failure
        told = (
            (failure.status, failure.type, failure.message, dict(failure.headers))
            if failure is not None
            else None
        )
        values.append((told, item.stage, item.outputs, item.request._metadata or {}))
    try:
        packed = pack(values)
    except Exception:  # the pickling of the user's own types raises anything
        return None
    if sum(packed.sizes) + len(packed.pickled) > _MOST:
        return None
    return pickle.dumps(tuple(packed))


def _values(content: bytes) -> Any:
    return Packed(*pickle.loads(content)).unpack()  # noqa: S301 - a file of this user's alone, see `_read`


def _read(path: Path) -> tuple[tuple[int, int], bytes] | None:
    """Chunk and outputs of a whole file that nobody else could have written; else None."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                return None
            version, number, input_crc, size, crc = json.loads(opened.readline())
            content = opened.read(size)
            if version == VERSION and len(content) == size and zlib.crc32(content) == crc:
                return (number, input_crc), content
    return None
