"""Writing a `config.properties` with the two files it names: the log configuration and the metrics."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.properties import ServerSettings, read_properties, render_properties
from handlergen.property_text import read_text
from handlergen.replacing import replace_content
from handlergen.templates import template_dir

_OWN_FILES = {"log_config": "log4j2.xml", "metrics_config": "metrics.yaml"}


def write_configuration(path: Path, settings: ServerSettings, *, force: bool = False) -> list[Path]:
    """Write `path`, and beside it the log configuration and metrics it names where they do not exist yet.

    Returns:
        The files written.

    Raises:
        HandlergenError: A file is there already and differs, and `force` is not given; or the settings are wrong.
    """
    texts = {path: render_properties(settings)}
    for field, template in _OWN_FILES.items():
        target = path.parent / getattr(settings, field)
        text = (template_dir() / template).read_text("utf-8")
        # A file of another name is the user's own, and an existing one may have been edited: both stay.
        if target.name == template and not target.exists():
            texts[target] = text
    if path.exists() and not force and read_text(path) != texts[path]:
        raise HandlergenError(
            f"{path} exists and says something else", hint="--force overwrites it; -o writes another file"
        )
    for target, text in texts.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_content(target, text.encode())
        except OSError as error:
            raise HandlergenError(f"{target} cannot be written: {error}") from error
    return list(texts)


def relative_to_config(store: Path, config: Path) -> str:
    """`store`, given relative to this process's directory, as config.properties must name it.

    TorchServe takes it relative to the directory it is started in, which is the configuration's. An absolute
    path stays one.
    """
    if store.is_absolute():
        return str(store)
    return Path(os.path.relpath(store, config.resolve().parent)).as_posix()


def configuration_warnings(config: Path, settings: ServerSettings | None = None) -> list[str]:
    """What in the model store does not fit the configuration: requirements nobody installs, too large answers.

    Raises:
        HandlergenError: The configuration cannot be read.
    """
    settings = settings or read_properties(config)
    warnings = []
    envelope = dict(settings.other).get("service_envelope")
    for archive in sorted((config.resolve().parent / settings.model_store).glob("*.mar")):
        found = _archive_facts(archive)
        if found.get("requirements") and not settings.install_requirements:
            warnings.append(
                f"{archive.name} carries {found['requirements']}, which nobody installs: "
                "install_py_dep_per_model is not true (`handlergen config --install-requirements`)"
            )
        if envelope and found.get("handlergen"):
            warnings.append(
                f"service_envelope={envelope} makes {archive.name} answer every request with 501: it reads KServe's "
                "protocols itself, at batch sizes over 1 too, which that envelope does not. Remove the line."
            )
        largest = found.get("max_response_bytes")
        if isinstance(largest, int) and largest > settings.max_response_size:
            warnings.append(
                f"{archive.name} allows answers of {largest} bytes, the server {settings.max_response_size}: "
                "TorchServe kills a worker that sends more (`handlergen config --max-response-size`)"
            )
    return warnings


def store_has_requirements(store: Path) -> bool:
    """Whether an archive in this directory carries a requirements file."""
    return any(_archive_facts(archive).get("requirements") for archive in sorted(store.glob("*.mar")))


def _archive_facts(archive: Path) -> Mapping[str, object]:
    """What is needed of an archive here; an archive that cannot be read says nothing."""
    try:
        with zipfile.ZipFile(archive) as mar:
            facts = {
                "requirements": json.loads(mar.read("MAR-INF/MANIFEST.json"))["model"].get("requirementsFile")
            }
            if "handlergen.json" in mar.namelist():
                settings = json.loads(mar.read("handlergen.json"))["settings"]
                facts["handlergen"] = True
                facts["max_response_bytes"] = settings.get("max_response_bytes")
            return facts
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError):
        return {}
