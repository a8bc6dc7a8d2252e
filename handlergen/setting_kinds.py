"""The kinds of value a setting may have: what is accepted, from YAML, from Python and from text.

A kind says what it wants in words, so that every refusal names the value and the type wanted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from handlergen.yaml_source import plain_value


@dataclass(frozen=True)
class Kind:
    """One kind of setting.

    Attributes:
        wanted: In words, for messages and help: "a whole number of at least 1".
        metavar: Stands for the value in `--help`.
        convert: A value from YAML or Python to the setting's own; raises ValueError with a reason, or with an
            empty message when `wanted` says it all.
        parse: Text from the environment or from a flag to what `convert` takes; raises ValueError likewise.
        repeatable: A list: its flag is its singular and may be repeated.
    """

    wanted: str
    metavar: str
    convert: Callable[[Any], Any]
    parse: Callable[[str], Any]
    repeatable: bool = False


def text(*, wanted: str = "a string") -> Kind:
    """A string that is not blank."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Kind(wanted, "TEXT", convert, str)


def path(*, wanted: str = "a path") -> Kind:
    """A path, kept as the text it was given as."""

    def convert(value: Any) -> str:
        if not isinstance(value, str | PurePath) or not str(value).strip():
            raise ValueError
        return str(value)

    return Kind(wanted, "PATH", convert, str)


def choice(*choices: str) -> Kind:
    """One of some words."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError
        return value

    wanted = choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Kind(wanted, "|".join(choices), convert, str)


def whole(*, least: int, most: int = 2**31 - 1) -> Kind:
    """A whole number. TorchServe reads its own as Java ints, hence the upper bound."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return value

    limit = f"of at least {least}" if most >= 2**31 - 1 else f"from {least} to {most}"
    return Kind(f"a whole number {limit}", "NUMBER", convert, int)


def seconds() -> Kind:
    """A positive, finite number of seconds."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not (math.isfinite(value) and value > 0):
            raise ValueError
        if value >= 2**31:
            raise ValueError(f"{value:g} seconds are longer than Java or the system can count")
        return float(value)

    return Kind("a number of seconds above 0", "SECONDS", convert, float)


def milliseconds() -> Kind:
    """A finite number of milliseconds; 0 is one."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        if not (math.isfinite(value) and value >= 0):
            raise ValueError
        return float(value)

    return Kind("a number of milliseconds, 0 or more", "MILLISECONDS", convert, float)


def strings(*, wanted: str = "a list of strings", metavar: str = "TEXT") -> Kind:
    """A list of strings without repetition."""

    def convert(value: Any) -> tuple[str, ...]:
        if not _is_list(value):
            raise ValueError(f"{value!r} is a string; write [{value}]" if isinstance(value, str) else "")
        for index, item in enumerate(value):
            if not isinstance(item, str | PurePath) or not str(item).strip():
                raise ValueError(f"item {index + 1} is {item!r}, not a string")
        return tuple(dict.fromkeys(str(item) for item in value))

    return Kind(wanted, metavar, convert, _parse_strings, repeatable=True)


def requirements() -> Kind:
    """Lines of a requirements file; a single string is one such line."""
    many = strings(wanted="a list of requirements, or the path of a requirements file", metavar="REQUIREMENT")

    def convert(value: Any) -> tuple[str, ...]:
        converted: tuple[str, ...] = many.convert([value] if isinstance(value, str | PurePath) else value)
        return converted

    return Kind(many.wanted, many.metavar, convert, _parse_lines, repeatable=True)


def values() -> Kind:
    """A list of values that JSON can hold, because they travel in the archive as JSON."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not _is_list(value):
            raise ValueError
        return tuple(_plain(list(value), ""))

    return Kind("a list", "VALUE", convert, _parse_values, repeatable=True)


def mapping() -> Kind:
    """A mapping from strings to values that JSON can hold."""

    def convert(value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError
        plain: dict[str, Any] = _plain(value, "")
        return plain

    return Kind("a mapping", "KEY=VALUE", convert, _parse_mapping, repeatable=True)


def devices() -> Kind:
    """`auto`, `cpu`, or the logical indices of the GPUs to use."""

    def convert(value: Any) -> str | tuple[int, ...]:
        if value in ("auto", "cpu"):
            return str(value)
        if not _is_list(value) or not value:
            raise ValueError
        for index in value:
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise ValueError(f"{index!r} is no index of a GPU; they count from 0")
        if len(set(value)) != len(value):
            raise ValueError(f"{list(value)} has an index twice")
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
    """`a,b`, or a YAML list when it begins with a bracket (for items that hold a comma)."""
    if raw.lstrip().startswith("["):
        return _structure(raw)
    return [part.strip() for part in raw.split(",") if part.strip()]


def _parse_lines(raw: str) -> Any:
    """A YAML list when the text is one, else the text alone: `torch>=2,<3` is one requirement."""
    return _structure(raw) if raw.lstrip().startswith("[") else [raw]


def _parse_values(raw: str) -> Any:
    """A YAML list when the text is one, else a list of the one YAML value that the text is."""
    value = _structure(raw)
    return value if isinstance(value, list) else [value]


def _parse_mapping(raw: str) -> Any:
    """A YAML or JSON mapping, or `key=value` with a YAML scalar as the value."""
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
        raise ValueError("it cannot be read as YAML or JSON") from None


def _plain(value: Any, place: str) -> Any:
    """A copy of what JSON can hold; anything else is refused with its place inside the value."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}{_inside(place)} is no string; write it in quotes")
        return {key: _plain(item, f"{place}.{key}" if place else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"the {type(value).__name__} {value}{_inside(place)} cannot travel as JSON; write it in quotes"
        ) from None
    return value


def _inside(place: str) -> str:
    return f" in {place}" if place else ""
