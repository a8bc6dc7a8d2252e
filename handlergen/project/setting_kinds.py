"""The kinds of values that settings have: how each is checked and converted, from YAML, Python and text.

Every kind describes in words what it accepts, for messages and help.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from handlergen.errors import HandlergenError
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


def text(wanted: str = "a string", *, check: Callable[[str], None] = lambda _text: None) -> Kind:
    """Return the kind of a string that is not blank, and passes a check of `handlergen.project.names`."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, str) or not value.strip():
            return False
        try:
            check(value)
        except HandlergenError as error:
            raise ValueError(error.message) from error
        return True

    return _single(accepts, str, wanted, "TEXT")


def path() -> Kind:
    """Return the kind of a path, kept as it is written."""
    return _single(lambda value: isinstance(value, str | PurePath) and bool(str(value).strip()), str, "a path", "PATH")


def choice(*choices: str) -> Kind:
    """Return the kind of a value that is one of some words."""
    wanted = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    return _single(lambda value: isinstance(value, str) and value in choices, str, wanted, "|".join(choices))


def whole(*, least: int, most: int = 2**31 - 1) -> Kind:
    """Return the kind of a whole number. The upper bound is a Java int, as which TorchServe reads its settings."""
    limit = f"of at least {least}" if most >= 2**31 - 1 else f"from {least} to {most}"
    return _single(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        int,
        f"a whole number {limit}",
        "NUMBER",
    )


def switch() -> Kind:
    """Return the kind of a boolean; its flag takes no value."""

    words: dict[str, Any] = {"true": True, "1": True, "false": False, "0": False}

    def parse(raw: str) -> Any:
        return words.get(raw.lower(), raw)

    return dataclasses.replace(_single(lambda value: isinstance(value, bool), bool, "true or false", ""), parse=parse)


def seconds() -> Kind:
    """Return the kind of a positive, finite number of seconds."""

    def accepts(value: Any) -> bool:
        if _is_finite(value) and value >= 2**31:
            raise ValueError(f"{value:g} seconds are more than Java or the system can represent")
        return _is_finite(value) and value > 0

    return _single(accepts, float, "a number of seconds above 0", "SECONDS")


def milliseconds() -> Kind:
    """Return the kind of a number of milliseconds from 0 up to a quarter of an hour: a client waits."""
    return _single(
        lambda value: _is_finite(value) and 0 <= value < 1e6,
        float,
        "a number of milliseconds, 0 or more and below 1000000",
        "MILLISECONDS",
    )


def _single(accepts: Callable[[Any], bool], as_type: type, wanted: str, metavar: str) -> Kind:
    """Return the kind of a single value that `accepts` approves, converted to a type and parsed by it."""

    def convert(value: Any) -> Any:
        if not accepts(value):
            raise ValueError
        return value if isinstance(value, as_type) else as_type(value)

    def parse(raw: str) -> Any:
        try:
            return as_type(raw)
        except ValueError:
            raise ValueError from None  # `wanted` is clearer than int()'s message

    return Kind(wanted, metavar, convert, parse)


def _is_finite(value: Any) -> bool:
    # Compared, not converted: an int may have more digits than a float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def strings(wanted: str = "a list of strings", metavar: str = "TEXT") -> Kind:
    """Return the kind of a list of strings; duplicates are removed."""

    def convert(value: Any) -> tuple[str, ...]:
        if not _is_list(value):
            raise ValueError(f"{value!r} is a string; write [{value}]" if isinstance(value, str) else "")
        for index, item in enumerate(value):
            if not isinstance(item, str | PurePath) or not str(item).strip():
                raise ValueError(f"item {index + 1} is {item!r}, not a string")
        return tuple(dict.fromkeys(str(item) for item in value))

    def parse(raw: str) -> Any:
        """Parse `a,b`, or a YAML list if the text begins with a bracket (for items with a comma)."""
        split = [part.strip() for part in raw.split(",") if part.strip()]
        return _structure(raw) if raw.lstrip().startswith("[") else split

    return Kind(wanted, metavar, convert, parse, repeatable=True)


def requirements() -> Kind:
    """Return the kind of the lines of a requirements file; a single string is one line."""
    many = strings("a list of requirements, or the path of a requirements file", "REQUIREMENT")

    def parse(raw: str) -> Any:
        """Parse a YAML list if the text is one, else the text alone: `torch>=2,<3` is one requirement."""
        return _structure(raw) if raw.lstrip().startswith("[") else [raw]

    def convert(value: Any) -> Any:
        return many.convert([value] if isinstance(value, str | PurePath) else value)

    return dataclasses.replace(many, convert=convert, parse=parse)


def values() -> Kind:
    """Return the kind of a list of JSON values (the archive stores them as JSON)."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not _is_list(value):
            raise ValueError
        return tuple(_plain(list(value), ""))

    def parse(raw: str) -> Any:
        value = _structure(raw)
        return value if isinstance(value, list) else [value]

    return Kind("a list", "VALUE", convert, parse, repeatable=True)


def mapping() -> Kind:
    """Return the kind of a mapping from strings to JSON values."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError
        return _plain(value, "")

    def parse(raw: str) -> Any:
        """Parse a YAML or JSON mapping, or `key=value` with a YAML value."""
        if raw.lstrip().startswith("{"):
            return _structure(raw)
        key, equals, value = raw.partition("=")
        if not equals or not key.strip():
            raise ValueError
        return {key.strip(): _structure(value)}

    return Kind("a mapping", "KEY=VALUE", convert, parse, repeatable=True)


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
            raise ValueError from None

    wanted = "auto, cpu, or a list of GPU indices such as [0, 1]"
    return Kind(wanted, "auto|cpu|INDEX", convert, parse, repeatable=True)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _structure(raw: str) -> Any:
    try:
        return plain_value(raw)
    except ValueError:
        raise ValueError("it is neither YAML nor JSON") from None


def _plain(value: Any, place: str) -> Any:
    """Copy a JSON value; raise ValueError, with the path inside the value, for anything else."""
    inside = f" in {place}" if place else ""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r}{inside} is not a string; write it in quotes")
        return {key: _plain(item, f"{place}.{key}" if place else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            f"the {type(value).__name__} {value}{inside} is not a JSON value; write it in quotes"
        ) from None
    return value
