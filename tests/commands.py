"""handlergen as a user types it, in a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
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
