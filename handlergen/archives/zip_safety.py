"""The entries of a zip file that may come from anybody: whether they are safe to unpack, and their contents.

Python reads the central directory at the end of a zip file; TorchServe (ZipUtils.unzip, a java.util.zip.ZipInputStream)
reads the local headers one after the other. An archive is accepted only if both find the same entries: every byte
before the central directory must belong to exactly one entry that the directory lists.
Format: PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.
"""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

_CHUNK = 4 << 20

MOST_ENTRIES = 200_000
"""Maximum number of entries; an environment with several hundred packages has about 50,000 files."""

_LONGEST_PART, _LONGEST_NAME, _MOST_PARTS = 255, 800, 64
"""Maximum bytes in UTF-8 of one part of a name (the limit of common file systems) and of the whole name (macOS allows
1024 for a path, and the directory that the archive is unpacked into needs some), and maximum number of parts."""

_BOMB_SIZE, _BOMB_RATIO = 1 << 30, 100
"""An archive is refused if the entries that are compressed more than 100 times would unpack to more bytes than this.
Weights hardly compress; deflate's own limit is 1032 times."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _SIZES_FOLLOW, _UTF8_NAME = 1, 8, 0x800
_DESCRIPTORS = (0, 12, 16, 20, 24)
"""Sizes of the data descriptor after an entry whose sizes follow it: with and without signature and zip64."""

_STRAY = "{}: is followed by bytes that belong to no entry, or to two"


def entry_problems(archive: zipfile.ZipFile, raw: IO[bytes]) -> Iterator[str]:
    """Yield everything that is wrong with the entries of an archive; nothing if it is safe to unpack.

    `raw` is the same file, to read its local headers.
    """
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        yield f"it has {len(entries):,} entries; the maximum is {MOST_ENTRIES:,}"
        return
    yield from _places(entries)
    for info in entries:
        # orig_filename is the name in the file; zipfile cuts it at NUL, and converts backslashes on Windows.
        shown = ascii(info.orig_filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{shown}: is a link or a special file"
        if info.flag_bits & _ENCRYPTED:
            yield f"{shown}: is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{shown}: has a compression that TorchServe cannot read"
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            yield f"{shown}: is stored, but has two different sizes"
        if info.orig_filename.endswith("/") and info.file_size:
            yield f"{shown}: is a directory with content"
    swollen = sum(info.file_size for info in entries if info.file_size > _BOMB_RATIO * info.compress_size)
    if swollen > _BOMB_SIZE:
        packed = sum(info.compress_size for info in entries)
        yield f"it would unpack {packed:,} bytes to {swollen:,} or more"
    yield from _layout(archive, raw)


def contents_of(info: zipfile.ZipInfo, raw: IO[bytes]) -> Iterator[bytes]:
    """Unpack one entry in chunks of a few megabytes; no chunk is larger, whatever the entry contains.

    `info` is an entry of an archive without `entry_problems`, and `raw` the archive's file.

    Raises:
        zipfile.BadZipFile: The entry is damaged, or its size is not the declared one; no more than that is yielded.
        OSError: Reading failed.
    """
    name = ascii(info.orig_filename)
    crc, size = 0, 0
    try:
        for content in _unpacked(info, raw):
            size += len(content)
            if size > info.file_size:
                raise zipfile.BadZipFile(f"{name} has more than the {info.file_size:,} bytes that it declares")
            crc = zlib.crc32(content, crc)
            yield content
    except zlib.error as error:
        raise zipfile.BadZipFile(f"{name} cannot be unpacked ({error})") from error
    if size != info.file_size:
        raise zipfile.BadZipFile(f"{name} has {size:,} bytes, not the {info.file_size:,} that it declares")
    if crc != info.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 for {name}")


def _unpacked(info: zipfile.ZipInfo, raw: IO[bytes]) -> Iterator[bytes]:
    raw.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    raw.seek(header[9] + header[10], io.SEEK_CUR)
    left = info.compress_size
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if info.compress_type == zipfile.ZIP_DEFLATED else None
    while left and (packed := raw.read(min(left, _CHUNK))):
        left -= len(packed)
        if inflater is None:
            yield packed
            continue
        while packed:
            yield inflater.decompress(packed, _CHUNK)
            packed = inflater.unconsumed_tail
        if inflater.unused_data:
            # TorchServe would read the rest as the next entry.
            raise zipfile.BadZipFile(f"{info.orig_filename!a} ends before its declared end")
    if inflater is not None:
        yield inflater.flush()
        if not inflater.eof:
            raise zipfile.BadZipFile(f"{info.orig_filename!a} is cut off")


def name_problem(name: str) -> str | None:  # noqa: PLR0911 - one return a reason
    """Return why an archive must not have an entry with this name; None if it may."""
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
        return "has a control character in its name"
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash in its name"
    parts = name.removesuffix("/").split("/")
    if ".." in parts:
        return "leads out of the archive"
    if "" in parts or "." in parts:
        return "is not a plain relative path"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "has a name that is not valid text"
    if max(lengths) > _LONGEST_PART or sum(lengths) + len(parts) > _LONGEST_NAME or len(parts) > _MOST_PARTS:
        return "has a name that is too long for a file"
    return None


def _places(entries: list[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield the problems of names that are not valid, or that cannot all be unpacked into one directory."""
    seen: dict[str, str] = {}
    directories: set[str] = set()
    for info in entries:
        name = info.orig_filename
        shown = ascii(name)
        if (problem := name_problem(name)) is not None:
            yield f"{shown}: {problem}"
            continue
        if info.filename != name:
            yield f"{shown}: has a second name, {info.filename!a}"  # the Unicode path of Info-ZIP
        folded = _folded(name.rstrip("/"))
        if folded in seen:
            yield f"{shown}: is a duplicate" + ("" if seen[folded] == name else f" of {seen[folded]!a}")
        elif folded in directories and not name.endswith("/"):
            yield f"{shown}: is both a file and a directory"
        seen[folded] = name
        parts = folded.split("/")
        parents = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if any(parent in seen and not seen[parent].endswith("/") for parent in parents):
            yield f"{shown}: is inside a file"
        directories |= parents


def _folded(name: str) -> str:
    """Return the same text for names that are one on some file systems: macOS ignores case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _layout(archive: zipfile.ZipFile, raw: IO[bytes]) -> Iterator[str]:
    """Yield the first difference between the central directory and the local headers."""
    place, before, sizes_follow = 0, "the start", False
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        shown = ascii(info.orig_filename)
        if info.header_offset - place not in (_DESCRIPTORS if sizes_follow else (0,)):
            yield _STRAY.format(before)
            return
        raw.seek(info.header_offset)
        fixed = raw.read(_LOCAL_HEADER.size)
        if len(fixed) < _LOCAL_HEADER.size or not fixed.startswith(b"PK\x03\x04"):
            yield f"{shown}: has no local header at its offset"
            return
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(fixed)
        name, extra = raw.read(name_length), raw.read(extra_length)
        encoding = "utf-8" if info.flag_bits & _UTF8_NAME else "cp437"
        sizes_follow = bool(flags & _SIZES_FOLLOW)
        size, packed = _wide(extra, size, packed)
        local = (crc, packed, size)
        if name != info.orig_filename.encode(encoding, "replace") or method != info.compress_type:
            yield f"{shown}: has another name or compression in its local header, {name!r}"
            return
        if local != (info.CRC, info.compress_size, info.file_size) and not (sizes_follow and local == (0, 0, 0)):
            yield f"{shown}: has other sizes in its local header"
            return
        place = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + info.compress_size
        before = shown
    start: int = archive.start_dir
    if start - place not in (_DESCRIPTORS if sizes_follow else (0,)):
        yield _STRAY.format(before)


def _wide(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """Return the sizes in a local header; those of zip64 are in its extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            fields = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
            if size == 0xFFFFFFFF and fields:
                size = fields.pop(0)
            if packed == 0xFFFFFFFF and fields:
                packed = fields.pop(0)
            break
        extra = extra[4 + length :]
    return size, packed
