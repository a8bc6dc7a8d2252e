"""handlergen as a user types it, in a directory of its own; the processes that it starts; this machine's Pythons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

HANDLERGEN = str(Path(sys.executable).parent / "handlergen")


def handlergen(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command; `options` are those of subprocess.run."""
    return subprocess.run([HANDLERGEN, *arguments], cwd=cwd, capture_output=True, text=True, check=False, **options)


def processes_of(config: Path) -> list[psutil.Process]:
    """Living processes that run in a configuration's directory or name it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if Path(process.cwd()) == config.parent or str(config) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def pythons(minors: Iterable[int] = range(9, 14)) -> dict[str, Path]:
    """This machine's Pythons 3 by version: on the PATH, and those of pyenv."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for version in (f"3.{minor}" for minor in minors):
        name = f"python{version}"
        places = [*kept.glob(f"{version}.*/bin/{name}"), *map(Path, filter(None, [shutil.which(name)]))]
        if places:
            found[version] = places[0]
    return found
