"""Archives out of source text, for tests that start a server, and archives with just these entries."""

from __future__ import annotations

import json
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlergen.archives.build import archive


def make_archive(directory: Path, name: str, source: str, **settings: Any) -> Path:
    """Write `source` to NAME.py in `directory` and archive it in `directory`/store, with one worker by default."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.py"
    file.write_text(textwrap.dedent(source))
    settings = {"workers_per_device": 1, **settings}
    return archive(file, model_store=directory / "store", **settings).path


def write_mar(path: Path, model: Mapping[str, Any], files: Mapping[str, Any]) -> Path:
    """Write an archive with that `model` in its manifest; a file that is no text or bytes becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": path.stem, **model}}))
        for name, content in files.items():
            mar.writestr(name, content if isinstance(content, str | bytes) else json.dumps(content))
    return path
