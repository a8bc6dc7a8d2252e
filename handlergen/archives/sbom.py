"""The software bill of materials of an archive (CycloneDX 1.6, ECMA-424): its files, requirements and runtime."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from handlergen import __version__
from handlergen.archives.audit import Audit, audit
from handlergen.archives.mar import Mar, MarFile

_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(?P<rest>[^;#]*)"
)
"""A requirement by name (PEP 508), up to its marker or comment."""

_PINNED = re.compile(r"={2,3}\s*([^\s,*]+)\s*$")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_NAMESPACE = uuid.UUID("e2f3b8a4-5d0c-5f7e-9c55-6d8d0c1a7f10")
"""Namespace of the serial numbers, which are derived from the archive's SHA-256."""


def sbom(archive: Mar) -> dict[str, Any]:
    """Return the bill of materials of an archive, ready for json.dumps.

    It has no time and no path of this machine, so that equal archives give equal bills.

    Components: the model itself (`metadata.component`); every file of the archive with its SHA-256, who wrote it and
    how it can be executed; handlergen's runtime; and every requirement, with its version if that is pinned (`==`). A
    runtime that is not as its version packs it is a component derived from handlergen, without its package URL.
    """
    own = archive.sha256()
    audited = audit(archive)
    components = [*_requirements(archive), *(_file(file, audited.origins[file.name]) for file in archive.files)]
    properties = [{"name": "handlergen:size", "value": str(archive.size)}]
    if archive.bundle is not None:
        properties.append({"name": "handlergen:form", "value": archive.bundle.contract.form})
        components.insert(0, _runtime(archive.bundle.handlergen, audited))
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": archive.name,
        "version": archive.version,
        "hashes": _sha256(own),
        "properties": properties,
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, own)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "handlergen", "version": __version__}]},
            "component": model,
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def _file(file: MarFile, origin: str) -> dict[str, Any]:
    facts = {"size": str(file.size), "origin": origin, "executes": file.executes}
    return {
        "type": "file",
        "bom-ref": f"file:{file.name}",
        "name": file.name,
        "hashes": _sha256(file.sha256),
        "properties": [{"name": f"handlergen:{key}", "value": value} for key, value in facts.items() if value],
    }


def _runtime(version: str, audited: Audit) -> dict[str, Any]:
    """Return the component of the runtime; see CycloneDX 1.6, `pedigree`, for what was derived from another."""
    component = _library("runtime", "handlergen", version, description="The runtime, packed as handlergen_runtime/")
    if audited.runtime == "handlergen":
        return component
    ancestor = {key: value for key, value in component.items() if key not in ("bom-ref", "description")}
    notes = "\n".join([*audited.changed, *filter(None, [audited.unverified])])
    del component["purl"]
    return {**component, "pedigree": {"ancestors": [ancestor], "notes": notes}}


def _library(ref: str, name: str, version: str | None, **more: Any) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}" + (f"@{quote(version, safe='')}" if version else "")
    known = {"version": version} if version else {}
    return {"type": "library", "bom-ref": ref, "name": name, **known, "purl": purl, **more}


def _requirements(archive: Mar) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(archive.requirements, 1):
        found = _REQUIREMENT.match(line)
        if found is None or line.lstrip().startswith("-"):
            continue  # an option of pip
        name = re.sub(r"[-_.]+", "-", found["name"]).lower()
        # After the version, pip-compile writes --hash=... or a line continuation.
        pinned = _PINNED.match(found["rest"].partition(" --")[0].rstrip("\\ "))
        shown = {"name": "handlergen:requirement", "value": _CREDENTIALS.sub("", line.strip())}
        yield _library(f"requirement:{number}", name, pinned[1] if pinned else None, properties=[shown])


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]
