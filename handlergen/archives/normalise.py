"""Rewrites a zip file so that equal contents give equal bytes, whenever and by whichever Python it is done.

Entries are sorted, carry one fixed time and mode and no extra fields, and are written with their sizes in
the local header, as Java's ZipInputStream needs it for stored entries (TorchServe's ZipUtils.unzip).
Format: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

_CHUNK = 4 << 20
_DOS_DATE, _DOS_TIME = 0x21, 0  # 1980-01-01 00:00, the earliest that the format knows
_MODE = 0o100644
_UTF8_NAME = 0x800
_LIMIT = 0xFFFFFFFF


@dataclass
class _Entry:
    """What the central directory says of an entry; sizes and CRC are known once its data is written."""

    name: bytes
    flags: int
    method: int
    offset: int
    wide: bool
    crc: int = 0
    packed: int = 0
    size: int = 0


class NormalWriter:
    """Writes a zip file entry by entry. The caller gives the entries in their order.

    Args:
        output: Open for binary writing and seekable, at position 0.
        wrote: Called with the number of content bytes that each step has dealt with.
    """

    def __init__(self, output: IO[bytes], wrote: Callable[[int], None] = lambda _: None) -> None:
        self._output = output
        self._wrote = wrote
        self._entries: list[_Entry] = []
        self._buffer = memoryview(bytearray(_CHUNK))

    def add(self, name: str, source: IO[bytes], *, method: int, expected_size: int) -> None:
        """Write one entry from `source`, deflated or stored.

        Raises:
            ValueError: `source` does not hold `expected_size` bytes.
        """
        entry = self._begin(name, method, expected_size)
        compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS) if method == DEFLATED else None
        # Not for ever: a file that somebody appends to may grow as fast as it is read.
        while entry.size <= expected_size and (count := source.readinto(self._buffer)):  # type: ignore[attr-defined]
            chunk = self._buffer[:count]
            entry.crc = zlib.crc32(chunk, entry.crc)
            entry.size += count
            packed = chunk if compressor is None else compressor.compress(chunk)
            entry.packed += self._output.write(packed)
            self._wrote(count)
        if compressor is not None:
            entry.packed += self._output.write(compressor.flush())
        if entry.size != expected_size:
            raise ValueError(f"it had {expected_size} bytes at first and {entry.size} when it was read")
        self._end(entry)

    def add_packed(self, info: zipfile.ZipInfo, source: IO[bytes]) -> None:
        """Write one entry from another zip file as it is packed there; `source` stands at its packed data."""
        entry = self._begin(info.filename, info.compress_type, info.file_size)
        entry.crc, entry.size, entry.packed = info.CRC, info.file_size, info.compress_size
        left = info.compress_size
        while left and (chunk := source.read(min(left, _CHUNK))):
            left -= self._output.write(chunk)
        self._wrote(info.file_size)
        self._end(entry)

    def close(self) -> None:
        """Write the central directory. The output stays open."""
        start = self._output.tell()
        for entry in self._entries:
            wide_fields = b""
            size, packed, offset = entry.size, entry.packed, entry.offset
            if entry.wide or offset >= _LIMIT:
                wide_fields = struct.pack("<HHQQQ", 1, 24, size, packed, offset)
                size = packed = offset = _LIMIT
            version = 45 if wide_fields else 20
            self._output.write(
                struct.pack(
                    "<4s6H3L5H2L",
                    b"PK\x01\x02",
                    (3 << 8) | version,  # made by: Unix, so that the mode below counts
                    version,
                    entry.flags,
                    entry.method,
                    _DOS_TIME,
                    _DOS_DATE,
                    entry.crc,
                    packed,
                    size,
                    len(entry.name),
                    len(wide_fields),
                    0,
                    0,
                    0,
                    _MODE << 16,
                    offset,
                )
                + entry.name
                + wide_fields
            )
        end = self._output.tell()
        count, length = len(self._entries), end - start
        if count >= 0xFFFF or start >= _LIMIT or length >= _LIMIT:
            self._output.write(
                struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
            )
            self._output.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
            count, length, start = min(count, 0xFFFF), min(length, _LIMIT), min(start, _LIMIT)
        self._output.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, start, 0))

    def _begin(self, name: str, method: int, expected_size: int) -> _Entry:
        encoded = name.encode()
        entry = _Entry(
            name=encoded,
            flags=0 if name.isascii() else _UTF8_NAME,
            method=method,
            offset=self._output.tell(),
            # Deflated data may be a little longer than what went in.
            wide=expected_size + (expected_size >> 10) + 1024 >= _LIMIT,
        )
        self._entries.append(entry)
        self._output.write(self._local_header(entry))
        return entry

    def _end(self, entry: _Entry) -> None:
        """Put the sizes and the CRC, known only now, into the local header."""
        end = self._output.tell()
        self._output.seek(entry.offset)
        self._output.write(self._local_header(entry))
        self._output.seek(end)

    def _local_header(self, entry: _Entry) -> bytes:
        wide_fields = struct.pack("<HHQQ", 1, 16, entry.size, entry.packed) if entry.wide else b""
        fixed = struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            45 if entry.wide else 20,
            entry.flags,
            entry.method,
            _DOS_TIME,
            _DOS_DATE,
            entry.crc,
            _LIMIT if entry.wide else entry.packed,
            _LIMIT if entry.wide else entry.size,
            len(entry.name),
            len(wide_fields),
        )
        return fixed + entry.name + wide_fields


def normalise(
    source: Path,
    output: IO[bytes],
    *,
    replaced: Mapping[str, bytes],
    filled: Mapping[str, Path],
    method: int,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the zip file `source` to `output` in its normal form.

    Args:
        source: A zip file.
        output: Open for binary writing and seekable, at position 0.
        replaced: By entry name: the content to write instead of the one in `source`.
        filled: By entry name: the file to copy in place of the entry's content.
        method: `STORED` or `DEFLATED`, for what is replaced and filled.
        wrote: Called with the number of content bytes that each step has dealt with.

    Raises:
        ValueError: A file changed while it was read; names it.
        OSError: Reading or writing failed.
    """
    writer = NormalWriter(output, wrote)
    with zipfile.ZipFile(source) as packed, source.open("rb") as raw:
        for info in sorted(packed.infolist(), key=lambda info: info.filename):
            name = info.filename
            if name in filled:
                # Unbuffered: the chunks are large, and a buffer would copy each once more.
                with filled[name].open("rb", buffering=0) as content:
                    try:
                        writer.add(name, content, method=method, expected_size=filled[name].stat().st_size)
                    except ValueError as error:
                        raise ValueError(
                            f"{filled[name]} changed while it was being packed: {error}"
                        ) from error
            elif name in replaced:
                content_bytes = replaced[name]
                writer.add(name, io.BytesIO(content_bytes), method=method, expected_size=len(content_bytes))
            else:
                raw.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", raw.read(4))
                raw.seek(name_length + extra_length, io.SEEK_CUR)
                writer.add_packed(info, raw)
    writer.close()


def abnormal(path: Path) -> str | None:
    """Why a zip file is not in its normal form, or None when it is."""
    with zipfile.ZipFile(path) as packed:
        entries = packed.infolist()
        comment = packed.comment
    names = [info.filename for info in entries]
    if names != sorted(names) or [info.header_offset for info in entries] != sorted(
        info.header_offset for info in entries
    ):
        return "its entries are not sorted"
    for info in entries:
        if info.date_time != (1980, 1, 1, 0, 0, 0):
            return f"{info.filename} has a date"
        if info.create_system != 3 or info.external_attr != _MODE << 16 or info.comment:
            return f"{info.filename} has attributes of its own"
    return "it has a comment" if comment else None
