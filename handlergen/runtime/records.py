"""From a decoded value to the dataclass or TypedDict that a hook's annotation asks for, with every field's error.

One behaviour whether or not pydantic is installed: dataclasses and TypedDicts are always read here, pydantic's own
classes always by pydantic (who annotates with them has it). As pydantic does, numbers and truth values may come as
text, because a form's fields do; unlike pydantic's default, keys that no field has are errors.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

from .scalars import SCALARS, Place, Reader, ValidationError, reader_of, unchanged, wrong

UNIONS: tuple[Any, ...] = (Union, types.UnionType)
LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
SETS: dict[Any, type] = {
    set: set, frozenset: frozenset, collections.abc.Set: frozenset, collections.abc.MutableSet: set,
}  # fmt: skip
DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
WRAPPERS: tuple[Any, ...] = (
    Annotated,
    *(getattr(typing, name) for name in ("Required", "NotRequired") if hasattr(typing, name)),  # Python 3.11
)


def is_record(annotation: Any) -> bool:
    """Does it name a pydantic model, dataclass or TypedDict, itself or inside a list, dict, tuple or union?"""
    if isinstance(annotation, type) or is_typeddict(annotation):
        return is_pydantic(annotation) or dataclasses.is_dataclass(annotation) or is_typeddict(annotation)
    return any(is_record(part) for part in get_args(annotation))


def is_pydantic(annotation: Any) -> bool:
    """A pydantic model, or one of its dataclasses."""
    return isinstance(annotation, type) and hasattr(annotation, "__pydantic_validator__")


def reader(annotation: Any) -> Callable[[Any], Any]:
    """A function that converts a decoded value to `annotation`.

    Raises (the function):
        ValidationError: With every field's error.
        pydantic.ValidationError: The same, where the annotation itself is pydantic's.
    """
    if is_pydantic(annotation):
        return _pydantic(annotation)
    read = _Readers().of(annotation)
    return lambda value: read(value, ())


def _pydantic(kind: Any) -> Callable[[Any], Any]:
    if hasattr(kind, "model_validate"):
        validate: Callable[[Any], Any] = kind.model_validate
        return validate
    from pydantic import TypeAdapter

    adapted: Callable[[Any], Any] = TypeAdapter(kind).validate_python
    return adapted


class _Readers:
    """Makes a reader for an annotation and for what it consists of; records may contain themselves."""

    def __init__(self) -> None:
        self._records: dict[Any, Reader] = {}

    def of(self, annotation: Any) -> Reader:  # noqa: PLR0911, PLR0912 - one case a kind of annotation
        origin, args = get_origin(annotation), get_args(annotation)
        if origin in WRAPPERS:
            return self.of(args[0])
        if isinstance(annotation, TypeVar):
            return self.of(annotation.__bound__) if annotation.__bound__ else unchanged
        if hasattr(annotation, "__supertype__"):  # NewType
            return self.of(annotation.__supertype__)
        if origin is Literal:
            return _choice({value: value for value in args})
        if origin in UNIONS:
            return self._union(args)
        kind = origin or annotation
        if kind in LISTS:
            return _list(self.of(args[0]) if args else unchanged, list)
        if kind in SETS:
            return _list(self.of(args[0]) if args else unchanged, SETS[kind])
        if kind is tuple:
            return self._tuple(args)
        if kind in DICTS:
            return _dict(self.of(args[1]) if args else unchanged, self.of(args[0]) if args else unchanged)
        if not isinstance(kind, type) and not is_typeddict(kind):
            return unchanged
        if is_pydantic(kind):
            return _nested(_pydantic(kind))
        if is_typeddict(kind) or dataclasses.is_dataclass(kind):
            return self._record(kind)
        if issubclass(kind, enum.Enum):
            return _choice({member.value: member for member in kind})
        return reader_of(kind) or unchanged

    def _union(self, args: tuple[Any, ...]) -> Reader:
        others = [arg for arg in args if arg is not type(None)]
        optional = len(others) < len(args)
        readers = [self.of(arg) for arg in others]
        exact = tuple(arg for arg in others if isinstance(arg, type) and arg in SCALARS)

        def read(value: Any, place: Place) -> Any:
            if value is None and optional:
                return None
            if type(value) in exact:  # str | int: text stays text
                return value
            failures = []
            for each in readers:
                try:
                    return each(value, place)
                except ValidationError as error:
                    failures.append(error)
            # The alternative that fails deepest is the one that was meant.
            raise max(failures, key=lambda error: max(len(where) for where, _ in error.errors))

        return read

    def _tuple(self, args: tuple[Any, ...]) -> Reader:
        if not args or args[-1] is Ellipsis:
            return _list(self.of(args[0]) if args else unchanged, tuple)
        readers = [self.of(arg) for arg in args]

        def read(value: Any, place: Place) -> Any:
            if not isinstance(value, list | tuple) or len(value) != len(readers):
                raise wrong(f"a list of {len(readers)}", value, place)
            return tuple(
                _collected(
                    (index, each, item) for index, (each, item) in enumerate(zip(readers, value, strict=True))
                )(place)
            )

        return read

    def _record(self, kind: Any) -> Reader:
        known = self._records.get(kind)
        if known is not None:
            return known
        fields: dict[str, tuple[Reader, bool]] = {}
        is_dict = is_typeddict(kind)
        make: Callable[..., Any] = dict if is_dict else kind
        name = kind.__name__

        def read(value: Any, place: Place) -> Any:
            if not is_dict and isinstance(value, kind):
                return value
            if not isinstance(value, Mapping):
                raise wrong("an object with the keys " + ", ".join(fields), value, place)
            errors: list[tuple[Place, str]] = []
            given: dict[str, Any] = {}
            for key, item in value.items():
                if key not in fields:
                    errors.append(((*place, str(key)), "unknown key"))
                    continue
                try:
                    given[key] = fields[key][0](item, (*place, key))
                except ValidationError as error:
                    errors += error.errors
            errors += [
                ((*place, key), "missing")
                for key, (_, required) in fields.items()
                if required and key not in value
            ]
            if errors:
                raise ValidationError(errors)
            try:
                return make(**given)
            except (ValueError, AssertionError) as error:  # __post_init__ refuses these values
                raise ValidationError([(place, str(error) or f"not a valid {name}")]) from error

        self._records[kind] = read
        for field_name, annotation, required in record_fields(kind):
            fields[field_name] = (self.of(annotation), required)
        return read


def record_fields(kind: Any) -> Iterator[tuple[str, Any, bool]]:
    """Name, annotation and whether it is required, of each field of a dataclass or TypedDict."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception:  # a name that only a type checker imports: such fields are passed as they are
        hints = {}
    if is_typeddict(kind):
        for name in kind.__annotations__:
            yield name, hints.get(name, Any), name in kind.__required_keys__
        return
    for field in dataclasses.fields(kind):
        if field.init:
            plain = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield field.name, hints.get(field.name, Any), plain


def _collected(parts: Any) -> Callable[[Place], list[Any]]:
    """Read (key, reader, value) triples, each with its own errors."""

    def read(place: Place) -> list[Any]:
        done, errors = [], []
        for key, each, item in parts:
            try:
                done.append(each(item, (*place, key)))
            except ValidationError as error:
                errors += error.errors
        if errors:
            raise ValidationError(errors)
        return done

    return read


def _list(each: Reader, make: Callable[[list[Any]], Any]) -> Reader:
    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, list | tuple):
            raise wrong("a list", value, place)
        items = (
            list(value)
            if each is unchanged
            else _collected((i, each, item) for i, item in enumerate(value))(place)
        )
        try:
            return make(items)
        except TypeError:  # a set of lists
            raise wrong("a list of simple values", value, place) from None

    return read


def _dict(each: Reader, key_of: Reader) -> Reader:
    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, Mapping):
            raise wrong("an object", value, place)
        keys = _collected((key, key_of, key) for key in value)(place)
        items = _collected((key, each, item) for key, item in value.items())(place)
        return dict(zip(keys, items, strict=True))

    return read


def _choice(members: Mapping[Any, Any]) -> Reader:
    def read(value: Any, place: Place) -> Any:
        for wanted, member in members.items():
            if value is member or (type(value) is type(wanted) and value == wanted):
                return member
        raise wrong("one of " + ", ".join(repr(wanted) for wanted in members), value, place)

    return read


def _nested(validate: Callable[[Any], Any]) -> Reader:
    def read(value: Any, place: Place) -> Any:
        try:
            return validate(value)
        except ValueError as error:  # pydantic's ValidationError is one
            details: Any = getattr(error, "errors", None)
            if details is None:
                raise
            raise ValidationError([((*place, *each["loc"]), each["msg"]) for each in details()]) from None

    return read
