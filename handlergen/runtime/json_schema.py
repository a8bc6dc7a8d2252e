"""The JSON Schema (2020-12) of what a hook's annotation describes: for describe, for people and programs."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, is_typeddict

from .records import DICTS, LISTS, SETS, UNIONS, WRAPPERS, is_pydantic, record_fields

_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    decimal.Decimal: {"type": "number"},
    Path: {"type": "string"},
}


def schema_of(annotation: Any) -> dict[str, Any] | None:
    """The schema of an annotation; None if it says nothing that JSON Schema can (`bytes`, `Any`, arrays, no such type).

    Raises:
        Exception: What pydantic raises for a model that has no schema.
    """
    writer = _Writer()
    schema = writer.of(annotation)
    if not schema:
        return None
    return {**schema, **({"$defs": writer.definitions} if writer.definitions else {})}


def object_schema(fields: list[tuple[str, Any, bool]]) -> dict[str, Any]:
    """The schema of an object with these keys: (name, annotation, required)."""
    writer = _Writer()
    schema = writer.fields(fields)
    return {**schema, **({"$defs": writer.definitions} if writer.definitions else {})}


class _Writer:
    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def of(self, annotation: Any) -> dict[str, Any]:  # noqa: PLR0911 - one case a kind of annotation
        """The schema; empty where anything goes."""
        origin, args = get_origin(annotation), get_args(annotation)
        if origin in WRAPPERS:
            return self.of(args[0])
        if isinstance(annotation, TypeVar):
            return self.of(annotation.__bound__) if annotation.__bound__ else {}
        if hasattr(annotation, "__supertype__"):
            return self.of(annotation.__supertype__)
        if origin is Literal:
            return {"enum": list(args)}
        if origin in UNIONS:
            each = [self.of(arg) for arg in args]
            return {"anyOf": each} if all(each) else {}
        kind = origin or annotation
        if kind in LISTS or kind in SETS:
            unique = {"uniqueItems": True} if kind in SETS else {}
            return {"type": "array", **self._part("items", args[:1]), **unique}
        if kind is tuple:
            return self._tuple(args)
        if kind in DICTS:
            return {"type": "object", **self._part("additionalProperties", args[1:])}
        if is_pydantic(kind):
            return self._pydantic(kind)
        if is_typeddict(kind) or (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            return self._record(kind)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [member.value for member in kind]}
        return dict(_SCALARS.get(kind, {})) if isinstance(kind, type) or kind is None else {}

    def fields(self, fields: list[tuple[str, Any, bool]]) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.of(annotation) for name, annotation, _ in fields},
            "additionalProperties": False,
        }
        required = [name for name, _, needed in fields if needed]
        return {**schema, "required": required} if required else schema

    def _part(self, key: str, args: tuple[Any, ...]) -> dict[str, Any]:
        inner = self.of(args[0]) if args else {}
        return {key: inner} if inner else {}

    def _tuple(self, args: tuple[Any, ...]) -> dict[str, Any]:
        if not args or args[-1] is Ellipsis:
            return {"type": "array", **self._part("items", args[:1])}
        return {
            "type": "array",
            "prefixItems": [self.of(arg) for arg in args],
            "minItems": len(args),
            "maxItems": len(args),
        }

    def _record(self, kind: Any) -> dict[str, Any]:
        name = self._names.get(kind)
        if name is None:
            name = self._named(kind)
            self.definitions[name] = {"title": kind.__name__, **self.fields(list(record_fields(kind)))}
        return {"$ref": f"#/$defs/{name}"}

    def _pydantic(self, kind: Any) -> dict[str, Any]:
        name = self._names.get(kind)
        if name is None:
            from pydantic import TypeAdapter

            name = self._named(kind)
            schema = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
            self.definitions.update(schema.pop("$defs", {}))
            self.definitions[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    def _named(self, kind: Any) -> str:
        """A name for the definition; two classes of one name get two."""
        name, number = kind.__name__, 2
        while name in self._names.values() or name in self.definitions:
            name, number = f"{kind.__name__}_{number}", number + 1
        self._names[kind] = name
        return str(name)
