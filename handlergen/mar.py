"""Reads `.mar` archives that may come from anybody: what is in them, checked before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from handlergen.errors import HandlergenError
from handlergen.names import MANIFEST_FILE, MODEL_CONFIG_FILE
from handlergen.runtime.contract import CONTRACT_FILE, Bundle

if TYPE_CHECKING:
    from handlergen.staging import Plan

_CHUNK = 4 << 20

_LARGEST_TEXT = 16 << 20
"""Bytes; a manifest, contract or model-config.yaml above this is none."""

_BOMB_SIZE, _BOMB_RATIO = 1 << 30, 100
"""An archive that unpacks to more bytes than this and to more than so many times its own size is refused. Weights
hardly shrink; deflate's own limit is 1032 times."""


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
    """

    path: Path
    manifest: Mapping[str, Any]
    bundle: Bundle | None
    model_config: Mapping[str, Any]
    files: tuple[MarFile, ...]

    @property
    def name(self) -> str:
        return str(self.manifest.get("model", {}).get("modelName", self.path.stem))

    @property
    def version(self) -> str:
        return str(self.manifest.get("model", {}).get("modelVersion", ""))


def read_mar(path: Path | str) -> Mar:
    """Read an archive through; nothing is unpacked to disk.

    Raises:
        HandlergenError: It is no archive, is damaged, or holds what none should (see `open_mar`).
    """
    path = Path(path)
    with open_mar(path) as archive:
        manifest = _json(_text(archive, MANIFEST_FILE), path)
        config_name = str(manifest.get("model", {}).get("configFile") or MODEL_CONFIG_FILE)
        names = set(archive.namelist())
        bundle = None
        if CONTRACT_FILE in names:
            try:
                bundle = Bundle.from_json(_text(archive, CONTRACT_FILE))
            except ValueError as error:
                raise HandlergenError(f"{path}: {error}") from error
        config = _yaml(_text(archive, config_name), path) if config_name in names else {}
        files = tuple(
            MarFile(info.filename, info.file_size, info.compress_size, info.CRC, _sha256(archive, info))
            for info in sorted(archive.infolist(), key=lambda info: info.filename)
            if not info.is_dir()
        )
    return Mar(path, manifest, bundle, config, files)


def unpack(path: Path | str, directory: Path) -> None:
    """Unpack an archive into `directory`, which must be empty or missing, as TorchServe would.

    Raises:
        HandlergenError: As `read_mar`; checked before the first file is written.
    """
    with open_mar(Path(path)) as archive:
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
            with archive.open(info) as content, target.open("xb") as output:
                shutil.copyfileobj(content, output, _CHUNK)


@contextmanager
def open_mar(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose entries are harmless: plain relative names, each once, regular files, sane sizes.

    Raises:
        HandlergenError: It does not exist, is no zip file, has no manifest, is damaged, or has an entry
        that is
            absolute, leads out of the archive, is a link or a device, has a control character in its name,
            stands there twice, is encrypted, or would unpack to absurdly much.
    """
    if not path.exists():
        raise HandlergenError(f"{path} does not exist")
    if path.is_dir():
        raise HandlergenError(f"{path} is a directory, not an archive")
    try:
        with zipfile.ZipFile(path) as archive:
            problems = list(_problems(archive, path.stat().st_size))
            if problems:
                shown = problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
                raise HandlergenError(
                    f"{path} is refused:\n" + "\n".join(f"  {problem}" for problem in shown),
                    hint="nothing was unpacked; do not serve an archive whose origin you do not know",
                )
            if MANIFEST_FILE not in archive.NameToInfo:
                raise HandlergenError(
                    f"{path} has no {MANIFEST_FILE}: it is a zip file, but no TorchServe archive"
                )
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise HandlergenError(f"{path} is no archive, or a damaged one: {error}") from error
    except OSError as error:
        raise HandlergenError(f"{path} cannot be read: {error}") from error


def read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of an archive and the names of all its entries; other contents are not read."""
    with open_mar(path) as archive:
        return _json(_text(archive, MANIFEST_FILE), path), archive.namelist()


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


def _problems(archive: zipfile.ZipFile, archive_size: int) -> Iterator[str]:
    seen: dict[str, str] = {}
    directories: set[str] = set()
    total = 0
    for info in archive.infolist():
        # orig_filename is what stands in the file; zipfile cuts it at NUL and turns backslashes on Windows.
        name = info.orig_filename
        shown = ascii(name)
        problem = _name_problem(name)
        if problem is not None:
            yield f"{shown}: {problem}"
        mode = info.external_attr >> 16
        if info.create_system == 3 and mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{shown}: is a link or a special file"
        if info.flag_bits & 1:
            yield f"{shown}: is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{shown}: is packed in a way that TorchServe cannot read"
        folded = name.rstrip("/").casefold()
        if folded in seen:
            yield f"{shown}: stands there twice" + (
                "" if seen[folded] == name else f", also as {seen[folded]!a}"
            )
        elif folded in directories and not info.is_dir():
            yield f"{shown}: is a file and a directory at once"
        seen[folded] = name
        parts = folded.split("/")
        parents = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        for parent in parents:
            if parent in seen and not seen[parent].endswith("/"):
                yield f"{shown}: lies below a file"
        directories |= parents
        total += info.file_size
    if total > _BOMB_SIZE and total > _BOMB_RATIO * archive_size:
        yield f"it would unpack to {total:,} bytes, {total // max(1, archive_size)} times its size"


def _name_problem(name: str) -> str | None:
    if "\x00" in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
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
    return None


def _text(archive: zipfile.ZipFile, name: str) -> str:
    info = archive.NameToInfo.get(name)
    if info is None:
        raise HandlergenError(f"{archive.filename} has no {name}")
    if info.file_size > _LARGEST_TEXT:
        raise HandlergenError(f"{archive.filename}: {name} has {info.file_size:,} bytes")
    try:
        return archive.read(info).decode()
    except UnicodeDecodeError as error:
        raise HandlergenError(f"{archive.filename}: {name} is not text ({error})") from error


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HandlergenError(f"{path}: {MANIFEST_FILE} is not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("model", {}), dict):
        raise HandlergenError(f"{path}: {MANIFEST_FILE} is no manifest")
    return value


def _yaml(text: str, path: Path) -> Mapping[str, Any]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise HandlergenError(f"{path}: its model configuration is not YAML ({error})") from error
    return value if isinstance(value, dict) else {}


def _sha256(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    with archive.open(info) as content:
        return _sha256_of(content)


def _sha256_of(content: Any) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
