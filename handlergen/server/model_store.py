"""The model store: what TorchServe loads from it, and archives that do not fit the server or are not signed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from handlergen.archives.audit import audit
from handlergen.archives.mar import read_mar
from handlergen.archives.signing import read_public_key, verify
from handlergen.errors import HandlergenError, ServerError
from handlergen.project.names import MANIFEST_FILE, MODEL_CONFIG_FILE
from handlergen.project.settings import shown
from handlergen.runtime.contract import CONTRACT_FILE
from handlergen.server.configuration import change_command
from handlergen.server.properties import ServerSettings

ModelVersion = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True)
class StoredArchive:
    """The facts about an archive that matter to a server.

    Attributes:
        size: Bytes of the unpacked files.
        requirements: Name of the requirements file; None without one.
        config_file: Name of the model configuration, which the archive need not contain.
        settings: handlergen's settings; None for an archive that handlergen did not write.
        weights: Name and unpacked bytes of the weights, a file or a directory; None without them.
        fingerprint: Of the names, sizes and CRC-32s of all files: equal for equal contents.
    """

    path: Path
    name: str
    version: str
    size: int
    requirements: str | None
    config_file: str
    settings: Mapping[str, Any] | None
    weights: tuple[str, int] | None
    fingerprint: str


def read_archive(path: Path) -> StoredArchive:
    """Return the facts about an archive; nothing is unpacked. Raises ServerError when the file is not an archive."""
    try:
        with zipfile.ZipFile(path) as mar:
            model = json.loads(mar.read(MANIFEST_FILE))["model"]
            ours = CONTRACT_FILE in mar.namelist()
            settings = dict(json.loads(mar.read(CONTRACT_FILE))["settings"]) if ours else None
            weights = settings.get("weights") if settings is not None else model.get("serializedFile")
            return StoredArchive(
                path,
                str(model["modelName"]),
                str(model.get("modelVersion", "1.0")),
                sum(info.file_size for info in mar.infolist()),
                model.get("requirementsFile"),
                str(model.get("configFile") or MODEL_CONFIG_FILE),
                settings,
                (weights, _bytes_of(mar, weights)) if weights else None,
                sha256(repr([(i.filename, i.file_size, i.CRC) for i in mar.infolist()]).encode()).hexdigest(),
            )
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            f"{shown(path)} is not a model archive ({type(error).__name__}: {error})",
            hint="archive the model again with `handlergen archive`, or remove the file from the store",
        ) from error


def _bytes_of(mar: zipfile.ZipFile, name: str) -> int:
    return sum(
        info.file_size for info in mar.infolist() if info.filename == name or info.filename.startswith(f"{name}/")
    )


def archive_files(directory: Path) -> list[Path]:
    """Return the files that TorchServe takes for archives; hidden ones are skipped (ModelServer.initModelStore)."""
    return sorted(path for path in directory.glob("*.mar") if not path.name.startswith("."))


def readable_archives(store: Path) -> list[StoredArchive]:
    """Return the archives in a directory, without files that are not archives."""
    found = []
    for path in archive_files(store):
        with suppress(ServerError):
            found.append(read_archive(path))
    return found


def find_archive(store: Path, name: str, version: str) -> Path | None:
    """Return the archive of a model's version in a directory; None without one."""
    found = (archive.path for archive in readable_archives(store) if (archive.name, archive.version) == (name, version))
    return next(found, None)


def store_has_requirements(store: Path) -> bool:
    """Return whether any archive in this directory contains a requirements file."""
    return any(archive.requirements for archive in readable_archives(store))


def selected(store: Path, load_models: str) -> dict[ModelVersion, StoredArchive]:
    """Return the archives that load_models selects: (model name, version) -> archive, in its order.

    Name and version come from the manifest (ModelManager.java), not from the file's name.

    Raises:
        ServerError: A file is not an archive (TorchServe would register a model for it all the same, and its
            workers would die), or two archives contain the same model.
    """
    if load_models.lower() == "all":
        files = [("", path.name) for path in archive_files(store)]
    else:
        parts = [part.strip().rpartition("=") for part in load_models.split(",") if part.strip()]
        files = [(name.strip(), file.strip()) for name, _, file in parts]
    found: dict[ModelVersion, StoredArchive] = {}
    for name, file in files:
        archive = read_archive(store / file)
        model = (name or archive.name, archive.version)
        if model in found:
            raise ServerError(
                f"{file} and {found[model].path.name} are both model {model[0]} {model[1]}",
                hint="remove one of the two from the model store",
            )
        found[model] = archive
    return found


def loaded_besides_archives(store: Path) -> list[Path]:
    """Return what `load_models=all` selects besides .mar files (ModelServer.initModelStore)."""
    return [
        path
        for path in sorted(store.iterdir())
        if not path.name.startswith(".") and (path.is_dir() or path.name.endswith((".model", ".tar.gz")))
    ]


def configuration_warnings(config: Path, settings: ServerSettings) -> list[str]:
    """Return warnings about archives in the model store that do not fit the configuration in `config`."""
    warnings = []
    for archive in readable_archives(config.resolve().parent / settings.model_store):
        file = archive.path.name
        if archive.requirements and not settings.install_requirements:
            warnings.append(
                f"{file} contains {archive.requirements}, which TorchServe does not install: "
                f"install_py_dep_per_model is not true (`{change_command('--install-requirements', config)}`)"
            )
        if archive.settings is None:
            continue
        warnings += audit_warnings(archive.path)
        largest = archive.settings.get("max_response_bytes")
        if isinstance(largest, int) and largest > settings.max_response_size:
            change = change_command(f"--max-response-size {largest}", config)
            warnings.append(
                f"{file} allows responses of {largest} bytes, the server {settings.max_response_size}: "
                f"TorchServe kills a worker that sends more (`{change}`)"
            )
    return warnings


def audit_warnings(path: Path) -> list[str]:
    """Return why a server would not run what handlergen packs, if the archive is not as handlergen packs it.

    Weights and the user's files are not read.
    """
    try:
        refusal = audit(read_mar(path, whole=False)).refusal(path.name)
    except HandlergenError as error:
        refusal = error
    return [refusal.message] if refusal is not None else []


def require_signatures(store: Path, archives: Iterable[str], settings: ServerSettings, public_key: Path) -> None:
    """Refuse to start a server unless everything it would load is signed.

    The check does not notice files that are replaced later: whoever can write to the store is trusted.

    Args:
        archives: Files in the store that TorchServe will load.
        public_key: The Ed25519 key that every archive must be signed with.

    Raises:
        ServerError: Names each archive that is not signed with the key, and each other way to load unsigned code.
        HandlergenError: The key cannot be read.
    """
    key = read_public_key(public_key)
    problems = []
    for name in archives:
        try:
            verify(store / name, key)
        except HandlergenError as error:
            problems.append(error.message)
    if settings.load_models.lower() == "all":
        problems += [
            f"{path} cannot be signed, because it is not an archive, and TorchServe would load it"
            for path in loaded_besides_archives(store)
        ]
    hints = ["`handlergen archive SOURCE --sign KEY --force` signs an archive"] if problems else []
    if settings.model_api:
        problems.append("enable_model_api is on: clients could register unsigned models")
        hints.append("`handlergen config --no-model-api --force` switches it off")
    if problems:
        raise ServerError("\n".join(problems), hint="; ".join([*hints, "no server was started"]))
