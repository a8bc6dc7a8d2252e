"""Requirements files, read as pip reads them (pip/_internal/req/req_file.py), and what no server can install."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from handlergen.project.settings import shown

CONSTRAINTS_FILE = "handlergen-constraints.txt"
"""The lines of all constraints files (`-c`), in the archive's root."""

# The byte order mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_OPTION = re.compile(
    r"(?P<option>-r|--requirement\b|-c|--constraint\b|-e|--editable\b|-f|--find-links\b)\s*=?\s*(?P<value>.*)"
)
_URL = re.compile(r"(?!file:)[A-Za-z][\w+.-]+://")
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(\[[^\]]*\])?\s*@\s*(?P<url>\S+)")
_PATH = re.compile(r"\.{0,2}/|\.{1,2}$|file:|[A-Za-z]:[\\/]|[^\s;@]+\.(whl|zip|tar\.\w+)\b|[\w.-]+[\\/]")
_WHEEL = re.compile(r"(?P<name>[A-Za-z0-9][\w.]*)-(?P<version>\d[\w.!+]*)(-[\w.]+-[\w.]+-[\w.]+\.whl|\.tar\.gz|\.zip)")
_CONDA = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)=(?P<version>\d[^=\s]*)(=\S*)?$")
_NO_PACKAGES = {
    "pkg-resources": "a mistake of pip freeze on Debian. Delete the line",
    "pywin32": 'for Windows only. Write it with ; sys_platform == "win32"',
    "pywinpty": 'for Windows only. Write it with ; sys_platform == "win32"',
}


class Requirements:
    """The content of the archive's `requirements.txt`.

    Attributes:
        lines: Its lines; those of files that others name with `-r` are in the place of that line.
        constraints: The lines of constraints files.
        problems: Lines that no server can install, each with file, line and what to write.
        warnings: Lines that may fail.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constraints: list[str] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._hashed: dict[bool, str] = {}

    def add(self, requirement: str, place: str) -> None:
        """Add one requirement, which stands at `place`."""
        self._line(requirement, requirement, place, (), self.lines)

    def add_file(self, path: Path) -> None:
        """Add the lines of a file, and of those that it names."""
        self._file(path, (), self.lines)

    def text(self) -> bytes | None:
        """Return the content of `requirements.txt`; None if there is nothing to install."""
        if len(self._hashed) == 2:
            hint = "pip requires a hash for every line once one has it"
            self.warnings.append(f"{self._hashed[False]}: this line has no --hash, {self._hashed[True]} has: {hint}")
        lines = ([f"-c {CONSTRAINTS_FILE}"] if self.constraints else []) + self.lines
        return "".join(f"{line}\n" for line in lines).encode() if any(line.strip() for line in self.lines) else None

    def _file(self, path: Path, above: tuple[Path, ...], lines: list[str]) -> None:
        try:
            text = _decoded(path.read_bytes())
        except (OSError, ValueError, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problems.append(f"{shown(path)} cannot be read: {reason}; save it as UTF-8")
            return
        for number, raw, line in _logical_lines(text):
            self._line(raw, line, f"{shown(path)}:{number}", (*above, path), lines)

    def _line(self, raw: str, line: str, place: str, above: tuple[Path, ...], lines: list[str]) -> None:
        option = _OPTION.match(line)
        does, value = (option["option"], option["value"].strip()) if option else ("", "")
        if does in ("-r", "--requirement", "-c", "--constraint") and above and not _URL.match(value):
            path = above[-1].parent / value
            target = self.constraints if does in ("-c", "--constraint") else lines
            if path in above:
                self.problems.append(f"{place}: {line!r} names a file that includes this one. Delete the line")
            elif path.is_file():
                self._file(path, above, target)
            else:
                self.problems.append(f"{place}: {line!r} names another file, which does not exist: {shown(path)}")
            return
        problem = self._problem(line, does, value)
        if problem is not None:
            self.problems.append(f"{place}: {line!r} {problem}")
            return
        if line and not line.startswith("-") and lines is self.lines:
            self._hashed.setdefault("--hash" in line, place)
            name = re.split(r"[^\w.-]", line)[0].lower().replace("_", "-")
            if name in _NO_PACKAGES and ";" not in line:
                self.warnings.append(f"{place}: {line!r} is {_NO_PACKAGES[name]}")
        lines.append(raw)

    def _problem(self, line: str, does: str, value: str) -> str | None:
        """Return why a server cannot install a line, and what to write; None if it can."""
        if does in ("-e", "--editable"):
            if not _URL.match(value):
                return "names a directory of this machine. Pack its packages: packages: [DIRECTORY]"
            url, _, egg = value.partition("#egg=")
            return f"is an editable install, which a server does not make. Write {egg or 'NAME'} @ {url}"
        if does:
            fix = "Name that file under requirements"
            if does in ("-f", "--find-links"):
                fix = "Write the URL of a page, or --extra-index-url URL"
            return None if _URL.match(value) else f"names another file, which pip would not find on the server. {fix}"
        named = _NAMED.match(line)
        target = named["url"] if named else line
        if not line.startswith("-") and not _URL.match(target) and _PATH.match(target):
            return f"names another file, of the machine that wrote it. Write {_pinned(target, named and named['name'])}"
        conda = _CONDA.match(line)
        if conda:
            return f"is conda's way to write it, which pip refuses. Write {conda['name']}=={conda['version']}"
        return None


def _pinned(target: str, name: str | None) -> str:
    """Return what to write for a package that is named by a path: its name and the version that the path shows."""
    wheel = _WHEEL.match(re.split(r"[\\/]", target.partition("#")[0])[-1])
    if wheel:
        return f"{name or wheel['name'].replace('_', '-')}=={wheel['version']}"
    if name is None:
        return "NAME==VERSION, or pack a package: packages: [DIRECTORY]"
    try:
        version = metadata.version(name).partition("+")[0]
        return f"{name}=={version} (the version installed here)"
    except metadata.PackageNotFoundError:
        return f"{name}==VERSION"


def _decoded(raw: bytes) -> str:
    """Return a file's text.

    Raises:
        ValueError, LookupError: It is not in the encoding that it says, or UTF-8.
    """
    for mark, encoding in _MARKS.items():
        if raw.startswith(mark):
            return raw.decode(encoding)
    named = next(filter(None, (_CODING.search(line) for line in raw.split(b"\n")[:2] if line.startswith(b"#"))), None)
    text = raw.decode(named[1].decode() if named else "utf-8")
    if "\0" in text:
        raise ValueError("it has null bytes")
    return text


def _logical_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield number, raw text, and text without comment of each line, continued lines as one."""
    waiting: list[str] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        waiting.append(line)
        if line.endswith("\\") and not line.lstrip().startswith("#") and number < len(lines):
            continue
        joined = " ".join(part.rstrip("\\").strip() for part in waiting)
        yield number - len(waiting) + 1, "\n".join(waiting), _COMMENT.sub("", joined).strip()
        waiting = []
