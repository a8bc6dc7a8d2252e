"""A project while it is made of a live object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Draft:
    imports: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    hooks: dict[str, str] = field(default_factory=dict)
    files: dict[str, Callable[[Path], Any]] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def module_text(self) -> str:
        parts = ["\n".join(dict.fromkeys(self.imports)), *self.definitions, *self.hooks.values()]
        return "\n\n".join(parts) + "\n"
