"""Archives out of source text, for tests that start a server."""

from __future__ import annotations

import textwrap
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
