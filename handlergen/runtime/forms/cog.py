"""The `cog` form: Cog's `BasePredictor`, whose inputs are the keys of the request.

`Input(...)` is read at run time from the signature: every version of Cog returns a FieldInfo (cog/input.py),
whose limits are attributes, or, in versions that use pydantic, in its metadata.
"""

from __future__ import annotations

import base64
import binascii
import enum
import inspect
import mimetypes
import os
import re
import tempfile
import types
import typing
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any
from urllib.parse import unquote_to_bytes

from ..pipeline.hooks import BoundHook, Hooks, Item, ModelHooks
from ..pipeline.typed_hooks import annotation_of
from ..request import BadRequest, UploadedFile, with_files
from .loading import UserModule

_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # `X | Y` is a type from Python 3.10 on
_ENVELOPE = {"input", "id", "created_at", "context", "output_file_prefix", "webhook", "webhook_events_filter"}
"""Keys of a prediction request of Cog's own HTTP API."""
_LIMITS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", lambda value, limit: value >= limit),
    "le": ("at most", lambda value, limit: value <= limit),
    "min_length": ("at least as long as", lambda value, limit: len(value) >= limit),
    "max_length": ("at most as long as", lambda value, limit: len(value) <= limit),
    "regex": ("text that matches", lambda value, limit: re.search(limit, value) is not None),
    "pattern": ("text that matches", lambda value, limit: re.search(limit, value) is not None),
    "choices": ("one of", lambda value, limit: value in limit),
}


class CogModule(UserModule):
    """A subclass of BasePredictor or BaseRunner: setup, and predict or run."""

    def load(self) -> None:
        self._owner = self._user_class()(*self._settings.model_args, **self._settings.model_kwargs)
        self._call_once("load")

    def load_without_model(self) -> None:
        self._owner = self._unconstructed()

    def hooks(self) -> Hooks:
        predict = self._predict()
        names = [each.name for each in predict.parameters]
        keys = BoundHook("input", lambda item: _keys(with_files(item.data, item.files), names))
        return (ModelHooks(keys, replace(predict, call=_caller(predict))),)


def _keys(data: Any, names: list[str]) -> Any:
    """Return the inputs of a request: its object, or what Cog's own API has below `input`."""
    wrapped = isinstance(data, Mapping) and "input" in data and "input" not in names and set(data) <= _ENVELOPE
    return data["input"] if wrapped else data


def _caller(predict: BoundHook) -> Callable[[Item], Any]:
    function: Any = predict.function
    signature = inspect.signature(function).parameters
    inputs = {
        each.name: _Input(
            each.name, annotation_of(function, each.name), signature[each.name].default, required=each.required
        )
        for each in predict.parameters
    }
    optional = {each.name: inputs[each.name].default for each in predict.parameters if not each.required}

    def call(item: Item) -> Any:
        with ExitStack() as files:
            if isinstance(item.inputs, Mapping):
                given = {
                    name: inputs[name].value(value, files) if name in inputs else value
                    for name, value in item.inputs.items()
                }
                item.inputs = {**optional, **given}
            result = predict.call(item)
            if type(result) in (GeneratorType, CoroutineType, AsyncGeneratorType):
                return _later(result, files.pop_all())
            return _answer(result)

    return call


class _Input:
    """One input of predict: its type, its default and its limits."""

    def __init__(self, name: str, annotation: Any, default: Any, *, required: bool) -> None:
        self._name = name
        self._types, allows_none = _types(annotation)
        info = default if type(default).__name__ == "FieldInfo" else None
        self.default = None if required or default is inspect.Parameter.empty else getattr(info, "default", default)
        self._none = allows_none or (not required and self.default is None)
        extra = getattr(info, "json_schema_extra", None) or getattr(info, "extra", None) or {}
        places = (info, *getattr(info, "metadata", ()))
        found = {name: getattr(place, name, None) for place in places for name in _LIMITS if hasattr(place, name)}
        found |= {name: extra[name] for name in ("choices",) if isinstance(extra, Mapping) and name in extra}
        self._limits = {name: limit for name, limit in found.items() if limit is not None}

    def value(self, given: Any, files: ExitStack) -> Any:
        """Return a request's value as the input's type.

        Raises:
            BadRequest: It is not of that type, or beyond a limit.
        """
        if given is None and self._none:
            return None
        wrong = []
        for kind in self._types:
            try:
                value = _converted(kind, given, files)
                break
            except (ValueError, TypeError, OverflowError, OSError) as error:
                wrong.append(str(error))
        else:
            raise BadRequest(f"the input {self._name} must be {' or '.join(wrong)}, not {_shown(given)}")
        for name, limit in self._limits.items():
            words, holds = _LIMITS[name]
            if not all(holds(each, limit) for each in (value if isinstance(value, list) else [value])):
                raise BadRequest(f"the input {self._name} must be {words} {limit}, not {_shown(given)}")
        return value


def _types(annotation: Any) -> tuple[tuple[Any, ...], bool]:
    """Return the types that an annotation allows, and whether it allows None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in _UNIONS:
        found = typing.get_args(annotation)
        return tuple(each for each in found if each is not type(None)), type(None) in found
    return (annotation,), False


def _converted(kind: Any, value: Any, files: ExitStack) -> Any:  # noqa: PLR0911 - one return a type
    """Return a value as a type; raises ValueError with the words for "must be"."""
    origin = typing.get_origin(kind) or kind
    if origin is list:
        (inner,) = typing.get_args(kind) or (Any,)
        if not isinstance(value, list):
            raise ValueError("a list")
        return [_converted(inner, each, files) for each in value]
    if origin is typing.Literal:
        return _one_of(typing.get_args(kind), value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if not isinstance(kind, type):
        return value
    if issubclass(kind, enum.Enum):
        return kind(_one_of([each.value for each in kind], value))
    of_cog = kind.__module__.partition(".")[0] == "cog"
    if issubclass(kind, Path) or (of_cog and kind.__name__ == "File"):
        return _file(kind, value, files)
    make: Any = kind
    return make(value) if of_cog and kind.__name__ == "Secret" else value


def _one_of(allowed: Sequence[Any], value: Any) -> Any:
    if value not in allowed:
        raise ValueError(f"one of {list(allowed)}")
    return value


def _boolean(value: Any) -> bool:
    """Return a truth value; a form's field is text."""
    named = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(named, bool):
        raise ValueError("true or false")
    return named


def _integer(value: Any) -> int:
    """Return a whole number; a form's field is text."""
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float) and number != value):
        raise ValueError("a whole number")
    return number


def _float(value: Any) -> float:
    """Return a number; a form's field is text."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError("a number")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


_SCALARS: Mapping[Any, Callable[[Any], Any]] = {bool: _boolean, int: _integer, float: _float, str: _text}


def _file(kind: Any, value: Any, files: ExitStack) -> Any:
    """Return a form's part or a data URL as a file or the path of one, which is deleted after the prediction."""
    wanted = "a part of a multipart form or a data URL"
    if isinstance(value, UploadedFile):
        content, media_type = value.getvalue(), value.content_type
    elif isinstance(value, str) and value.startswith("data:"):
        head, comma, text = value[5:].partition(",")
        try:
            content = base64.b64decode(text, validate=True) if head.endswith(";base64") else unquote_to_bytes(text)
        except binascii.Error:
            raise ValueError(wanted) from None
        if not comma:
            raise ValueError(wanted)
        media_type = head.partition(";")[0]
    else:  # a URL would make the worker fetch whatever a client names
        raise ValueError(wanted)
    if not issubclass(kind, Path):
        return UploadedFile(content, "file", media_type)
    directory = files.enter_context(tempfile.TemporaryDirectory(prefix="handlergen-"))
    path = kind(directory) / f"file{mimetypes.guess_extension(media_type or '') or ''}"
    path.write_bytes(content)
    return path


def _later(result: Any, files: ExitStack) -> Any:
    """Return a generator or coroutine that deletes the files of the request when it ends."""

    def chunks() -> Generator[Any, None, None]:
        with files:
            for chunk in result:
                yield _answer(chunk)

    async def async_chunks() -> AsyncGenerator[Any, None]:
        with files:
            async for chunk in result:
                yield _answer(chunk)

    async def awaited() -> Any:
        with files:
            return _answer(await result)

    if type(result) is CoroutineType:
        return awaited()
    return chunks() if type(result) is GeneratorType else async_chunks()


def _answer(value: Any) -> Any:
    """Return an answer with files as data URLs, as Cog's HTTP API sends them."""
    if isinstance(value, os.PathLike):
        path = Path(value)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if isinstance(value, list):
        return [_answer(each) for each in value]
    if isinstance(value, dict):
        return {key: _answer(each) for key, each in value.items()}
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.100}" if isinstance(value, (int, float, str, type(None))) else type(value).__name__


USER_MODULE = CogModule
