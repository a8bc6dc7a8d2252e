"""Untrusted YAML mappings, read safely and with the line of each key.

Refused, each with its line: duplicate keys (YAML 1.2, section 3.2.1.3; PyYAML silently keeps the last),
aliases (small files could expand without bound, and settings need none), tags that create objects, several
documents, documents that are not a mapping, and files that are larger or nested deeper than settings ever are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from handlergen.errors import Problem

LARGEST_FILE = 1_000_000
"""Maximum size in bytes; a settings file has a few kilobytes."""

DEEPEST = 64
"""Maximum nesting of mappings and lists."""

_LONGEST_NUMBER = 400
"""In characters. Reading `1:1:1:...`, a base 60 number of YAML 1.1, takes time quadratic in its length."""


@dataclass(frozen=True)
class YamlSource:
    """A YAML mapping with the lines of its keys.

    Attributes:
        file: The file's name, for messages.
        values: By top-level key; empty if the file could not be read.
        lines: The line of each top-level key, 1-based.
        problems: Why the file, or a part of it, could not be read.
    """

    file: str
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class _Refused(yaml.YAMLError):
    """Valid YAML that is not supported here; its text has the line, as in PyYAML's own errors."""

    def __init__(self, mark: yaml.Mark, message: str, fix: str) -> None:
        super().__init__(f"line {mark.line + 1}: {message}")
        self.mark, self.message, self.fix = mark, message, fix


class PlainLoader(yaml.SafeLoader):
    """A loader of plain values; it raises yaml.YAMLError or ValueError for all that is refused."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _Refused(event.start_mark, f"the alias *{event.anchor} is not supported here", "Write the value out.")
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _Refused(mark, f"this is nested more than {DEEPEST} deep", "")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and _is_number(node) and len(node.value) > _LONGEST_NUMBER:
            raise _Refused(node.start_mark, f"a number of {len(node.value)} digits is not supported here", "")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in first:
                    raise _Refused(
                        key_node.start_mark,
                        f"duplicate key `{key_node.value}` (first in line {first[key_node.value]})",
                        "Remove one of them.",
                    )
                first[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, *, shown: str, as_written: tuple[str, ...] = ()) -> YamlSource:
    """Read a YAML mapping.

    Args:
        path: The file.
        shown: The file's name, for messages.
        as_written: Top-level keys whose numbers are kept as text, so that `version: 1.10` does not become 1.1.

    Raises:
        OSError: The file cannot be read.
    """
    raw = path.read_bytes()
    line, fix = 0, ""
    try:
        if len(raw) <= LARGEST_FILE:
            return _read(raw.decode("utf-8-sig"), shown, as_written)
        message = f"{len(raw)} bytes are too many for a settings file"
    except UnicodeDecodeError as error:
        line, message, fix = raw[: error.start].count(b"\n") + 1, "the file is not UTF-8", "Save it as UTF-8."
    except _Refused as error:
        line, message, fix = error.mark.line + 1, error.message, error.fix
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, message = mark.line + 1 if mark else 0, f"this is not valid YAML: {error.problem}"
    except yaml.YAMLError as error:
        message = f"this is not valid YAML: {error}"
    except ValueError as error:  # e.g. the date 2020-13-45
        message, fix = f"a value cannot be read: {error}", "Write it in quotes."
    return YamlSource(shown, problems=(Problem(shown, line, message, fix),))


def plain_value(text: str) -> Any:
    """Return the value of a short YAML text, which may be a mapping or not.

    Raises:
        ValueError: The text is not YAML, or has something that is not supported; the message says what.
    """
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - a SafeLoader that accepts less
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _read(text: str, shown: str, as_written: tuple[str, ...]) -> YamlSource:
    loader = PlainLoader(text)
    root = loader.get_single_node()
    if root is None:
        return YamlSource(shown)
    if not isinstance(root, yaml.MappingNode):
        what = "list" if isinstance(root, yaml.SequenceNode) else "value"
        fix = "Write lines such as `name: digits`."
        raise _Refused(root.start_mark, f"this is a {what}, not a mapping of settings", fix)
    lines: dict[str, int] = {}
    for key, value in root.value:
        if isinstance(key, yaml.ScalarNode):
            lines.setdefault(key.value, key.start_mark.line + 1)
            if key.value in as_written and _is_number(value):
                value.tag = "tag:yaml.org,2002:str"
    values = loader.construct_document(root)
    return YamlSource(shown, {str(key): value for key, value in values.items()}, lines)


def _is_number(node: yaml.Node | None) -> bool:
    return node is not None and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
