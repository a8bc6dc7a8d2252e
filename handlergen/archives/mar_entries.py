"""The entries of a `.mar` that may come from anybody: which are harmless, and what each really holds.

Two readers see a zip file differently: Python reads the central directory at its end, TorchServe (ZipUtils.unzip, a
java.util.zip.ZipInputStream) the local headers one after the other. An archive is taken only when both see the same:
every byte before the central directory belongs to one entry that stands there too.
Format: PKWARE's APPNOTE.TXT, sections 4.3 to 4.5.
"""

from __future__ import annotations

import hashlib
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
"""Files of an archive; an environment with several hundred packages has about 50 000."""

_LONGEST_PART, _LONGEST_NAME, _MOST_PARTS = 255, 800, 64
"""Bytes in UTF-8 of one part of a name, which is the limit of common file systems, and of all of it: macOS takes 1024
for a whole path, and the directory that the archive is unpacked into needs some. Parts of a name."""

_BOMB_SIZE, _BOMB_RATIO = 1 << 30, 100
"""An archive is refused when the entries that shrank to less than a hundredth would unpack to more bytes than this.
Weights hardly shrink; deflate's own limit is 1032 times."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _SIZES_FOLLOW, _UTF8_NAME = 1, 8, 0x800
_DESCRIPTORS = (0, 12, 16, 20, 24)
"""Bytes that may stand between an entry whose sizes follow it and the next: with and without signature and zip64."""

_STRAY = "{}: is followed by bytes that belong to no entry, or to two"


def entry_problems(archive: zipfile.ZipFile, raw: IO[bytes]) -> Iterator[str]:
    """Everything that is wrong with the entries of an archive; nothing for an archive that may be unpacked.

    Args:
        archive: Opened from `raw`.
        raw: The same file, for its local headers.

    Raises:
        OSError: Reading failed.
    """
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        yield f"it has {len(entries):,} entries; {MOST_ENTRIES:,} are the most that is read"
        return
    yield from _places(entries)
    for info in entries:
        # orig_filename is what stands in the file; zipfile cuts it at NUL and turns backslashes on Windows.
        shown = ascii(info.orig_filename)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{shown}: is a link or a special file"
        if info.flag_bits & _ENCRYPTED:
            yield f"{shown}: is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{shown}: is packed in a way that TorchServe cannot read"
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            yield f"{shown}: is stored, yet has two sizes"
        if info.orig_filename.endswith("/") and info.file_size:
            yield f"{shown}: is a directory with contents"
    swollen = sum(info.file_size for info in entries if info.file_size > _BOMB_RATIO * info.compress_size)
    if swollen > _BOMB_SIZE:
        packed = sum(info.compress_size for info in entries)
        yield f"it would unpack {packed:,} bytes to {swollen:,} or more"
    yield from _layout(archive, raw)


def sha256_of(info: zipfile.ZipInfo, raw: IO[bytes]) -> str:
    """The SHA-256 of an entry's content, in hexadecimal; raises as `contents_of`."""
    digest = hashlib.sha256()
    for content in contents_of(info, raw):
        digest.update(content)
    return digest.hexdigest()


def contents_of(info: zipfile.ZipInfo, raw: IO[bytes]) -> Iterator[bytes]:
    """Read one entry, as an unpacker would, in chunks of a few megabytes, whatever is packed in it.

    Args:
        info: Of an archive without `entry_problems`.
        raw: The archive's file.

    Raises:
        zipfile.BadZipFile: It is damaged, or holds more or less than it says; no more than it says is yielded.
        OSError: Reading failed.
    """
    name = ascii(info.orig_filename)
    crc, size = 0, 0
    try:
        for content in _unpacked(info, raw):
            size += len(content)
            if size > info.file_size:
                raise zipfile.BadZipFile(f"{name} holds more than the {info.file_size:,} bytes it says")
            crc = zlib.crc32(content, crc)
            yield content
    except zlib.error as error:
        raise zipfile.BadZipFile(f"{name} cannot be unpacked ({error})") from error
    if size != info.file_size:
        raise zipfile.BadZipFile(f"{name} holds {size:,} bytes, not the {info.file_size:,} it says")
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
            # What TorchServe would read as the next entry.
            raise zipfile.BadZipFile(f"{info.orig_filename!a} ends before its place in the archive does")
    if inflater is not None:
        yield inflater.flush()
        if not inflater.eof:
            raise zipfile.BadZipFile(f"{info.orig_filename!a} is cut off")


def name_problem(name: str) -> str | None:  # noqa: PLR0911 - one return a reason
    """Why a name may not stand in an archive, or None when it may."""
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
        return "is no plain path"
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "has a name that is no text"
    if max(lengths) > _LONGEST_PART or sum(lengths) + len(parts) > _LONGEST_NAME or len(parts) > _MOST_PARTS:
        return "has a longer name than a file may have"
    return None


def _places(entries: list[zipfile.ZipInfo]) -> Iterator[str]:
    """Names that are none, or that cannot all be unpacked into one directory."""
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
            yield f"{shown}: stands there twice" + (
                "" if seen[folded] == name else f", also as {seen[folded]!a}"
            )
        elif folded in directories and not name.endswith("/"):
            yield f"{shown}: is a file and a directory at once"
        seen[folded] = name
        parts = folded.split("/")
        parents = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        for parent in parents:
            if parent in seen and not seen[parent].endswith("/"):
                yield f"{shown}: lies below a file"
        directories |= parents


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one: macOS's ignores case and how accents are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _layout(archive: zipfile.ZipFile, raw: IO[bytes]) -> Iterator[str]:
    """Where the two ways to read the file would differ; at most one, as the rest follows from it."""
    place, before, sizes_follow = 0, "the start", False
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        shown = ascii(info.orig_filename)
        if info.header_offset - place not in (_DESCRIPTORS if sizes_follow else (0,)):
            yield _STRAY.format(before)
            return
        raw.seek(info.header_offset)
        fixed = raw.read(_LOCAL_HEADER.size)
        if len(fixed) < _LOCAL_HEADER.size or not fixed.startswith(b"PK\x03\x04"):
            yield f"{shown}: has no header where it should be"
            return
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL_HEADER.unpack(fixed)
        name, extra = raw.read(name_length), raw.read(extra_length)
        encoding = "utf-8" if info.flag_bits & _UTF8_NAME else "cp437"
        sizes_follow = bool(flags & _SIZES_FOLLOW)
        size, packed = _wide(extra, size, packed)
        told = (crc, packed, size)
        meant = (info.CRC, info.compress_size, info.file_size)
        if name != info.orig_filename.encode(encoding, "replace") or method != info.compress_type:
            yield f"{shown}: has another name or packing in its own header, {name!r}"
            return
        if told != meant and not (sizes_follow and told == (0, 0, 0)):
            yield f"{shown}: has other sizes in its own header"
            return
        place = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + info.compress_size
        before = shown
    start: int = archive.start_dir
    if start - place not in (_DESCRIPTORS if sizes_follow else (0,)):
        yield _STRAY.format(before)


def _wide(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """Sizes from a local header, those of zip64 from its extra field."""
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
