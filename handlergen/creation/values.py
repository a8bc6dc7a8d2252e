"""Live values as source: literals, constructor calls, and files beside the module that it reads."""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import enum
import functools
import importlib
import inspect
import json
import logging
import math
import pprint
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinMethodType, MethodDescriptorType, ModuleType, SimpleNamespace, WrapperDescriptorType
from typing import Any, TypeVar

from handlergen.creation.draft import Draft
from handlergen.creation.estimators import add_estimator, load_text
from handlergen.creation.modules import add_import, add_module, is_own
from handlergen.creation.objects import MISSING, constructed, found_arguments
from handlergen.errors import HandlergenError

_LONGEST = 1200
"""Characters of a literal; longer ones go into a file."""
_MOST_ITEMS = 20
"""Numbers of an array that is written as a literal."""
_WIDTH = 110
_REPR = {"datetime", "operator", "decimal", "fractions", "uuid", "zoneinfo", "ipaddress"}
"""Modules whose objects show themselves as the call that makes them."""


def add_value(draft: Draft, name: str, value: Any) -> None:
    """Add what a name of the caller's module stands for: an import, a function, a class or a constant.

    Raises:
        HandlergenError: It cannot be written down: why, and what to do.
    """
    draft.named[name] = value
    if isinstance(value, ModuleType):
        add_module(draft, name, value)
    elif text := _builtin_method(draft, value, name.lower()):
        draft.definitions.append(f"{name} = {text}")
    elif inspect.isroutine(value) or inspect.isclass(value):
        if not add_import(draft, name, value):
            draft.write(draft, name, value)
    elif not _is_installed_constant(draft, name, value):
        text = "object()" if type(value) is object else _whole(draft, name, value)
        if text != name:  # an object whose attributes are set stands there already
            draft.definitions.append(f"{name} = {text}")


def _whole(draft: Draft, name: str, value: Any) -> str:
    try:
        return expression(draft, value, name.lower())
    except RecursionError:
        raise HandlergenError(f"{name} contains itself", hint="Make it inside of the function.") from None


def expression(draft: Draft, value: Any, stem: str) -> str:
    """Return an expression for a value; what it needs is added to the draft.

    Args:
        stem: The name of the file, without suffix, if the value needs one.

    Raises:
        HandlergenError: As `add_value`.
    """
    kinds: tuple[Callable[[Draft, Any, str], str | None], ...] = (
        *(_plain, _container, _path, _named, _numbers, _standard),
        *(_pretrained, _estimator, _dataclass, _own_container, _object),
    )
    for kind in kinds:
        text = kind(draft, value, stem)
        if text is not None:
            if len(text) > _LONGEST and _is_json(value):
                return _file(draft, f"{stem}.json", partial(_write_json, value), 'json.loads({}.read_text("utf-8"))')
            return text
    raise _refusal(value)


def _refusal(value: Any) -> HandlergenError:
    shown = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    base = {each.__module__.partition(".")[0] for each in type(value).__mro__}
    if "torch" in base and hasattr(value, "state_dict"):
        hint = "Give it as the model: handlergen.archive(model, predict=...); hooks get it as the parameter `model`."
    elif shown.startswith(("_thread", "threading", "_io", "socket", "sqlite3", "asyncio", "multiprocessing")):
        hint = "Write the project with create, and make it in a hook setup(context), which runs in every worker."
    else:
        hint = "Use plain values (numbers, texts, lists, dicts, arrays), or make the object inside of the function."
    return HandlergenError(f"a {shown} cannot be written down", hint=hint)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _plain(_draft: Draft, value: Any, _stem: str) -> str | None:
    if type(value) is float and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) is str and len(PurePath(value).parts) > 2 and PurePath(value).is_absolute() and Path(value).exists():
        raise _path_refusal(value)
    if value is None or value is Ellipsis or type(value) in (bool, int, float, complex, str, bytes, range, slice):
        return repr(value)
    return None


def _container(draft: Draft, value: Any, stem: str) -> str | None:
    if type(value) in (dict, list, tuple, set, frozenset) and _is_plain(value):
        return pprint.pformat(value, width=_WIDTH, sort_dicts=False, compact=True)
    if type(value) is dict:
        items = [
            f"{expression(draft, key, stem)}: {expression(draft, item, f'{stem}_{number}')}"
            for number, (key, item) in enumerate(value.items(), 1)
        ]
        return f"{{{', '.join(items)}}}"
    if type(value) not in (list, tuple, set, frozenset):
        return None
    ordered = sorted(value, key=repr) if type(value) in (set, frozenset) else value
    inner = ", ".join(expression(draft, each, f"{stem}_{number}") for number, each in enumerate(ordered, 1))
    if type(value) is tuple:
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{inner}]"
    literal = f"{{{inner}}}" if inner else "set()"
    return literal if type(value) is set else f"frozenset({literal})"


def _path(draft: Draft, value: Any, _stem: str) -> str | None:
    if not isinstance(value, PurePath):
        return None
    if value.is_absolute() or ".." in value.parts:
        raise _path_refusal(value)
    path = Path(value)
    if path.is_file() or (path.is_dir() and path.parts):
        place = path.as_posix()
        draft.files[place] = partial(shutil.copytree if path.is_dir() else shutil.copyfile, path.absolute())
        draft.imports.append("from pathlib import Path")
        return f'Path(__file__).parent / "{place}"'
    draft.imports.append("from pathlib import Path")
    return f'Path("{value.as_posix()}")'


def _path_refusal(value: Any) -> HandlergenError:
    return HandlergenError(
        f"{value} is a path of this machine",
        hint="Change to its directory and write it relative to that: the file then travels with the model.",
    )


def _named(draft: Draft, value: Any, stem: str) -> str | None:  # noqa: PLR0911 - a table of types
    """Functions, classes, modules and members of enumerations, by their names."""
    if isinstance(value, enum.Flag) and "|" in (value.name or "|"):
        return f"{_name(draft, type(value))}({value.value})"
    if isinstance(value, enum.Enum):
        return f"{_name(draft, type(value))}.{value.name}"
    if isinstance(value, ModuleType):
        add_value(draft, value.__name__.rpartition(".")[2], value)
        return value.__name__.rpartition(".")[2]
    if isinstance(value, functools.partial):
        draft.imports.append("import functools")
        parts = [expression(draft, each, stem) for each in (value.func, *value.args)]
        parts += [f"{key}={expression(draft, each, f'{stem}_{key}')}" for key, each in value.keywords.items()]
        return f"functools.partial({', '.join(parts)})"
    if inspect.isroutine(value) or inspect.isclass(value):
        return _builtin_method(draft, value, stem) or _name(draft, value, stem)
    own, module = getattr(value, "__name__", ""), type(value).__module__  # numpy's ufuncs
    if isinstance(own, str) and own and getattr(sys.modules.get(module), own, None) is value:
        draft.imports.append(f"import {module}")
        return f"{module}.{own}"
    return None


def _builtin_method(draft: Draft, value: Any, stem: str) -> str | None:
    """Methods of builtin types (`str.strip`) and of their objects (`vocabulary.get`)."""
    if isinstance(value, MethodDescriptorType | WrapperDescriptorType):
        return f"{_name(draft, value.__objclass__)}.{value.__name__}"
    owner = getattr(value, "__self__", None)
    if not isinstance(value, BuiltinMethodType) or owner is None or isinstance(owner, ModuleType):
        return None
    known = next((name for name, each in draft.named.items() if each is owner), None)
    return f"{known or expression(draft, owner, stem)}.{value.__name__}"


def _name(draft: Draft, value: Any, stem: str = "") -> str:
    own: str = value.__name__ if value.__name__.isidentifier() else stem
    if getattr(builtins, own, None) is value:
        return own
    if draft.named.get(own, value) is not value:
        own = f"{own}_{stem}"
    if own not in draft.named:
        add_value(draft, own, value)
    return own


def _numbers(draft: Draft, value: Any, stem: str) -> str | None:  # noqa: PLR0911 - a table of types
    """Arrays, tensors and their types: of few numbers as literals, else in files."""
    kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if kind in ("torch.dtype", "torch.device"):
        draft.imports.append("import torch")
        if getattr(value, "type", "cpu") != "cpu":
            raise HandlergenError(f"{value!r} is a device of this machine", hint="Ask for the parameter `device`.")
        return repr(value) if kind == "torch.dtype" else 'torch.device("cpu")'
    if kind.startswith("numpy.") and hasattr(value, "dtype") and hasattr(value, "tolist"):
        draft.imports.append("import numpy as np")
        if value.dtype.hasobject or value.dtype.names:
            raise HandlergenError(f"an array of {value.dtype} cannot be written down", hint="Use numbers or a list.")
        if not value.shape and kind != "numpy.ndarray":
            return f"np.{type(value).__name__}({expression(draft, value.item(), stem)})"
        if value.size <= _MOST_ITEMS and value.dtype.kind in "biuf":
            return f'np.array({expression(draft, value.tolist(), stem)}, dtype="{value.dtype}")'
        return _file(draft, f"{stem}.npy", partial(_save_array, value), "np.load({})")
    if kind.startswith("numpy.") and "dtype" in type(value).__name__.lower():
        draft.imports.append("import numpy as np")
        return f'np.dtype("{value}")'
    if kind in ("torch.Tensor", "torch.Parameter"):
        import torch

        draft.imports.append("import torch")
        still = value.detach().cpu().clone()
        if still.numel() <= _MOST_ITEMS and not still.is_complex():
            return f"torch.tensor({expression(draft, still.tolist(), stem)}, dtype={still.dtype})"
        return _file(draft, f"{stem}.pt", partial(torch.save, still), "torch.load({}, weights_only=True)")
    return None


def _standard(draft: Draft, value: Any, stem: str) -> str | None:  # noqa: PLR0911 - a table of types
    """Objects of the standard library."""
    if isinstance(value, re.Pattern):
        draft.imports.append("import re")
        flags = value.flags & ~re.UNICODE
        return f"re.compile({value.pattern!r}{f', {flags}' if flags else ''})"
    if isinstance(value, logging.Logger):
        draft.imports.append("import logging")
        return "logging.getLogger(__name__)" if value.name == "__main__" else f"logging.getLogger({value.name!r})"
    module = type(value).__module__
    if type(value) in (SimpleNamespace, argparse.Namespace):
        module = "types" if type(value) is SimpleNamespace else "argparse"
        draft.imports.append(f"import {module}")
        given = [f"{key}={expression(draft, each, f'{stem}_{key}')}" for key, each in vars(value).items()]
        return f"{module}.{type(value).__name__}({', '.join(given)})"
    if module in _REPR:
        text = repr(value)
        draft.imports.append(f"import {module}")
        return text if text.startswith(f"{module}.") else f"{module}.{text}"
    if module == "collections":
        name = type(value).__name__
        draft.imports.append(f"from collections import {name}")
        if name == "defaultdict":
            factory = expression(draft, value.default_factory, stem)
            return f"defaultdict({factory}, {expression(draft, dict(value), stem)})"
        inner = dict(value) if isinstance(value, Mapping) else list(value)
        most = f", maxlen={value.maxlen}" if getattr(value, "maxlen", None) is not None else ""
        return f"{name}({expression(draft, inner, stem)}{most})"
    return None


def _pretrained(draft: Draft, value: Any, stem: str) -> str | None:
    """Tokenizers, processors and the like, which write and read a directory."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "tokenizers" and hasattr(value, "to_str"):
        draft.imports.append("from tokenizers import Tokenizer")
        return _file(draft, f"{stem}.json", lambda path: value.save(str(path)), "Tokenizer.from_file(str({}))")
    if not hasattr(value, "save_pretrained") or not hasattr(kind, "from_pretrained") or hasattr(value, "state_dict"):
        return None
    return _file(draft, stem, value.save_pretrained, f"{_name(draft, kind)}.from_pretrained({{}})")


def _estimator(draft: Draft, value: Any, stem: str) -> str | None:
    """scikit-learn's objects: scalers, encoders, vectorizers."""
    if "sklearn" not in {each.__module__.partition(".")[0] for each in type(value).__mro__}:
        return None
    file = f"{stem}.skops"
    trusted = add_estimator(draft, value, file)
    draft.imports.append("from pathlib import Path")
    return load_text(draft, file, trusted, "Path(__file__).parent")


def _dataclass(draft: Draft, value: Any, stem: str) -> str | None:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        pairs = value._asdict().items()
        given = [f"{key}={expression(draft, each, f'{stem}_{key}')}" for key, each in pairs]
        return f"{_name(draft, type(value))}({', '.join(given)})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    fields = dataclasses.fields(value)
    if not all(each.init for each in fields):
        return None  # an object as others
    given = [f"{each.name}={expression(draft, getattr(value, each.name), f'{stem}_{each.name}')}" for each in fields]
    return f"{_name(draft, type(value))}({', '.join(given)})"


def _own_container(draft: Draft, value: Any, stem: str) -> str | None:
    """A dict, list or text of the caller's class: its content is no attribute."""
    kind = next((each for each in (dict, list, set, tuple, str, int, float) if isinstance(value, each)), None)
    if kind is None or not is_own(type(value).__module__):
        return None
    if getattr(value, "__dict__", None):
        raise HandlergenError(
            f"a {type(value).__name__} with attributes cannot be written down",
            hint=f"Keep the {kind.__name__} as an attribute of an object, or make it inside of the function.",
        )
    return f"{_name(draft, type(value))}({expression(draft, kind(value), stem)})"


def _object(draft: Draft, value: Any, stem: str) -> str | None:
    """An object as the call of its constructor; attributes in which it differs from a new one are set after that.

    Those that cannot be written down, and which a new object has of the same type, are the constructor's matter. An
    object of a library is written only if the call says all.
    """
    kind = type(value)
    own = is_own(kind.__module__)
    if not isinstance(getattr(value, "__dict__", None), dict) or kind.__module__ in ("builtins", "types", "typing"):
        return None
    is_network = hasattr(value, "state_dict")
    if is_network and next(iter(value.state_dict()), None) is not None:
        return None  # it has weights
    arguments = dict(found_arguments(value))
    if not own and (MISSING in arguments.values() or (not arguments and vars(value) and not is_network)):
        return None
    arguments, attributes, fresh = constructed(value)
    if attributes and not own:
        return None
    given = [f"{name}={expression(draft, argument, f'{stem}_{name}')}" for name, argument in arguments.items()]
    call = f"{_name(draft, kind)}({', '.join(given)})"
    lines = {}
    for name, attribute in attributes.items():
        try:
            lines[name] = expression(draft, attribute, f"{stem}_{name}")
        except HandlergenError as error:
            if type(vars(fresh).get(name)) is not type(attribute):
                raise HandlergenError(f"its attribute {name}: {error.message}", hint=error.hint) from error
    if not lines:
        return call
    variable = next((known for known, each in draft.named.items() if each is value), "")
    while not variable or (variable in draft.named and draft.named[variable] is not value):
        variable = f"{variable or stem}_" if variable or stem in draft.named else stem
    draft.named[variable] = value
    draft.definitions += [f"{variable} = {call}", *(f"{variable}.{name} = {text}" for name, text in lines.items())]
    return variable


def _is_installed_constant(draft: Draft, name: str, value: Any) -> bool:
    """Add an object of typing: an import, or a type variable."""
    if type(value).__module__ != "typing":
        return False
    if isinstance(value, TypeVar):
        draft.imports.append("from typing import TypeVar")
        draft.definitions.append(f'{name} = TypeVar("{value.__name__}")')
        return True
    typing = importlib.import_module("typing")
    if getattr(typing, name, None) is not value:
        return False
    draft.imports.append(f"from typing import {name}")
    return True


def _file(draft: Draft, file: str, write: Callable[[Path], Any], text: str) -> str:
    """Add a file that the module reads; return the expression, which has `{}` for the file's path."""
    stem, suffix = Path(file).stem, Path(file).suffix
    number = 2
    while file in draft.files:
        file, number = f"{stem}{number}{suffix}", number + 1
    draft.files[file] = write
    draft.imports.append("from pathlib import Path")
    if text.startswith("json."):
        draft.imports.append("import json")
    place = f'Path(__file__).parent / "{file}"'
    return text.format(f"({place})" if "{}." in text else place)


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value) and type(value) in (list, dict, str)
    except (TypeError, ValueError):
        return False


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _save_array(value: Any, path: Path) -> None:
    import numpy as np

    np.save(path, value, allow_pickle=False)
