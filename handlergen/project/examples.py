"""A project's examples: requests and right answers, from `examples/` beside the module and from `handlergen.yaml`.

In the directory an example NAME is `NAME.request.EXT`, or the directory `NAME.request` with a file for each part of a
form, and its answer `NAME.answer.EXT`; other files are not examples. A binary answer may stand there as a digest:
`NAME.answer.sha256` has `sha256:...` and the content type. The setting `examples` lists examples in YAML; an entry
without a request adds to the example of that name in the directory.
"""

from __future__ import annotations

import dataclasses
import json
import mimetypes
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from handlergen.errors import ContractError, Problem
from handlergen.project.settings import SETTINGS_FILE, shown
from handlergen.runtime.codec.comparison import TOLERANCE, digest_of
from handlergen.runtime.codec.content import JSON, NDJSON, NPY, OCTETS, TEXT, json_bytes, parse_type
from handlergen.runtime.examples import BODY, Example, Part, RightAnswer

DIRECTORY = "examples"
"""Beside the module, or beside handlergen.yaml."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FILE = re.compile(r"(?P<name>[^.]+)\.(?P<role>request|answer)(?:\.(?P<ext>[^.]+))?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TYPES = {"json": JSON, "jsonl": NDJSON, "ndjson": NDJSON, "npy": NPY, "txt": TEXT, "bin": OCTETS}
_LARGEST = 64 << 20
_REQUEST_KEYS = ("json", "text", "file", "parts")
_ANSWER_KEYS = ("answer", "answer_text", "answer_file", "answer_sha256", "runs")
_OTHER_KEYS = ("name", "content_type", "answer_content_type", "tolerance", "pixel_tolerance")


@dataclasses.dataclass(frozen=True)
class ProjectExample:
    """An example, and where its answer belongs.

    Attributes:
        recorded: Whether recording may write the answer: it is in the directory, or there is none.
    """

    example: Example
    recorded: bool


def content_type_of(path: Path) -> str:
    """Return the content type that a file's name tells."""
    ext = path.suffix.removeprefix(".").lower()
    return _TYPES.get(ext) or mimetypes.guess_type(path.name)[0] or OCTETS


def read_examples(root: Path, entries: Sequence[Any]) -> list[ProjectExample]:
    """Return a project's examples: those of the directory by name, then those of the settings.

    Args:
        root: The project's root.
        entries: The setting `examples`.

    Raises:
        ContractError: With every problem.
    """
    problems: list[Problem] = []
    listed = [entry.get("name", number) for number, entry in enumerate(entries, 1) if isinstance(entry, Mapping)]
    found = _of_directory(root / DIRECTORY, listed, problems)
    for number, entry in enumerate(entries, 1):
        try:
            _add_entry(root, number, entry, found)
        except (ValueError, OSError) as error:
            text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
            problems.append(Problem(shown(root / SETTINGS_FILE), 0, f"`examples`, entry {number}: {text}"))
    bodies = [part.body for each in found.values() for part in each.example.parts.values()]
    bodies += [each.example.answer.body or b"" for each in found.values() if each.example.answer is not None]
    size = sum(map(len, bodies))
    if size > _LARGEST:
        problems.append(
            Problem(
                shown(root / DIRECTORY),
                0,
                f"the examples have {size:,} bytes; at most {_LARGEST:,} travel with an archive",
            )
        )
    if problems:
        raise ContractError(sorted(problems))
    return list(found.values())


def examples_of_project(root: Path, entries: Sequence[Any]) -> list[Example]:
    """Return a project's examples; as `read_examples`, without where their answers belong."""
    return [each.example for each in read_examples(root, entries)]


def _of_directory(directory: Path, listed: Collection[Any], problems: list[Problem]) -> dict[str, ProjectExample]:
    requests: dict[str, Path] = {}
    answers: dict[str, Path] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        if match is None or (path.is_dir() and match["role"] == "answer"):
            continue
        place = requests if match["role"] == "request" else answers
        if not _NAME.fullmatch(match["name"]):
            problems.append(
                Problem(shown(path), 0, f"{match['name']!r} is no name of an example: use letters, digits, - and _")
            )
        elif match["name"] in place:
            other = shown(place[match["name"]])
            problems.append(
                Problem(shown(path), 0, f"the example {match['name']} has another {match['role']}: {other}")
            )
        else:
            place[match["name"]] = path
    for name in answers.keys() - requests.keys() - {str(name) for name in listed}:
        problems.append(
            Problem(shown(answers[name]), 0, "an answer without a request", f"Its request would be {name}.request.EXT.")
        )
    found: dict[str, ProjectExample] = {}
    for name, path in requests.items():
        try:
            parts, is_form = _request_of(path)
            answer = _answer_of(answers[name]) if name in answers else None
        except (ValueError, OSError) as error:
            problems.append(Problem(shown(path), 0, str(error)))
        else:
            found[name] = ProjectExample(Example(name, parts, is_form, answer), recorded=True)
    return found


def _request_of(path: Path) -> tuple[dict[str, Part], bool]:
    if not path.is_dir():
        return {BODY: Part(content_type_of(path), path.read_bytes())}, False
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    if not files:
        raise ValueError("there is no part in this directory")
    parts: dict[str, Part] = {}
    for file in files:
        if file.stem in parts:
            raise ValueError(f"there are two files for the part {file.stem!r}")
        # A text is sent as a plain field, which has no content type.
        kind = "" if file.suffix == ".txt" else content_type_of(file)
        parts[file.stem] = Part(kind, _without_newline(file) if not kind else file.read_bytes())
    return parts, True


def _without_newline(path: Path) -> bytes:
    """Return a text file without the line break that editors add."""
    return path.read_bytes().removesuffix(b"\n")


def _answer_of(path: Path) -> RightAnswer:
    if path.suffix == ".sha256":
        digest, _, kind = path.read_text("utf-8").strip().partition("\n")
        if not _DIGEST.fullmatch(digest.strip()):
            raise ValueError(f"{shown(path)} is no digest: write sha256: and 64 hexadecimal digits")
        return RightAnswer(kind.strip(), None, digest.strip())
    return RightAnswer(content_type_of(path), path.read_bytes())


def _add_entry(root: Path, number: int, entry: Any, found: dict[str, ProjectExample]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"it is {entry!r}, not a mapping such as {{name: three, file: three.png, answer: 3}}")
    known = (*_REQUEST_KEYS, *_ANSWER_KEYS, *_OTHER_KEYS)
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"there is no key {unknown[0]!r}; the keys are {', '.join(known)}")
    name = str(entry.get("name", number))
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an example: use letters, digits, - and _")
    for keys, what in ((_REQUEST_KEYS, "requests"), (_ANSWER_KEYS, "answers")):
        given = [key for key in keys if key in entry]
        if len(given) > 1:
            raise ValueError(f"it has two {what}: {given[0]} and {given[1]}")
    before = found.get(name)
    has_request = any(key in entry for key in _REQUEST_KEYS)
    if before is None and not has_request:
        raise ValueError(
            f"it has no request: one of {', '.join(_REQUEST_KEYS)}, or a file {DIRECTORY}/{name}.request.EXT"
        )
    if before is not None and has_request:
        raise ValueError(f"there is another example {name}")
    if before is not None:
        example = before.example
    elif "parts" in entry:
        parts = {str(part): _part(root, value, part) for part, value in _mapping(entry["parts"], "parts").items()}
        example = Example(name, parts, is_form=True)
    else:
        example = Example(name, {BODY: _part(root, entry, "")})
    inline = any(key in entry for key in _ANSWER_KEYS)
    answer = _entry_answer(root, entry) if inline else example.answer
    if before is None and not inline:
        path = next(iter(sorted((root / DIRECTORY).glob(f"{name}.answer.*"))), None)
        answer = _answer_of(path) if path is not None else None
    found[name] = ProjectExample(
        dataclasses.replace(
            example,
            answer=answer,
            tolerance=_number(entry, "tolerance", TOLERANCE),
            pixel_tolerance=_number(entry, "pixel_tolerance", 0.0),
        ),
        recorded=not inline,
    )


def _part(root: Path, entry: Any, name: str) -> Part:
    """Return the content that the keys json, text or file give; `name` is the part's, if it is one of a form."""
    if not isinstance(entry, Mapping):
        entry = {"text": entry} if isinstance(entry, str) else {"json": entry}
    kind = entry.get("content_type")
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"content_type is {kind!r}, not a string")
    if "json" in entry:
        return Part(kind or JSON, json_bytes(entry["json"]))
    if "text" in entry:
        return Part(kind if kind is not None else "" if name else TEXT, str(entry["text"]).encode())
    if "file" not in entry:
        raise ValueError(f"the part {name!r} has none of json, text, file")
    path = root / str(entry["file"])
    return Part(kind or content_type_of(path), path.read_bytes())


def _entry_answer(root: Path, entry: Mapping[str, Any]) -> RightAnswer | None:
    kind = str(entry.get("answer_content_type", ""))
    if "answer" in entry:
        return RightAnswer(kind or JSON, json_bytes(entry["answer"]))
    if "answer_text" in entry:
        return RightAnswer(kind or "text/plain", str(entry["answer_text"]).encode())
    if "answer_file" in entry:
        answer = _answer_of(root / str(entry["answer_file"]))
        return dataclasses.replace(answer, content_type=kind or answer.content_type)
    if "answer_sha256" in entry:
        digest = f"sha256:{str(entry['answer_sha256']).removeprefix('sha256:')}"
        if not _DIGEST.fullmatch(digest):
            raise ValueError("answer_sha256 must have 64 hexadecimal digits")
        return RightAnswer(kind, None, digest)
    if entry["runs"] is not True:
        raise ValueError("`runs` is true, or left out")
    return None


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{what} is no mapping from names to contents")
    return value


def _number(entry: Mapping[str, Any], key: str, default: float) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{key} is {value!r}, not a number of at least 0")
    return float(value)


_EXTENSIONS = {JSON: "json", NDJSON: "jsonl", NPY: "npy", "text/plain": "txt", "image/jpeg": "jpg"}


def write_example(root: Path, example: Example) -> list[Path]:
    """Write an example into a project's `examples/`, its answer too; return the files. Raises OSError."""
    directory = root / DIRECTORY
    directory.mkdir(exist_ok=True)
    if not example.is_form:
        part = example.parts[BODY]
        files = [directory / f"{example.name}.request.{_extension(part.content_type)}"]
        files[0].write_bytes(part.body)
    else:
        form = directory / f"{example.name}.request"
        form.mkdir(exist_ok=True)
        files = [form / f"{name}.{_extension(part.content_type)}" for name, part in example.parts.items()]
        for file, part in zip(files, example.parts.values(), strict=True):
            file.write_bytes(part.body)
    return files if example.answer is None else [*files, write_answer(root, example.name, example.answer)]


def write_answer(root: Path, name: str, answer: RightAnswer) -> Path:
    """Write the right answer of an example into `examples/`, in place of the one there; return the file.

    JSON, text, images and arrays are kept; of other content, the digest. Raises OSError.
    """
    directory = root / DIRECTORY
    directory.mkdir(exist_ok=True)
    mime = parse_type(answer.content_type)[0]
    kept = mime.endswith("json") or mime.startswith(("text/", "image/")) or mime in (NDJSON, NPY)
    if kept and answer.body is not None:
        path, body = directory / f"{name}.answer.{_extension(answer.content_type)}", answer.body
        if mime == JSON:  # for a person who reads it, and for diffs
            body = json.dumps(json.loads(body), indent=2, ensure_ascii=False).encode() + b"\n"
    else:
        digest = answer.digest if answer.body is None else digest_of(answer.body)
        path, body = directory / f"{name}.answer.sha256", f"{digest}\n{answer.content_type}\n".encode()
    for old in directory.glob(f"{name}.answer.*"):
        if old != path:
            old.unlink()
    path.write_bytes(body)
    return path


def _extension(content_type: str) -> str:
    mime = parse_type(content_type)[0]
    guessed = mimetypes.guess_extension(mime) if mime else ".txt"
    return _EXTENSIONS.get(mime) or (guessed or ".bin").removeprefix(".")
