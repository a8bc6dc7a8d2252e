"""Live functions and classes as source text, with the imports, constants, functions and classes that they use."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import symtable
import sys
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

from handlergen.creation.draft import HOOK_NAMES, Draft
from handlergen.creation.finding import class_definition, function_definition
from handlergen.creation.modules import add_import, add_source, is_own
from handlergen.creation.objects import VARIABLE
from handlergen.creation.values import add_value, expression
from handlergen.errors import HandlergenError
from handlergen.runtime.contract import NAMED_PARAMETERS

_OF_HOOKS = ("files", "input_data", *NAMED_PARAMETERS)
_FUTURE = "from __future__ import annotations"


def write_callable(draft: Draft, name: str, function: Any) -> None:
    """Write a live function or class into a draft, and all that it uses.

    What the same module defines is written down too; what other modules of the caller define is imported, and those are
    copied beside.

    Args:
        name: In the module; a role makes it a hook.

    Raises:
        HandlergenError: It, or something that it uses, cannot be written down: names the object, why, and what to do.
    """
    if name in ("preprocess", "postprocess"):
        function = without_options(function)
    home = getattr(inspect.unwrap(function) if callable(function) else function, "__module__", None)
    if isinstance(home, str) and is_own(home):
        draft.inlined.add(home)
    write(draft, name, function)


def without_options(function: Any) -> Any:
    """Return a hook that leaves the options of a function at their defaults: `size` of `to_tensor(data, size=224)`.

    A hook's parameters all have a meaning, so that the second one would get the request's files.
    """
    if not isinstance(function, FunctionType) or inspect.isclass(function):
        return function
    options = {
        each.name: each.default
        for each in inspect.signature(function).parameters.values()
        if each.default is not each.empty and each.name not in _OF_HOOKS
    }
    return functools.partial(function, **options) if options else function


def write(draft: Draft, name: str, function: Any) -> None:
    """As `write_callable`, for what another function uses: its module is no new home."""
    draft.named[name] = function
    text = _text(draft, name, function)
    if name in HOOK_NAMES:
        draft.hooks[name] = text
    else:
        draft.definitions.append(text)


def _text(draft: Draft, name: str, function: Any) -> str:
    if isinstance(function, functools.partial):
        return _partial(draft, name, function)
    if inspect.ismethod(function):
        return _method(draft, name, function)
    if _is_called_object(function):
        return _method(draft, name, function.__call__)
    if hasattr(function, "dispatch") and hasattr(function, "registry"):
        raise HandlergenError(
            f"{function.__qualname__} is a functools.singledispatch: the functions registered with it have no names",
            hint="Put it into a file beside the script, and import it: the file is copied as it is.",
        )
    if inspect.isclass(function):
        if function.__base__ is tuple and hasattr(function, "_fields") and not function.__annotations__:
            return _named_tuple(draft, name, function)
        definition, environment = class_definition(function), _class_environment(function)
    else:
        inner = inspect.unwrap(function) if callable(function) else None
        if not isinstance(inner, FunctionType):
            raise _no_source(function)
        if name in HOOK_NAMES and add_import(draft, f"{name}_" if function.__name__ == name else "", function):
            return _call(draft, name, function)
        definition, environment = function_definition(inner), {**inner.__globals__, **_closure(inner)}
        if function is inner:  # decorators that left a mark have __wrapped__; what others returned is the object itself
            definition = definition.undecorated()
    if not _stands_alone(definition.node):
        raise HandlergenError(
            f"{function.__qualname__} assigns a variable of the function around it (nonlocal), which keeps a state",
            hint="Keep the state in a global variable, or in an object's attribute.",
        )
    if any(isinstance(each, str) for each in vars(function).get("__annotations__", {}).values()):  # a class's
        draft.imports.append(_FUTURE)
    others = _add_names(draft, definition.node, environment, of=function.__qualname__, name=name)
    return definition.renamed(name, others)


def _named_tuple(draft: Draft, name: str, kind: Any) -> str:
    """Return the call of `collections.namedtuple` that makes a class, which has no source."""
    draft.imports.append("from collections import namedtuple")
    values = expression(draft, tuple(kind._field_defaults.values()), name.lower())
    defaults = f", defaults={values}" if kind._field_defaults else ""
    return f"{name} = namedtuple({kind.__name__!r}, {list(kind._fields)}{defaults})\n"


def _is_called_object(function: Any) -> bool:
    if inspect.isroutine(function) or inspect.isclass(function) or not callable(function):
        return False
    return inspect.isfunction(type(function).__call__)


def _stands_alone(node: ast.AST) -> bool:
    try:
        symtable.symtable(ast.unparse(node), "<definition>", "exec")
    except SyntaxError:
        return False
    return True


def _no_source(function: Any) -> HandlergenError:
    shown = getattr(function, "__qualname__", None) or f"this {type(function).__name__}"
    return HandlergenError(
        f"{shown} has no Python source: it is a {type(function).__name__}",
        hint="Write a function around it: def predict(inputs): return ...",
    )


def _call(draft: Draft, name: str, function: Any) -> str:
    """Return a hook that calls a function that the module imports."""
    own = f"{name}_" if function.__name__ == name else function.__name__
    all_of_them = inspect.signature(function).parameters.values()
    parameters = [each for each in all_of_them if each.default is each.empty and each.kind not in VARIABLE]
    return _calling(name, _parameters(draft, name, parameters), own, [_argument(each) for each in parameters])


def _method(draft: Draft, name: str, method: Any) -> str:
    """Return `def name(...)` that calls a method of an object, or of a class."""
    owner = method.__self__
    if inspect.isclass(owner):
        called = f"{expression(draft, owner, name)}.{method.__name__}"
    else:
        stem = type(owner).__name__.lower()
        variable = _add_name(
            draft, f"{stem}_" if hasattr(builtins, stem) else stem, owner, otherwise=f"{type(owner).__name__}_of_{name}"
        )
        called = variable if method.__name__ == "__call__" else f"{variable}.{method.__name__}"
    parameters = [each for each in inspect.signature(method).parameters.values() if each.kind not in VARIABLE]
    if not parameters:
        return _calling(name, ["data"], called, ["data"])
    return _calling(name, _parameters(draft, name, parameters), called, [_argument(each) for each in parameters])


def _partial(draft: Draft, name: str, function: functools.partial[Any]) -> str:
    """Return `def name(...)` that calls the function of a partial, with the arguments written out."""
    inner = function.func
    own = getattr(inner, "__name__", "function")
    if own in HOOK_NAMES or draft.named.get(own, inner) is not inner:
        own = f"{own}_of_{name}"
    if own not in draft.named:
        add_value(draft, own, inner)
    free = [each for each in inspect.signature(function).parameters.values() if each.name not in function.keywords]
    if not is_own(str(getattr(inner, "__module__", ""))):  # a hook has no use for what a library leaves open
        free = [each for each in free if each.default is each.empty and each.kind not in VARIABLE]
    fixed = [expression(draft, value, f"{name}_{number}") for number, value in enumerate(function.args, 1)]
    named = [f"{key}={expression(draft, value, f'{name}_{key}')}" for key, value in function.keywords.items()]
    return _calling(name, _parameters(draft, name, free), own, [*fixed, *map(_argument, free), *named])


def _calling(name: str, parameters: list[str], called: str, arguments: list[str]) -> str:
    return f"def {name}({', '.join(parameters)}):\n    return {called}({', '.join(arguments)})\n"


def _parameters(draft: Draft, name: str, parameters: Iterable[inspect.Parameter]) -> list[str]:
    """Return parameters as they are declared, without annotations."""
    declared = []
    for each in parameters:
        default = "" if each.default is each.empty else f"={expression(draft, each.default, f'{name}_{each.name}')}"
        declared.append(str(each.replace(annotation=each.empty, default=each.empty)) + default)
    return declared


def _argument(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.KEYWORD_ONLY:
        return f"{parameter.name}={parameter.name}"
    return str(parameter.replace(annotation=parameter.empty, default=parameter.empty))


# ---- What it uses ----


def _closure(function: FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _class_environment(kind: type) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for each in vars(kind).values():
        function = getattr(each, "__func__", None) or getattr(each, "fget", None) or each
        inner = inspect.unwrap(function) if callable(function) else None
        if isinstance(inner, FunctionType) and inner.__module__ == kind.__module__:
            found |= {**inner.__globals__, **_closure(inner)}
    return {**vars(sys.modules.get(kind.__module__, builtins)), **found}


def _add_names(draft: Draft, node: ast.AST, environment: Mapping[str, Any], *, of: str, name: str) -> dict[str, str]:
    """Add what the names in a definition stand for; return those that have another name in the module."""
    needed = _free_names(_without_annotations(node))
    annotations = _free_names(node) - needed
    for each in ast.walk(node):  # imports inside of it
        if isinstance(each, ast.Import):
            for alias in each.names:
                add_source(draft, alias.name)
        elif isinstance(each, ast.ImportFrom) and each.module:
            add_source(draft, each.module)
    own = getattr(node, "name", "")
    others = {}
    for used in sorted(needed | annotations):
        missing = used == own or used not in environment or used in ("__file__", "__name__", "__class__")
        if missing or getattr(builtins, used, environment) is environment[used]:
            continue
        try:
            given = _add_name(draft, used, environment[used], otherwise=f"{used}_of_{name}")
        except HandlergenError as error:
            if used in annotations:
                continue
            raise HandlergenError(f"{of} uses {used}: {error.message}", hint=error.hint) from error
        if given != used:
            others[used] = given
    if annotations:
        draft.imports.append(_FUTURE)
    return others


def _add_name(draft: Draft, name: str, value: Any, *, otherwise: str) -> str:
    """Add a value under its name, or under another one where that name is taken; return the name."""
    if name in draft.named:
        if draft.named[name] is value or _equal(draft.named[name], value):
            return name
        name = otherwise
    elif name in HOOK_NAMES:  # a function of the caller's that is no hook here
        name = otherwise
    draft.named[name] = value
    try:
        add_value(draft, name, value)
    except HandlergenError:
        del draft.named[name]
        raise
    return name


def _equal(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # arrays, whose comparison is no truth value
        return False


def _free_names(node: ast.AST) -> set[str]:
    """Return the names that a definition takes from its module."""
    found = set[str]()
    top = symtable.symtable(ast.unparse(node), "<definition>", "exec")
    waiting = [top]
    while waiting:
        table = waiting.pop()
        for symbol in table.get_symbols():
            if symbol.is_referenced() if table is top else symbol.is_global() or _in_class(table, symbol):
                found.add(symbol.get_name())
        waiting += table.get_children()
    return found


def _in_class(table: symtable.SymbolTable, symbol: symtable.Symbol) -> bool:
    """Return whether a class's body reads a name that it may also bind: `mean = mean`."""
    return table.get_type() == "class" and symbol.is_referenced() and not symbol.is_assigned()


class _Bare(ast.NodeTransformer):
    """Removes the annotations of functions; those of a dataclass's fields mean something."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]


def _without_annotations(node: ast.AST) -> ast.AST:
    return _Bare().visit(ast.parse(ast.unparse(node)))  # type: ignore[no-any-return]
