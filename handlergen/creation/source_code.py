"""Live functions and classes as source text in the created module, with everything that they use."""

from __future__ import annotations
import __future__

import ast
import builtins
import functools
import inspect
import re
import sys
from collections.abc import Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from handlergen.creation.draft import HOOK_NAMES, Draft
from handlergen.creation.live_source import global_names, source_of_class, source_of_function
from handlergen.creation.values import NotWritable, expression, own_source
from handlergen.errors import HandlergenError

_ANYWHERE = ("__main__", "__mp_main__")
_FUTURE = __future__.annotations.compiler_flag


def write_callable(draft: Draft, name: str, value: Any) -> None:
    """Write a live function or class into a draft under a name; a hook's role becomes a hook.

    Raises:
        HandlergenError: It, or something that it uses, cannot be written down; names what, why, and what to do.
    """
    shown = getattr(value, "__qualname__", None) or f"a {type(value).__name__}"
    try:
        Writer(draft).write(name, value)
    except NotWritable as error:
        what = f"{name}={shown}" if name in HOOK_NAMES and name != shown else shown
        raise HandlergenError(f"{what}: {error}", hint=error.advice or None) from error


class Writer:
    """Adds live objects to a draft by name."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    def write(self, name: str, value: Any) -> None:
        """Write a function or class under this name. Raises NotWritable."""
        text = self._callable_text(name, value)
        if name in HOOK_NAMES:
            self.draft.hooks[name] = text
        elif name not in self.draft.named or self.draft.named[name] is not value:
            self._claim(name, value)
            self.draft.definitions.append(text)

    def reference(self, value: Any) -> str:
        """Return the name of a function or class in the module; it is imported or written first. Raises NotWritable."""
        name, module = value.__qualname__, value.__module__
        if module == "builtins":
            return str(name)
        if not self._is_written(value):
            if "<locals>" in name or "<lambda>" in name:
                raise NotWritable(f"{module}.{name} is defined in a function, and cannot be imported")
            top = name.partition(".")[0]
            self._claim(top, getattr(sys.modules[module], top, value))
            self._import(module, f"from {module} import {top}")
            return str(name)
        if "<lambda>" in name or not name.rpartition(".")[2].isidentifier():
            raise NotWritable("a lambda inside a value has no name", "define it with def, and use its name")
        last = str(name.rpartition(".")[2])
        if self.draft.named.get(last) is not value:
            self._claim(last, value)
            self.draft.definitions.append(self._callable_text(last, value))
        return last

    def module(self, value: ModuleType) -> str:
        """Return the expression of a module, which is imported first."""
        self._import(value.__name__, f"import {value.__name__}")
        return value.__name__

    @staticmethod
    def is_function(value: Any) -> bool:
        return inspect.isfunction(value) or inspect.isbuiltin(value) or hasattr(value, "__wrapped__")

    def _is_written(self, value: Any) -> bool:
        """Return whether an object is written down, not imported: it is of the script, notebook, or a hook's file."""
        module = value.__module__
        if module in _ANYWHERE or module not in sys.modules:
            return True
        return own_source(module) is not None and module in self.draft.inlined

    def _callable_text(self, name: str, value: Any) -> str:
        if isinstance(value, type):
            return self._class_text(value)
        if isinstance(value, FunctionType) or hasattr(value, "__wrapped__"):
            function = inspect.unwrap(value)
            if isinstance(function, FunctionType):
                return self._function_text(name, function, whole=value)
        if isinstance(value, MethodType | functools.partial):
            return self._wrapper_text(name, value)
        if inspect.isbuiltin(value) or inspect.isroutine(value):
            raise NotWritable(
                "it is compiled, and has no source", f"write a function with def {name}(...) that calls it"
            )
        raise NotWritable(
            f"a {type(value).__module__}.{type(value).__qualname__} is no function",
            f"write a function with def {name}(...) that makes it and calls it",
        )

    def _function_text(self, name: str, function: FunctionType, *, whole: Any) -> str:
        self.draft.inlined.add(function.__module__)
        found = source_of_function(function)
        if found is None:
            lambda_ = function.__name__ == "<lambda>"
            what = "this lambda has" if lambda_ else f"the function {function.__qualname__} has"
            raise NotWritable(
                f"{what} no source here: it was typed into a Python without history, made by exec, or its file has "
                "changed since",
                "define it with def in a file or in a cell of a notebook, and run that again",
            )
        text = found
        if function.__name__ == "<lambda>":
            parameters, body = _split_lambda(text)
            text = f"def {name}({parameters}):\n    return {body}\n"
        elif name != function.__name__:
            text = self._renamed(text, function.__name__, name)
        if function.__code__.co_flags & _FUTURE:
            self.draft.imports.append("from __future__ import annotations")
        self._define_names(text, function, {name: whole, function.__name__: whole})
        return text

    def _renamed(self, text: str, old: str, new: str) -> str:
        if old in global_names(text) or re.search(
            rf"\b{re.escape(old)}\(", text.partition("def ")[2].partition("(")[2]
        ):
            return f"{text}\n\n{new} = {old}\n"
        return re.sub(rf"(\bdef\s+){re.escape(old)}\b", rf"\g<1>{new}", text, count=1)

    def _class_text(self, cls: type) -> str:
        self.draft.inlined.add(cls.__module__)
        text = source_of_class(cls)
        if text is None:
            raise NotWritable(
                f"the class {cls.__qualname__} has no source here: it was typed into a Python without history, or its "
                "file has changed since",
                "define it in a file or in a cell of a notebook, and run that again",
            )
        methods = [each for each in vars(cls).values() if isinstance(each, FunctionType)]
        if any(each.__code__.co_flags & _FUTURE for each in methods):
            self.draft.imports.append("from __future__ import annotations")
        self._define_names(text, next(iter(methods), cls), {cls.__name__: cls})
        return text

    def _wrapper_text(self, name: str, value: Any) -> str:
        """Return a function that calls a bound method or a partial function by its remaining parameters."""
        if isinstance(value, MethodType):
            if isinstance(value.__self__, type):
                called = f"{self.reference(value.__self__)}.{value.__name__}"
            else:
                variable = f"_{type(value.__self__).__name__.lower()}"
                self._assign(variable, value.__self__)
                called = f"{variable}.{value.__name__}"
            fixed: list[str] = []
        else:
            called = expression(value.func, name, self)
            fixed = [expression(each, f"{name}_{place}", self) for place, each in enumerate(value.args)]
            fixed += [f"{key}={expression(each, key, self)}" for key, each in value.keywords.items()]
        parameters = [
            each
            for each in inspect.signature(value).parameters.values()
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
            and not (isinstance(value, functools.partial) and each.name in value.keywords)
        ]
        names = [each.name for each in parameters]
        positional = [each for each in fixed if "=" not in each.partition("(")[0]]
        arguments = [*positional, *names, *(each for each in fixed if each not in positional)]
        return f"def {name}({', '.join(names)}):\n    return {called}({', '.join(arguments)})\n"

    def _define_names(self, text: str, where: Any, own: Mapping[str, Any]) -> None:
        """Define the names that a definition uses, as the live function or class sees them."""
        scope = getattr(where, "__globals__", None) or vars(sys.modules.get(where.__module__, builtins))
        closed: dict[str, Any] = {}
        code = getattr(where, "__code__", None)
        if code is not None and where.__closure__:
            for free, cell in zip(code.co_freevars, where.__closure__, strict=True):
                try:
                    closed[free] = cell.cell_contents
                except ValueError:  # assigned later, or deleted
                    continue
        for name in global_names(text):
            if name in own and name not in closed:
                continue
            if name in closed:
                self._define(name, closed[name])
            elif name in scope:
                self._define(name, scope[name])
            # What is left is a builtin, an annotation that nobody evaluates, or missing in the live function too.

    def _define(self, name: str, value: Any) -> None:
        if name in self.draft.named and self.draft.named[name] is value:
            return
        if isinstance(value, ModuleType):
            self._claim(name, value)
            whole = value.__name__
            top = whole.partition(".")[0]
            plain = name == whole or name == top == whole
            self._import(whole, f"import {whole}" if plain else _import_as(whole, name))
        elif isinstance(value, type) or self.is_function(value):
            self._define_callable(name, value)
        else:
            self._assign(name, value)

    def _define_callable(self, name: str, value: Any) -> None:
        module = getattr(value, "__module__", None) or "builtins"
        if not self._is_written(value):
            found, last = sys.modules.get(module), value.__qualname__
            self._claim(name, value)
            if found is None or "." in last or getattr(found, last, None) is not value:
                last = _public_name(value, module, last)
            self._import(module, f"from {module} import {last}" + (f" as {name}" if name != last else ""))
            return
        self._claim(name, value)
        text = self._callable_text(name, value)
        self.draft.definitions.append(text)

    def _assign(self, name: str, value: Any) -> None:
        """Add `name = ...` to the module."""
        if name in self.draft.named and self.draft.named[name] is value:
            return
        self._claim(name, value)
        try:
            text = expression(value, name, self)
        except NotWritable as error:
            raise NotWritable(f"it uses {name}, and {error}", error.advice) from error
        self.draft.definitions.append(f"{name} = {text}\n")

    def _claim(self, name: str, value: Any) -> None:
        """Note what a name stands for. Raises NotWritable if it stands for something else already."""
        if name not in self.draft.named:
            self.draft.named[name] = value
            return
        before = self.draft.named[name]
        if before is value or (type(before) is type(value) and _same(before, value)):
            return
        raise NotWritable(
            f"{name} means two things: in one function {_short(before)}, in another {_short(value)}",
            "rename one of them: all functions stand in one module",
        )

    def _import(self, module: str, line: str) -> None:
        self.draft.imports.append(line)
        source = own_source(module)
        if source is not None and source not in self.draft.sources:
            self.draft.sources.append(source)


def _split_lambda(text: str) -> tuple[str, str]:
    """Return the parameters and the body of a lambda expression."""
    node: Any = ast.parse(f"({text})", mode="eval").body
    return ast.unparse(node.args), ast.unparse(node.body)


def _import_as(module: str, name: str) -> str:
    package, _, last = module.rpartition(".")
    if package and last == name:
        return f"from {package} import {last}"
    return f"import {module} as {name}"


def _public_name(value: Any, module: str, qualname: str) -> str:
    """Return the name by which a module has an object. Raises NotWritable."""
    found = sys.modules.get(module)
    for name, each in vars(found).items() if found is not None else ():
        if each is value:
            return name
    raise NotWritable(f"{module}.{qualname} cannot be imported by name", "write a function with def that calls it")


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays compare element by element
        return False


def _short(value: Any) -> str:
    text = getattr(value, "__qualname__", None) or repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
