"""Examples that travel with an archive: requests, and the answers that are right.

In the archive the directory `DIRECTORY` has an index, `examples.json`, and a file for each request, part and answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .codec.comparison import TOLERANCE, Difference, differences, digest_of, shortened
from .codec.content import JSON, MULTIPART, NDJSON, OCTETS, json_bytes, parse_type
from .codec.errors import error_text

DIRECTORY = "handlergen_examples"
INDEX = f"{DIRECTORY}/examples.json"
EXAMPLE = "example "
"""How the differences of an example's answer begin."""
BODY = "body"
"""The name of a request's only part, if it is no form; TorchServe's own."""


@dataclass(frozen=True)
class Part:
    """The content of a request or of one part of a form; `content_type` is empty for a plain field of a form."""

    content_type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class RightAnswer:
    """The answer that is right.

    Attributes:
        content_type: Compared without its parameters; empty: any.
        body: None where only `digest` is known.
        digest: See `comparison.digest_of`; of a binary answer that is not kept.
    """

    content_type: str
    body: bytes | None = field(default=None, repr=False)
    digest: str = ""


@dataclass(frozen=True)
class Example:
    """A request and the answer that is right.

    Attributes:
        name: Unique in the archive; a file name without its end.
        parts: By name; of a plain body, `{"body": ...}`.
        is_form: The request is multipart/form-data.
        answer: None: that the request is answered is all that is known to be right.
        tolerance, pixel_tolerance: See `comparison.differences`.
    """

    name: str
    parts: Mapping[str, Part]
    is_form: bool = False
    answer: RightAnswer | None = None
    tolerance: float = TOLERANCE
    pixel_tolerance: float = 0.0

    @classmethod
    def of_body(cls, name: str, body: bytes, content_type: str, **other: Any) -> Example:
        """Return an example whose request is a plain body."""
        return cls(name, {BODY: Part(content_type, body)}, **other)

    @property
    def content_type(self) -> str:
        """The request's."""
        return MULTIPART if self.is_form else self.parts[BODY].content_type

    def request(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the request's content and headers, as TorchServe delivers them to a worker."""
        content = {name: bytearray(part.body) for name, part in self.parts.items()}
        types = {name: {"content-type": part.content_type} for name, part in self.parts.items()}
        return content, {**types, "content-type": self.content_type}

    def compare(self, status: int, content_type: str, body: bytes) -> list[Difference]:
        """Return where an answer differs from the right one; of an error, its message."""
        if status >= 400:
            kind, message = error_text(body)
            right = "an answer" if self.answer is None else _text_of(self.answer)
            return [Difference("answer", right, f"{status} {kind}: {shortened(message)}")]
        if self.answer is None:
            return []
        right, sent = parse_type(self.answer.content_type)[0], parse_type(content_type)[0]
        if right and sent and right != sent:  # gRPC has no content types
            return [Difference("content type", right, sent or "none", f"answer: {_text_of(RightAnswer(sent, body))}")]
        if self.answer.body is None:
            found = digest_of(body)
            return [] if found == self.answer.digest else [Difference("answer", self.answer.digest, found)]
        if not sent:
            body = _as_stream(body, right)
        tolerances = {"tolerance": self.tolerance, "pixel_tolerance": self.pixel_tolerance}
        return differences(self.answer.body, body, sent or right, **tolerances)

    def describe(self) -> dict[str, Any]:
        """Return name, request and answer as JSON values, for descriptions; contents of 4 KB at most as text."""
        parts = {name: _described(part.content_type, part.body) for name, part in self.parts.items()}
        request = {"content_type": MULTIPART, "parts": parts} if self.is_form else parts[BODY]
        answer = None
        if self.answer is not None and self.answer.body is not None:
            answer = _described(self.answer.content_type, self.answer.body)
        elif self.answer is not None:
            answer = {"content_type": self.answer.content_type, "digest": self.answer.digest}
        return {"name": self.name, "request": request, "answer": answer}


def _as_stream(body: bytes, content_type: str) -> bytes:
    """Return an answer over gRPC as the chunks of a stream of this type: there a client gets one JSON value."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    if content_type.startswith("text/") and isinstance(value, str):
        return value.encode()
    if content_type == NDJSON and isinstance(value, list):
        return b"\n".join(map(json_bytes, value))
    return body


def _text_of(answer: RightAnswer) -> str:
    """Return an answer for a message."""
    if answer.body is None:
        return answer.digest
    textual = parse_type(answer.content_type)[0]
    if textual.startswith("text/") or textual.endswith("json"):
        return shortened(answer.body)
    return f"{len(answer.body):,} bytes of {textual or OCTETS}"


_LONGEST_DESCRIBED = 4096


def _described(content_type: str, body: bytes) -> dict[str, Any]:
    mime = parse_type(content_type)[0]
    described: dict[str, Any] = {"content_type": content_type, "size": len(body)}
    if len(body) > _LONGEST_DESCRIBED:
        return described
    try:
        if mime == JSON:
            return {**described, "json": json.loads(body)}
        if not mime or mime.startswith("text/"):
            return {**described, "text": body.decode()}
    except ValueError:
        pass
    return described


def to_files(examples: Iterable[Example]) -> dict[str, bytes]:
    """Return the files of the archive that hold these examples: path -> content; none for no examples."""
    files: dict[str, bytes] = {}
    index = []

    def add(name: str, body: bytes) -> str:
        files[f"{DIRECTORY}/{name}"] = body
        return name

    for number, example in enumerate(examples, 1):
        parts = [
            {"name": name, "content_type": part.content_type, "file": add(f"{number}.request.{place}", part.body)}
            for place, (name, part) in enumerate(example.parts.items(), 1)
        ]
        answer: dict[str, Any] | None = None
        if example.answer is not None:
            answer = {"content_type": example.answer.content_type, "digest": example.answer.digest, "file": None}
            if example.answer.body is not None:
                answer["file"] = add(f"{number}.answer", example.answer.body)
        index.append(
            {
                "name": example.name,
                "parts": parts,
                "is_form": example.is_form,
                "answer": answer,
                "tolerance": example.tolerance,
                "pixel_tolerance": example.pixel_tolerance,
            }
        )
    if index:
        files[INDEX] = json_bytes(index)
    return files


def from_files(read: Callable[[str], bytes | None]) -> tuple[Example, ...]:
    """Return the examples of an archive.

    Args:
        read: Returns the content of one of the archive's files; None if there is no such file.

    Raises:
        ValueError: The index, or a file that it names, is damaged or missing.
    """
    text = read(INDEX)
    if text is None:
        return ()

    def content(name: str) -> bytes:
        body = read(f"{DIRECTORY}/{name}")
        if body is None:
            raise ValueError(f"{DIRECTORY}/{name} is missing")
        return body

    def answer(raw: Mapping[str, Any] | None) -> RightAnswer | None:
        if raw is None:
            return None
        return RightAnswer(raw["content_type"], None if raw["file"] is None else content(raw["file"]), raw["digest"])

    try:
        return tuple(
            Example(
                raw["name"],
                {part["name"]: Part(part["content_type"], content(part["file"])) for part in raw["parts"]},
                raw["is_form"],
                answer(raw["answer"]),
                float(raw["tolerance"]),
                float(raw["pixel_tolerance"]),
            )
            for raw in json.loads(text)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{INDEX} cannot be read: {type(error).__name__}: {error}") from error


def differences_text(wrong: Sequence[tuple[Example, Sequence[Difference]]]) -> str:
    """Return the differences of answers, a line each under the name of their example."""
    lines = []
    for example, found in wrong:
        lines.append(f"{EXAMPLE}{example.name}:")
        lines += [f"  {each}" for each in found]
    return "\n".join(lines)
