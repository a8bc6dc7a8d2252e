"""Typed hooks: annotations that validate a module's input and give the JSON Schemas of its input and answer.

A pydantic model, dataclass or TypedDict as the annotation of `preprocess`'s data (without preprocess: of `predict`'s
input) is what the hook gets. pydantic validates and converts the data of each request; it is imported only where an
annotation asks for it, or where a schema is asked for. Annotations are read from the loaded functions, so it does not
matter where their names come from, or whether they are text.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, get_args, get_origin

import torch

from ..codec.content import optional_module
from ..diagnostics import logger
from ..forms.table import FORMS
from .hooks import BoundHook, Hooks

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_NONE = inspect.Parameter.empty
"""Stands for an annotation that is missing or cannot be read."""


class AnnotationError(Exception):
    """Requests cannot be converted to what a hook's parameter is annotated with."""


class TypedHooks:
    """The types of a loaded module's input and answer.

    Args:
        batch: `each`, `collate` or `list`: a list-mode `predict` without preprocess is annotated with a list.

    Attributes:
        convert: Converts a request's data to the input's type, or raises pydantic's ValidationError; None where the
            annotation asks for no conversion.

    Raises:
        AnnotationError: The input's annotation needs pydantic, which is not installed or cannot validate it.
    """

    def __init__(self, form: str, hooks: Hooks, batch: str) -> None:
        self._keys = _keys(hooks[0].predict)
        first, last = hooks[0].preprocess, hooks[-1].postprocess
        taking, giving = first or hooks[0].predict, last or hooks[-1].predict
        source = "inputs" if first is None else "data"
        name = next((each.name for each in taking.parameters if each.source == source), None)
        self._input = self._annotation(taking, name, batch if first is None else "each")
        self._output = self._annotation(giving, "return", batch if last is None else "each")
        self.convert: Callable[[Any], Any] | None = None
        if _is_record(self._input) if FORMS[form].converts_records else _is_pydantic(self._input):
            try:
                self.convert = _converter(self._input)
            except Exception as error:
                raise AnnotationError(_refusal(self._input, taking.name, error)) from error

    def describe(self) -> dict[str, Any]:
        """Return the JSON Schemas of input and output, each None without pydantic or without an annotation."""
        given, answered = self._schemas
        validated = self.convert is not None or bool(self._keys)
        return {"input": {"schema": given, "validated": validated}, "output": {"schema": answered}}

    @functools.cached_property
    def _schemas(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        given = self._schema(_object(self._keys) if self._keys else self._input, output=False)
        return given, self._schema(self._output, output=True)

    def _schema(self, annotation: Any, *, output: bool) -> dict[str, Any] | None:
        if annotation is _NONE or (not _is_pydantic(annotation) and not _has_pydantic()):
            return None
        try:
            return _json_schema(annotation, output=output)
        except Exception as error:  # a type that pydantic does not know, a name that cannot be resolved
            logger().warning("no JSON Schema for %s (%s: %s)", annotation, type(error).__name__, error)
            return None

    def _annotation(self, hook: BoundHook, name: str | None, batch: str) -> Any:
        """Return the type of one request's value that a hook takes or returns."""
        if hook.function is None or name is None or batch == "collate":
            return _NONE
        try:
            found = _hint(hook.function, name)
        except Exception as error:
            # A name that only a type checker imports, say. No reason not to serve.
            logger().warning(
                "the annotation %r of %s cannot be read (%s: %s); its input is not validated",
                name,
                hook.name,
                type(error).__name__,
                error,
            )
            return _NONE
        if batch != "list":
            return found
        args = get_args(found)
        return args[0] if args and get_origin(found) in _LISTS else _NONE


def _hint(function: Any, name: str) -> Any:
    """Return the type that a parameter (or "return") is annotated with; raises what evaluating it raises.

    Only this annotation is evaluated: unknown names in others do not matter.
    """
    plain = inspect.unwrap(function)
    plain = getattr(plain, "func", plain)  # functools.partial
    plain = getattr(plain, "__func__", plain)
    if not hasattr(plain, "__globals__"):  # an object with __call__
        plain = type(plain).__call__
    annotations = getattr(plain, "__annotations__", {})
    if name not in annotations:
        return _NONE
    holder = types.FunctionType((lambda: None).__code__, plain.__globals__)
    holder.__annotations__ = {"value": annotations[name]}
    return typing.get_type_hints(holder, include_extras=True)["value"]


def _keys(predict: BoundHook) -> dict[str, tuple[Any, bool]]:
    """Return the annotation of each key that `call: keywords` passes, and whether the key is required."""
    found = {}
    for parameter in predict.parameters:
        if parameter.source == "key":
            found[parameter.name] = (annotation_of(predict.function, parameter.name), parameter.required)
    return found


def annotation_of(function: Any, name: str) -> Any:
    """Return the type that a parameter is annotated with; `Any` for none, and for one that cannot be read."""
    try:
        annotation = _hint(function, name)
    except Exception:
        annotation = _NONE
    return Any if annotation is _NONE else annotation


def _is_record(annotation: Any) -> bool:
    """Return whether a type is a pydantic model, dataclass or TypedDict, or a list, dict, tuple or union of such."""
    record = get_origin(annotation) or annotation  # of a generic one
    if (
        _is_pydantic(record)
        or _is_typed_dict(record)
        or (isinstance(record, type) and dataclasses.is_dataclass(record))
    ):
        return True
    return any(_is_record(part) for part in get_args(annotation))


def _is_typed_dict(annotation: Any) -> bool:
    """Return whether a type is a TypedDict of either module; the `is_typeddict` of each knows only its own."""
    return isinstance(annotation, type) and issubclass(annotation, dict) and hasattr(annotation, "__total__")


def _is_pydantic(annotation: Any) -> bool:
    """Return whether a type is a pydantic model, or one of pydantic's dataclasses."""
    return isinstance(annotation, type) and (hasattr(annotation, "__pydantic_validator__") or _is_v1(annotation))


def _is_v1(annotation: Any) -> bool:
    """Return whether a type is a model of pydantic 1, which has no TypeAdapter, or of `pydantic.v1`."""
    return hasattr(annotation, "parse_obj") and not hasattr(annotation, "model_validate")


def _has_pydantic() -> bool:
    return hasattr(optional_module("pydantic"), "TypeAdapter")


def _refusal(annotation: Any, hook: str, error: Exception) -> str:
    name = str(annotation) if get_args(annotation) else getattr(annotation, "__name__", annotation)
    if not _has_pydantic():
        return (
            f"the input of {hook} is annotated with {name}, and validating it needs pydantic 2.7 or newer, which is "
            "not installed here: add pydantic>=2.7 to the requirements, or drop the annotation"
        )
    return (
        f"the input of {hook} is annotated with {name}, which pydantic cannot validate: "
        f"{getattr(error, 'message', error)}; change the annotation, or drop it"
    )


def _converter(annotation: Any) -> Callable[[Any], Any]:
    if _is_v1(annotation):
        parse: Callable[[Any], Any] = annotation.parse_obj
        return parse
    from pydantic_core import SchemaValidator

    return SchemaValidator(_with_arrays(_adapter(annotation).core_schema)).validate_python


def _adapter(annotation: Any) -> Any:
    """Return pydantic's TypeAdapter: unknown keys are errors, but where a pydantic model says otherwise."""
    from pydantic import ConfigDict, TypeAdapter

    if sys.version_info < (3, 12):
        _accept_typed_dicts(annotation, set())

    def core_schema(_cls: Any, _source: Any, handler: Any) -> Any:
        return handler.generate_schema(annotation)

    # A TypeAdapter of a dataclass or TypedDict itself takes no configuration.
    configured: Any = type("Input", (), {"__get_pydantic_core_schema__": classmethod(core_schema)})
    adapter = TypeAdapter(configured, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
    if not getattr(adapter, "pydantic_complete", True):  # a name that cannot be resolved
        adapter.rebuild(raise_errors=True)
    return adapter


def _accept_typed_dicts(annotation: Any, seen: set[type]) -> None:
    """Let pydantic read the `typing.TypedDict` classes in a type, and in the fields of its records.

    Before Python 3.12 pydantic accepts only those of `typing_extensions`. It first asks each class for a schema of its
    own, wherever the class stands: here, that of an equal TypedDict of `typing_extensions`.
    """
    for part in get_args(annotation):
        _accept_typed_dicts(part, seen)
    record: Any = get_origin(annotation) or annotation
    if not isinstance(record, type) or record in seen:
        return
    seen.add(record)
    if dataclasses.is_dataclass(record) or hasattr(record, "_fields") or _is_typed_dict(record):
        with contextlib.suppress(NameError):  # pydantic's own message names the field
            for part in typing.get_type_hints(record, include_extras=True).values():
                _accept_typed_dicts(part, seen)
    if _is_typed_dict(record) and type(record).__module__ == "typing":
        accepted: Any = _typing_extensions_copy(record)

        def core_schema(_cls: Any, source: Any, handler: Any) -> Any:
            arguments = get_args(source)  # of a generic TypedDict
            return handler.generate_schema(accepted[arguments] if arguments else accepted)

        record.__get_pydantic_core_schema__ = classmethod(core_schema)  # type: ignore[attr-defined]


def _typing_extensions_copy(typed_dict: Any) -> type:
    """Return a TypedDict of `typing_extensions` with the same name, keys and configuration.

    Raises:
        NameError: The type of a key cannot be resolved.
    """
    from typing_extensions import NotRequired, Required, TypedDict

    keys = {}
    for name, hint in typing.get_type_hints(typed_dict, include_extras=True).items():
        says_itself = get_origin(hint) in (Required, NotRequired)
        keys[name] = hint if says_itself or name in typed_dict.__required_keys__ else NotRequired[hint]
    body = {"__annotations__": keys}
    for name in ("__module__", "__doc__", "__pydantic_config__"):
        if hasattr(typed_dict, name):
            body[name] = getattr(typed_dict, name)
    bases: list[Any] = [TypedDict]
    if getattr(typed_dict, "__parameters__", ()):
        bases.append(typing.Generic[typed_dict.__parameters__])  # type: ignore[index]
    return types.new_class(typed_dict.__name__, bases, exec_body=lambda space: space.update(body))


def _with_arrays(schema: Any) -> Any:
    """Return a pydantic core schema that makes numpy arrays and tensors from nested lists.

    pydantic supports neither: it would only check the value's type.
    """
    from pydantic_core import core_schema

    if isinstance(schema, list):
        return [_with_arrays(each) for each in schema]
    if not isinstance(schema, dict) or schema.get("type") == "model":  # a model says itself what it takes
        return schema
    if schema.get("type") == "is-instance":
        numpy = sys.modules.get("numpy")
        makers = {torch.Tensor: torch.as_tensor, getattr(numpy, "ndarray", None): getattr(numpy, "asarray", None)}
        make = makers.get(schema["cls"])
        if make is not None:
            return core_schema.no_info_plain_validator_function(functools.partial(_array, make))
    return {key: _with_arrays(value) for key, value in schema.items()}


def _array(make: Callable[[Any], Any], value: Any) -> Any:
    try:
        array = make(value)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        array = None
    if array is None or getattr(array.dtype, "kind", "f") in "OSU":
        raise ValueError("Input should be an array of numbers, each row of the same length")
    return array


def _json_schema(annotation: Any, *, output: bool) -> dict[str, Any] | None:
    """Return the JSON Schema (2020-12); None if it allows anything, as that of an array does."""
    if _is_v1(annotation):
        schema: dict[str, Any] = annotation.schema()
        return schema
    from pydantic.json_schema import GenerateJsonSchema

    class AnythingElse(GenerateJsonSchema):
        """Allows anything for a type that has no JSON Schema (arrays, images)."""

        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
            return {}

    # Answers are encoded with the fields' own names.
    mode, adapter = "serialization" if output else "validation", _adapter(annotation)
    return adapter.json_schema(by_alias=not output, schema_generator=AnythingElse, mode=mode) or None


def _object(keys: dict[str, tuple[Any, bool]]) -> Any:
    """Return the type of an object with these keys."""
    if not _has_pydantic():
        return _NONE
    from typing_extensions import NotRequired, TypedDict

    fields = {name: kind if required else NotRequired[kind] for name, (kind, required) in keys.items()}
    make: Any = TypedDict
    return make("Input", fields)
