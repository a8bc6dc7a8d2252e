"""What the annotations of a module's hooks say of its input and its answer.

A pydantic model, dataclass or TypedDict as the annotation of `preprocess`'s data (without preprocess: of `predict`'s
input) makes the input be one: validated and converted before the hook is called. Annotations are read from the
loaded functions, so it does not matter where their names come from, or whether they are text.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable
from typing import Any, get_args, get_origin

from .form_table import FORMS
from .hooks import BoundHook, Hooks
from .json_schema import object_schema, schema_of
from .records import LISTS, is_pydantic, is_record, reader


class _Unknown:
    """Stands for an annotation that is missing or cannot be read."""


class TypedHooks:
    """The types of a loaded module's input and answer.

    Args:
        form: The contract's form.
        hooks: The stages.
        batch: `each`, `collate` or `list`: a list-mode `predict` without preprocess is annotated with a list.
        logger: Is told once of an annotation that cannot be read.
    """

    def __init__(self, form: str, hooks: Hooks, batch: str, logger: logging.Logger) -> None:
        self._logger = logger
        self._input = self._input_type(hooks, batch)
        self._converts = is_record(self._input) if FORMS[form].converts_records else is_pydantic(self._input)
        self._keys = _keys(hooks)
        self._output = self._output_type(hooks, batch)

    def converter(self) -> Callable[[Any], Any] | None:
        """Turns a request's data into what the annotation names; None where it names no record."""
        return reader(self._input) if self._converts else None

    def describe(self) -> dict[str, Any]:
        """The JSON Schemas of input and output, each None where the annotations do not give one."""
        given = object_schema(self._keys) if self._keys else self._schema(self._input)
        return {
            "input": {"schema": given, "validated": self._converts or bool(self._keys)},
            "output": {"schema": self._schema(self._output)},
        }

    def _schema(self, annotation: Any) -> dict[str, Any] | None:
        if annotation is _Unknown:
            return None
        try:
            return schema_of(annotation)
        except Exception as error:  # pydantic, for a model with a field that JSON does not have
            self._logger.warning("no JSON Schema for %s (%s)", annotation, type(error).__name__)
            return None

    def _input_type(self, hooks: Hooks, batch: str) -> Any:
        first = hooks[0].preprocess
        hook, source = (first, "data") if first is not None else (hooks[0].predict, "inputs")
        if hook.function is None or (first is None and batch == "collate"):
            return _Unknown
        name = next((each.name for each in hook.parameters if each.source == source), None)
        if name is None:
            return _Unknown
        found = self._hint(hook, name)
        return _element(found) if first is None and batch == "list" else found

    def _output_type(self, hooks: Hooks, batch: str) -> Any:
        last = hooks[-1].postprocess
        hook = last if last is not None else hooks[-1].predict
        if hook.function is None or (last is None and batch == "collate"):
            return _Unknown
        found = self._hint(hook, "return")
        return _element(found) if last is None and batch == "list" else found

    def _hint(self, hook: BoundHook, name: str) -> Any:
        try:
            return hint(hook.function, name)
        except Exception as error:
            # A name that only a type checker imports, say. No reason not to serve.
            self._logger.warning(
                "the annotation %r of %s cannot be read (%s: %s); its input is not validated",
                name,
                hook.name,
                type(error).__name__,
                error,
            )
            return _Unknown


def hint(function: Any, name: str) -> Any:
    """The type that a parameter (or "return") is annotated with; `_Unknown` without an annotation.

    Only this one annotation is evaluated: another's unknown name is of no matter.

    Raises:
        Exception: It cannot be evaluated.
    """
    plain = inspect.unwrap(function)
    plain = getattr(plain, "func", plain)  # functools.partial
    plain = getattr(plain, "__func__", plain)
    if not hasattr(plain, "__globals__"):  # an object with __call__
        plain = type(plain).__call__
    annotations = inspect.get_annotations(plain)
    if name not in annotations:
        return _Unknown
    holder = types.FunctionType((lambda: None).__code__, plain.__globals__)
    holder.__annotations__ = {"value": annotations[name]}
    return typing.get_type_hints(holder, include_extras=True)["value"]


def _element(annotation: Any) -> Any:
    args = get_args(annotation)
    return args[0] if get_origin(annotation) in LISTS and args else _Unknown


def _keys(hooks: Hooks) -> list[tuple[str, Any, bool]]:
    """Name, annotation and whether it is required, of each key that `call: keywords` passes."""
    predict = hooks[0].predict
    found = []
    for parameter in predict.parameters:
        if parameter.source == "key":
            try:
                annotation = hint(predict.function, parameter.name)
            except Exception:
                annotation = _Unknown
            found.append((parameter.name, Any if annotation is _Unknown else annotation, parameter.required))
    return found
