"""The kinds of values that settings have: how each is checked and converted, from YAML, Python and text.

Every kind describes in words what it accepts, for messages and help.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from handlergen.project.yaml_source import plain_value


@dataclass(frozen=True)
class Kind:
    """One kind of setting.

    Attributes:
        wanted: What is accepted, in words: "a whole number of at least 1".
        metavar: The value's placeholder in `--help`.
        convert: Convert a value from YAML or Python; raise ValueError with a reason, or with an empty message if
            `wanted` is explanation enough.
        parse: Turn text from the environment or a flag into what `convert` accepts; raise ValueError likewise.
        repeatable: Whether it is a list, whose flag has the singular name and may be repeated.
    """

    wanted: str
    metavar: str
    convert: Callable[[Any], Any]
    parse: Callable[[str], Any]
    repeatable: bool = False


def text(*, wanted: str = "a string") -> Kind:
    """Return the kind of a string that is not blank."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Kind(wanted, "TEXT", convert, str)


def path(*, wanted: str = "a path") -> Kind:
    """Return the kind of a path, kept as it is written."""

    def convert(value: Any) -> str:
        if not isinstance(value, str | PurePath) or not str(value).strip():
            raise ValueError
        return str(value)

    return Kind(wanted, "PATH", convert, str)


def choice(*choices: str) -> Kind:
    """Return the kind of a value that is one of some words."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    wanted = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Kind(wanted, "|".join(choices), convert, str)


def whole(*, least: int, most: int = 2**31 - 1) -> Kind:
    """Return the kind of a whole number. The upper bound is a Java int, as which TorchServe reads its settings."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    limit = f"of at least {least}" if most >= 2**31 - 1 else f"from {least} to {most}"
    return Kind(f"a whole number {limit}", "NUMBER", convert, int)


def seconds() -> Kind:
    """Return the kind of a positive, finite number of seconds."""
    number = milliseconds()

    def convert(value: Any) -> float:
        converted: float = number.convert(value)
        if converted == 0:
            raise ValueError
        if converted >= 2**31:
            raise ValueError(f"{value:g} seconds are more than Java or the system can represent")
        return converted

    return Kind("a number of seconds above 0", "SECONDS", convert, float)


def milliseconds() -> Kind:
    """Return the kind of a finite number of milliseconds, 0 or more."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not (math.isfinite(value) and value >= 0):
            raise ValueError
        return float(value)

    return Kind("a number of milliseconds, 0 or more", "MILLISECONDS", convert, float)


def strings(*, wanted: str = "a list of strings", metavar: str = "TEXT") -> Kind:
    """Return the kind of a list of strings; duplicates are removed."""

    def convert(value: Any) -> tuple[str, ...]:
        if not _is_list(value):
            raise ValueError(f"{value!r} is a string; write [{value}]" if isinstance(value, str) else "")
        for index, item in enumerate(value):
            if not isinstance(item, str | PurePath) or not str(item).strip():
                raise ValueError(f"item {index + 1} is {item!r}, not a string")
        return tuple(dict.fromkeys(str(item) for item in value))

    return Kind(wanted, metavar, convert, _parse_strings, repeatable=True)


def requirements() -> Kind:
    """Return the kind of the lines of a requirements file; a single string is one line."""
    many = strings(wanted="a list of requirements, or the path of a requirements file", metavar="REQUIREMENT")

    def convert(value: Any) -> tuple[str, ...]:
        converted: tuple[str, ...] = many.convert([value] if isinstance(value, str | PurePath) else value)
        return converted

    return Kind(many.wanted, many.metavar, convert, _parse_lines, repeatable=True)


def values() -> Kind:
    """Return the kind of a list of JSON values (the archive stores them as JSON)."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not _is_list(value):
            raise ValueError
        return tuple(_plain(list(value), ""))

    return Kind("a list", "VALUE", convert, _parse_values, repeatable=True)


def mapping() -> Kind:
    """Return the kind of a mapping from strings to JSON values."""

    def convert(value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError
        plain: dict[str, Any] = _plain(value, "")
        return plain

    return Kind("a mapping", "KEY=VALUE", convert, _parse_mapping, repeatable=True)


def devices() -> Kind:
    """Return the kind of `auto`, `cpu`, or a list of logical GPU indices."""

    def convert(value: Any) -> str | tuple[int, ...]:
        if value in ("auto", "cpu"):
            return str(value)
        if not _is_list(value) or not value:
            raise ValueError
        for index in value:
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise ValueError(f"{index!r} is not a GPU index; indices start at 0")
        if len(set(value)) != len(value):
            raise ValueError(f"{list(value)} has a duplicate index")
        return tuple(value)

    def parse(raw: str) -> Any:
        if raw in ("auto", "cpu"):
            return raw
        try:
            return [int(part) for part in raw.strip("[] ").split(",")]
        except ValueError:
            raise ValueError("") from None

    return Kind(
        "auto, cpu, or a list of GPU indices such as [0, 1]",
        "auto|cpu|INDEX",
        convert,
        parse,
        repeatable=True,
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _parse_strings(raw: str) -> Any:
    """Parse `a,b`, or a YAML list if the text begins with a bracket (for items with a comma)."""
    if raw.lstrip().startswith("["):
        return _structure(raw)
    return [part.strip() for part in raw.split(",") if part.strip()]


def _parse_lines(raw: str) -> Any:
    """Parse a YAML list if the text is one, else the text alone: `torch>=2,<3` is one requirement."""
    return _structure(raw) if raw.lstrip().startswith("[") else [raw]


def _parse_values(raw: str) -> Any:
    """Parse a YAML list if the text is one, else a list of a single YAML value."""
    value = _structure(raw)
    return value if isinstance(value, list) else [value]


def _parse_mapping(raw: str) -> Any:
    """Parse a YAML or JSON mapping, or `key=value` with a YAML value."""
    if raw.lstrip().startswith("{"):
        return _structure(raw)
    key, equals, value = raw.partition("=")
    if not equals or not key.strip():
        raise ValueError("")
    return {key.strip(): _structure(value)}


def _structure(raw: str) -> Any:
    try:
        return plain_value(raw)
    except ValueError:
        raise ValueError("it is neither YAML nor JSON") from None


def _plain(value: Any, place: str) -> Any:
    """Copy a JSON value; raise ValueError, with the path inside the value, for anything else."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}{_inside(place)} is not a string; write it in quotes")
        return {key: _plain(item, f"{place}.{key}" if place else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"the {type(value).__name__} {value}{_inside(place)} is not a JSON value; write it in quotes"
        ) from None
    return value


def _inside(place: str) -> str:
    return f" in {place}" if place else ""
