"""Which archives a server is started with, in which order, and with how many workers: what the last server had.

Of the versions of a model, TorchServe makes the one that it registers first the default
(ModelVersionedRefs.addVersionModel). With `load_models=all` it registers files in the order of the directory, which
depends on the file system. Therefore, where a model has several versions, `serve` passes the archives in an order of
its own (`--models`, which takes the place of load_models).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import ServerError
from handlergen.project.settings import shown
from handlergen.server.configuration import handlergen_command
from handlergen.server.model_store import ModelVersion, StoredArchive, loaded_besides_archives, read_archive, selected
from handlergen.server.properties import ServerSettings
from handlergen.server.remembered import Fingerprints, LastServer


@dataclass(frozen=True)
class Undecided:
    """A model with several versions of which none was the default before, or that one is gone.

    Attributes:
        archives: Version -> file in the model store.
        chosen: The version that becomes the default: the highest.
    """

    model: str
    archives: Mapping[str, str]
    chosen: str

    def __str__(self) -> str:
        files = ", ".join(f"{file} (version {version})" for version, file in self.archives.items())
        return f"{self.model} has {len(self.archives)} archives in the model store, and none of them is chosen: {files}"


@dataclass(frozen=True)
class StartingModels:
    """What a server is started with.

    Attributes:
        expected: The archives to load: (model name, version) -> file, each model's default version first.
        arguments: For TorchServe's `--models`; empty where load_models does the same.
        workers: Numbers of workers to restore, of versions whose archives are those that the last server had.
        undecided: Models whose default version was chosen by its number.
        warnings: Messages about models whose default version was chosen so, or not loaded as load_models lists them.
        archives: Fingerprints of all archives considered, for the record of this start.
    """

    expected: Mapping[ModelVersion, str]
    arguments: tuple[str, ...]
    workers: Mapping[ModelVersion, int]
    undecided: tuple[Undecided, ...]
    warnings: tuple[str, ...]
    archives: Fingerprints


def starting_models(config: Path, settings: ServerSettings, last: LastServer | None) -> StartingModels:
    """Return what a server on this configuration is started with.

    The archives are those that load_models selects. Where it is a list, and the same list as at the last start, they
    are for each model in it those that the last server had when it ended: an update at run time stays, and what it
    replaced is not loaded again.

    Args:
        config: Absolute path of config.properties.
        last: What the last server had; see `remembered.last_server`.

    Raises:
        ServerError: A selected file is not an archive, two are the same version of a model, or a file's name cannot
            be passed to TorchServe.
    """
    store = config.parent / settings.model_store
    listed = selected(store, settings.load_models)
    found, differences = (
        _as_it_was(store, listed, last)
        if last is not None and last.load_models == settings.load_models
        else (listed, ())
    )
    defaults, undecided = _default_versions(found, last)
    ordered = {key: found[key] for key in sorted(found, key=lambda key: (key[0], key not in defaults))}
    several = len(found) > len(defaults)
    archives: dict[str, dict[str, str]] = {}
    for (model, version), archive in {**listed, **found}.items():
        archives.setdefault(model, {})[version] = archive.fingerprint
    counts = {key: last.workers(*key, found[key]) for key in found} if last is not None else {}
    update = handlergen_command("update", config)
    chosen = tuple(
        f"{each}; the highest version, {each.chosen}, is the default now. `{update} {each.model} FILE` makes another "
        "the default; an archive that is not needed can be removed"
        for each in undecided
    )
    return StartingModels(
        {key: archive.path.name for key, archive in ordered.items()},
        _arguments(store, settings.load_models, ordered) if several or found != listed else (),
        {key: count for key, count in counts.items() if count is not None},
        undecided,
        chosen + differences,
        archives,
    )


def version_key(version: str) -> list[tuple[int, int, str]]:
    """Return a sort key for versions in which numbers are compared as numbers: 1.9 < 1.10."""
    parts = re.split(r"[^0-9A-Za-z]+|(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _default_versions(
    found: Mapping[ModelVersion, StoredArchive], last: LastServer | None
) -> tuple[set[ModelVersion], tuple[Undecided, ...]]:
    """Return each model's default version: that of the last server, else the highest, which may need a decision."""
    versions: dict[str, list[str]] = defaultdict(list)
    for model, version in sorted(found, key=lambda key: version_key(key[1])):
        versions[model].append(version)
    defaults, undecided = set(), []
    for model, present in sorted(versions.items()):
        default = last.default(model) if last is not None else None
        if default not in present:
            default = present[-1]
            if len(present) > 1:
                archives = {version: found[model, version].path.name for version in present}
                undecided.append(Undecided(model, archives, default))
        defaults.add((model, default))
    return defaults, tuple(undecided)


def _as_it_was(
    store: Path, listed: Mapping[ModelVersion, StoredArchive], last: LastServer
) -> tuple[dict[ModelVersion, StoredArchive], tuple[str, ...]]:
    """Return the archives of the listed models that the last server had at its end, and a message for each difference.

    `all` lists whatever is in the store: only a version that was registered under another name than its archive's is
    added, and none is left out.
    """
    is_list = last.load_models.lower() != "all"
    found: dict[ModelVersion, StoredArchive] = {}
    messages = []
    for model in sorted({name for name, _ in listed}):
        before = {version: archive for (name, version), archive in listed.items() if name == model}
        had = last.models.get(model, {})
        now = dict(before)
        for version, was in had.items():
            path = store / was.archive
            if version not in now and path.is_file():
                archive = read_archive(path)
                if archive.version == version:
                    now[version] = archive
        ended = [
            version
            for version, archive in before.items()
            if is_list
            and version not in had
            and version in last.archives.get(model, {})
            and last.unchanged(model, version, archive)
        ]
        if len(ended) < len(now):
            now = {version: archive for version, archive in now.items() if version not in ended}
        if now != before:
            names = [", ".join(sorted(one.path.name for one in some.values())) for some in (before, now)]
            messages.append(
                f"load_models lists {names[0]}; loaded is {names[1]}, because the last server ended with that. "
                "Once load_models is changed, what it lists is loaded"
            )
        found.update({(model, version): archive for version, archive in now.items()})
    return found, tuple(messages)


def _arguments(store: Path, load_models: str, ordered: Mapping[ModelVersion, StoredArchive]) -> tuple[str, ...]:
    """Return the values for `--models`. Raises ServerError for a name that the list cannot hold."""
    others = loaded_besides_archives(store) if load_models.lower() == "all" else []
    named = [
        (model if model != archive.name or "=" in archive.path.name else "", archive.path.name)
        for (model, _), archive in ordered.items()
    ]
    named += [("", path.name) for path in others]
    for name, file in named:
        if "," in file or (not name and "=" in file):
            raise ServerError(
                f"{shown(store / file)} cannot be loaded beside a model with several versions: TorchServe splits its "
                "list of models at commas, and each model at the equals sign",
                hint="rename the file",
            )
    return tuple(f"{name}={file}" if name else file for name, file in named)
