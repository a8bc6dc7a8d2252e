"""Reading and unpacking `.mar` archives, which may come from anybody: they are checked before anything is written."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from handlergen.archives.metadata import LARGEST_TEXT, bundle_of, manifest_of, model_config_of, requirements_of
from handlergen.archives.zip_safety import contents_of, entry_problems
from handlergen.errors import HandlergenError
from handlergen.project.names import (
    HANDLER_FILE,
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    REQUIREMENTS_FILE,
    RUNTIME_PACKAGE,
)
from handlergen.runtime.contract import CONTRACT_FILE, Bundle
from handlergen.runtime.examples import Example, from_files

if TYPE_CHECKING:
    from handlergen.archives.staging import Plan

_CHUNK = 4 << 20

_MOST_PROBLEMS = 20
"""Maximum number of problems shown for one archive."""

#: Errors that zipfile does not convert: a damaged file has names that are not text, and incomplete fields.
_DAMAGED = (UnicodeDecodeError, struct.error, zlib.error, OverflowError)


#: How a file can be executed, by suffix or by its first bytes. `pickle`: code can run when the file is loaded.
_EXECUTABLE: tuple[tuple[str, tuple[str, ...], tuple[bytes, ...]], ...] = (
    ("Python", (".py",), ()),
    ("bytecode", (".pyc",), ()),
    # ELF, Mach-O, Mach-O for several processors
    ("native code", (".so", ".pyd", ".dylib", ".dll"), (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")),
    # pickletools: PROTO 2 to 5
    (
        "pickle",
        (".pkl", ".pickle", ".joblib", ".sav", ".pt", ".pth", ".ckpt", ".pt2"),
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
    ),
    ("script", (".sh",), (b"#!",)),
    ("Python in a zip", (".zip", ".egg", ".whl"), ()),
)
_HEAD = 512
"""Bytes at the start of a file in which a `.npy` of objects, or torch.save's zip, is recognised."""


@dataclass(frozen=True)
class MarFile:
    """One file of an archive; sizes in bytes, SHA-256 in hexadecimal.

    Attributes:
        executes: How the file can be executed, such as `Python` or `pickle`; None for data.
    """

    name: str
    size: int
    packed_size: int
    crc32: int
    sha256: str
    executes: str | None = None


@dataclass(frozen=True)
class Mar:
    """The contents of an archive.

    Attributes:
        path: The archive.
        manifest: `MAR-INF/MANIFEST.json`.
        bundle: `handlergen.json`; None if another program wrote the archive.
        model_config: `model-config.yaml`; empty without one.
        files: Every file, sorted by name.
        size: Size of the archive in bytes.
        requirements: The lines of its requirements file, without blank ones and comments.
        handler: The text of `handlergen_handler.py`; empty without one.
    """

    path: Path
    manifest: Mapping[str, Any]
    bundle: Bundle | None
    model_config: Mapping[str, Any]
    files: tuple[MarFile, ...]
    size: int
    requirements: tuple[str, ...]
    handler: str = ""

    @property
    def name(self) -> str:
        return str(self.manifest.get("model", {}).get("modelName", self.path.stem))

    @property
    def version(self) -> str:
        return str(self.manifest.get("model", {}).get("modelVersion", ""))

    def sha256(self) -> str:
        """Read the archive and return its SHA-256 in hexadecimal."""
        return sha256_of(self.path)


def read_mar(path: Path | str, *, whole: bool = True) -> Mar:
    """Read all of an archive; nothing is unpacked to disk.

    Args:
        path: The archive.
        whole: False: read only the metadata and handlergen's own files; the others have an empty SHA-256 then.

    Raises:
        HandlergenError: It is not an archive, is damaged, or is refused (see `open_mar`).
    """
    path = Path(path)
    with open_mar(path) as archive, path.open("rb") as raw:
        names = set(archive.namelist())
        try:
            manifest = manifest_of(_text(archive, MANIFEST_FILE))
            model = manifest.get("model", {})
            config_name = model.get("configFile") or MODEL_CONFIG_FILE
            requirements_name = model.get("requirementsFile") or REQUIREMENTS_FILE
            bundle = bundle_of(_text(archive, CONTRACT_FILE), names) if CONTRACT_FILE in names else None
            config = model_config_of(_text(archive, config_name)) if config_name in names else {}
            listed = _text(archive, requirements_name) if requirements_name in names else ""
            handler = _text(archive, HANDLER_FILE) if HANDLER_FILE in names else ""
        except ValueError as error:
            raise HandlergenError(f"{path}: {error}") from error
        files = tuple(
            _read_file(info, raw, whole=whole or info.filename.startswith(f"{RUNTIME_PACKAGE}/"))
            for info in sorted(archive.infolist(), key=lambda info: info.filename)
            if not info.is_dir()
        )
        size = os.fstat(raw.fileno()).st_size
    return Mar(path, manifest, bundle, config, files, size, requirements_of(listed), handler)


def archived_examples(path: Path) -> tuple[Example, ...]:
    """Return the examples that an archive has. Raises HandlergenError as `read_mar` does."""
    with open_mar(path) as archive:
        names = set(archive.namelist())
        try:
            return from_files(lambda name: archive.read(name) if name in names else None)
        except ValueError as error:
            raise HandlergenError(f"{path}: {error}") from error


def _read_file(info: zipfile.ZipInfo, raw: IO[bytes], *, whole: bool) -> MarFile:
    chunks = contents_of(info, raw) if whole else iter(())
    first = next(chunks, b"")
    sha256 = _sha256_of(chain([first], chunks)) if whole else ""
    executes = _executes(info.filename, first[:_HEAD])
    return MarFile(info.filename, info.file_size, info.compress_size, info.CRC, sha256, executes)


def _executes(name: str, head: bytes) -> str | None:
    for kind, suffixes, beginnings in _EXECUTABLE:
        if name.lower().endswith(suffixes) or head.startswith(beginnings):
            return kind
    saved = head.startswith(b"PK\x03\x04") and b"/data.pkl" in head  # torch.save, torch.jit.save
    objects = head.startswith(b"\x93NUMPY") and b"'|O'" in head
    return "pickle" if saved or objects else None


def unpack(path: Path | str, directory: Path) -> None:
    """Unpack an archive into `directory`, which must be empty or missing, as TorchServe would.

    Raises:
        HandlergenError: As `open_mar`, before the first file is written; or a file is damaged.
    """
    with open_mar(Path(path)) as archive, Path(path).open("rb") as raw:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise HandlergenError(f"{directory} is not empty; an archive is unpacked into an empty directory")
        for info in archive.infolist():
            target = directory / info.filename
            if info.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as output:
                for content in contents_of(info, raw):
                    output.write(content)


@contextmanager
def open_mar(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose entries are safe: plain relative names, each once, regular files, plausible sizes.

    Raises:
        HandlergenError: It does not exist, is not a zip file, has no manifest, is damaged, or has an entry that
            `zip_safety.entry_problems` refuses.
    """
    if not path.exists():
        raise HandlergenError(f"{path} does not exist")
    if not path.is_file():
        raise HandlergenError(f"{path} is {'a directory' if path.is_dir() else 'a special file'}, not an archive")
    try:
        with path.open("rb") as raw, zipfile.ZipFile(path) as archive:
            problems = list(islice(entry_problems(archive, raw), _MOST_PROBLEMS + 1))
            if problems:
                shown = problems[:_MOST_PROBLEMS] + ["..."] * (len(problems) > _MOST_PROBLEMS)
                hint = "nothing was unpacked; do not serve an archive from an unknown source"
                raise HandlergenError("\n  ".join([f"{path} is refused:", *shown]), hint=hint)
            if MANIFEST_FILE not in archive.NameToInfo:
                raise HandlergenError(f"{path} has no {MANIFEST_FILE}: it is a zip file, but not a TorchServe archive")
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, *_DAMAGED) as error:
        raise HandlergenError(f"{path} is not an archive, or it is damaged: {error}") from error
    except OSError as error:
        raise HandlergenError(f"{path} cannot be read: {error}") from error


def read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the manifest of an archive and the names of all its entries; nothing else is read."""
    with open_mar(path) as archive:
        try:
            return manifest_of(_text(archive, MANIFEST_FILE)), archive.namelist()
        except ValueError as error:
            raise HandlergenError(f"{path}: {error}") from error


def check_copy(path: Path, plan: Plan) -> None:
    """Compare the SHA-256 of every file of an archive with that of its origin.

    Raises:
        HandlergenError: A file differs, is missing, or was not planned.
    """
    written = {file.name: file.sha256 for file in read_mar(path).files if file.name != MANIFEST_FILE}
    expected = {
        file.archive_path: _sha256_of([file.origin] if isinstance(file.origin, bytes) else _read(file.origin))
        for file in plan.files
    }
    wrong = sorted(name for name in written.keys() | expected.keys() if written.get(name) != expected.get(name))
    if wrong:
        message = f"files of the archive differ from their origins: {', '.join(wrong)}"
        raise HandlergenError(message, hint="a file was changed meanwhile, or the disk is failing; archive again")


def _text(archive: zipfile.ZipFile, name: str) -> str:
    info = archive.NameToInfo.get(name)
    if info is None:
        raise HandlergenError(f"{archive.filename} has no {name}")
    if info.file_size > LARGEST_TEXT:
        raise HandlergenError(f"{archive.filename}: {name} has {info.file_size:,} bytes")
    try:
        return archive.read(info).decode()
    except UnicodeDecodeError as error:
        raise HandlergenError(f"{archive.filename}: {name} is not text ({error})") from error


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as content:
        yield from iter(partial(content.read, _CHUNK), b"")


def sha256_of(path: Path) -> str:
    """Read a file and return its SHA-256 in hexadecimal. Raises OSError."""
    return _sha256_of(_read(path))


def _sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
