"""Reads `.mar` archives that may come from anybody: what is in them, checked before anything is written."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from handlergen.archives.mar_entries import contents_of, entry_problems, sha256_of
from handlergen.archives.mar_texts import (
    LARGEST_TEXT,
    bundle_of,
    manifest_of,
    model_config_of,
    requirements_of,
)
from handlergen.errors import HandlergenError
from handlergen.project.names import MANIFEST_FILE, MODEL_CONFIG_FILE, REQUIREMENTS_FILE
from handlergen.runtime.contract import CONTRACT_FILE, Bundle

if TYPE_CHECKING:
    from handlergen.archives.staging import Plan

_CHUNK = 4 << 20

_MOST_PROBLEMS = 20
"""That are shown of one archive."""

#: What zipfile lets through when a damaged file leads it astray: names that are no text, fields that are not there.
_DAMAGED = (UnicodeDecodeError, struct.error, zlib.error, OverflowError)


@dataclass(frozen=True)
class MarFile:
    """One file of an archive: its place, its bytes, the bytes it takes in the archive, CRC-32 and SHA-256."""

    name: str
    size: int
    packed_size: int
    crc32: int
    sha256: str


@dataclass(frozen=True)
class Mar:
    """What an archive says and holds.

    Attributes:
        path: The archive.
        manifest: `MAR-INF/MANIFEST.json`.
        bundle: `handlergen.json`, or None for an archive that handlergen did not write.
        model_config: `model-config.yaml`, empty when there is none.
        files: Every file, in the order of their names.
        size: Bytes of the archive.
        requirements: The lines of its requirements file but for blank ones and comments.
    """

    path: Path
    manifest: Mapping[str, Any]
    bundle: Bundle | None
    model_config: Mapping[str, Any]
    files: tuple[MarFile, ...]
    size: int
    requirements: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.manifest.get("model", {}).get("modelName", self.path.stem))

    @property
    def version(self) -> str:
        return str(self.manifest.get("model", {}).get("modelVersion", ""))

    def sha256(self) -> str:
        """Of the archive itself, in hexadecimal; reads it."""
        with self.path.open("rb") as content:
            return _sha256_of(content)


def read_mar(path: Path | str) -> Mar:
    """Read an archive through; nothing is unpacked to disk.

    Raises:
        HandlergenError: It is no archive, is damaged, or holds what none should (see `open_mar`).
    """
    path = Path(path)
    with open_mar(path) as archive, path.open("rb") as raw:
        names = set(archive.namelist())
        bundle: Bundle | None = None
        config: Mapping[str, Any] = {}
        requirements: tuple[str, ...] = ()
        try:
            manifest = manifest_of(_text(archive, MANIFEST_FILE))
            if CONTRACT_FILE in names:
                bundle = bundle_of(_text(archive, CONTRACT_FILE), names)
            config_name = manifest.get("model", {}).get("configFile") or MODEL_CONFIG_FILE
            if config_name in names:
                config = model_config_of(_text(archive, config_name))
            requirements_name = manifest.get("model", {}).get("requirementsFile") or REQUIREMENTS_FILE
            if requirements_name in names:
                requirements = requirements_of(_text(archive, requirements_name))
        except ValueError as error:
            raise HandlergenError(f"{path}: {error}") from error
        files = tuple(
            MarFile(info.filename, info.file_size, info.compress_size, info.CRC, sha256_of(info, raw))
            for info in sorted(archive.infolist(), key=lambda info: info.filename)
            if not info.is_dir()
        )
        size = os.fstat(raw.fileno()).st_size
    return Mar(path, manifest, bundle, config, files, size, requirements)


def unpack(path: Path | str, directory: Path) -> None:
    """Unpack an archive into `directory`, which must be empty or missing, as TorchServe would.

    Raises:
        HandlergenError: As `read_mar`; checked before the first file is written.
    """
    with open_mar(Path(path)) as archive, Path(path).open("rb") as raw:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise HandlergenError(
                f"{directory} is not empty; an archive is unpacked into a directory of its own"
            )
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
    """Open an archive whose entries are harmless: plain relative names, each once, regular files, sane sizes.

    Raises:
        HandlergenError: It does not exist, is no zip file, has no manifest, is damaged, or has an entry that
            `mar_entries.entry_problems` refuses.
    """
    if not path.exists():
        raise HandlergenError(f"{path} does not exist")
    if not path.is_file():
        raise HandlergenError(
            f"{path} is {'a directory' if path.is_dir() else 'no regular file'}, not an archive"
        )
    try:
        with path.open("rb") as raw, zipfile.ZipFile(path) as archive:
            problems = list(islice(entry_problems(archive, raw), _MOST_PROBLEMS + 1))
            if problems:
                shown = problems[:_MOST_PROBLEMS] + ["..."] * (len(problems) > _MOST_PROBLEMS)
                raise HandlergenError(
                    f"{path} is refused:\n" + "\n".join(f"  {problem}" for problem in shown),
                    hint="nothing was unpacked; do not serve an archive whose origin you do not know",
                )
            if MANIFEST_FILE not in archive.NameToInfo:
                raise HandlergenError(
                    f"{path} has no {MANIFEST_FILE}: it is a zip file, but no TorchServe archive"
                )
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, *_DAMAGED) as error:
        raise HandlergenError(f"{path} is no archive, or a damaged one: {error}") from error
    except OSError as error:
        raise HandlergenError(f"{path} cannot be read: {error}") from error


def read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of an archive and the names of all its entries; other contents are not read."""
    with open_mar(path) as archive:
        try:
            return manifest_of(_text(archive, MANIFEST_FILE)), archive.namelist()
        except ValueError as error:
            raise HandlergenError(f"{path}: {error}") from error


def check_copy(path: Path, plan: Plan) -> None:
    """Compare every file of the archive at `path` with where it came from, by SHA-256.

    Raises:
        HandlergenError: One differs, is missing or is too many.
    """
    written = {file.name: file.sha256 for file in read_mar(path).files if file.name != MANIFEST_FILE}
    expected = {}
    for file in plan.files:
        if isinstance(file.origin, bytes):
            expected[file.archive_path] = hashlib.sha256(file.origin).hexdigest()
        else:
            with file.origin.open("rb") as content:
                expected[file.archive_path] = _sha256_of(content)
    wrong = sorted(
        name for name in written.keys() | expected.keys() if written.get(name) != expected.get(name)
    )
    if wrong:
        raise HandlergenError(
            f"the archive does not hold what was packed: {', '.join(wrong)}",
            hint="a file changed meanwhile, or the disk is failing; archive again",
        )


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


def _sha256_of(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
