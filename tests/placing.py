"""A module written into a directory, and where its stages are found to run."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from handlergen.project import open_project
from handlergen.stage_rule import Placement


def placed(directory: Path, text: str, files: dict[str, str] | None = None, **settings: Any) -> Placement:
    for name, content in {"digits.py": text, **(files or {})}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content), encoding="utf-8")
    overrides = {"predictor": "process", **settings}
    return open_project(directory / "digits.py", overrides=overrides, environ={}).placement


def functions(text: str) -> str:
    """A module of the form `functions`, with a predict where the text has none."""
    text = textwrap.dedent(text)
    return text if "def predict" in text else text + "\n\ndef predict(inputs):\n    return inputs\n"
