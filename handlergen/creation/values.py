"""Live values as source text: literals, constructor calls, or files beside the module that it reads."""

from __future__ import annotations

import enum
import functools
import json
import logging
import math
import pprint
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

from handlergen.creation.draft import Draft

if TYPE_CHECKING:
    from handlergen.creation.source_code import Writer

_LONGEST = 20
"""Lines of a literal; longer values go to a file."""
_WIDTH = 110
_PLAIN = (str, int, float, bool, complex, bytes, type(None), type(Ellipsis))
_HERE = "Path(__file__).parent"


class NotWritable(Exception):
    """A value cannot be written down; the message says what it is, `advice` what to do."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


def expression(value: Any, name: str, writer: Writer) -> str:
    """Return an expression for a value; its imports, definitions and files are added to the writer's draft.

    Args:
        name: The variable's, after which a file is called.

    Raises:
        NotWritable: There is none.
    """
    if _is_plain(value):
        return _literal(value, name, writer.draft)
    for write in (_of_library, _of_structure, _of_tensor, _of_pretrained):
        text = write(value, name, writer)
        if text is not None:
            return text
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise NotWritable(f"a {kind} cannot be written down as source", _advice(value))


def _advice(value: Any) -> str:
    if hasattr(value, "read") or hasattr(value, "fileno"):
        return "read what is needed into a variable, and use that"
    if hasattr(value, "predict") or hasattr(value, "forward"):
        return "give the model itself, and the function as predict=, with the parameters model and inputs"
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return "write a function with def that makes it and calls it"
    return "use plain values (numbers, texts, lists, dicts, arrays, tensors), or make it in a function with def"


def _is_plain(value: Any) -> bool:
    if type(value) in _PLAIN:
        return True
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    return type(value) is dict and all(_is_plain(key) and _is_plain(each) for key, each in value.items())


def _literal(value: Any, name: str, draft: Draft) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    text = pprint.pformat(value, width=_WIDTH, sort_dicts=False, compact=True)
    if text.count("\n") < _LONGEST and len(text) < _LONGEST * _WIDTH and not _has_odd_floats(value):
        return text
    if type(value) is bytes:
        draft.files[f"{file_name(name)}.bin"] = lambda target: target.write_bytes(value)
        draft.imports.append("from pathlib import Path")
        return f'({_HERE} / "{file_name(name)}.bin").read_bytes()'
    convert = type(value).__name__ if type(value) in (tuple, set, frozenset) else ""
    as_json = list(value) if convert else value
    encoded = json.dumps(as_json, ensure_ascii=False, indent=1)
    if not _is_equal(json.loads(encoded), as_json):
        return text  # keys that are no texts, tuples inside
    file = f"{file_name(name)}.json"
    draft.files[file] = lambda target: target.write_text(encoded + "\n", encoding="utf-8")
    draft.imports += ["import json", "from pathlib import Path"]
    loaded = f'json.loads(({_HERE} / "{file}").read_text(encoding="utf-8"))'
    return f"{convert}({loaded})" if convert else loaded


def _has_odd_floats(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_odd_floats, (*value.keys(), *value.values())))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_has_odd_floats, value))


def _is_equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other) or one != one  # noqa: PLR0124 - NaN


def file_name(name: str) -> str:
    """Return a variable's name as the name of a file."""
    return name.strip("_").lower() or "data"


def _of_library(value: Any, name: str, writer: Writer) -> str | None:  # noqa: PLR0911 - a table of types
    """Return an expression for values of the standard library, numpy's scalars and torch's small objects."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return f"{writer.reference(kind)}.{value.name}" if value.name else None
    if isinstance(value, PurePath):
        if value.is_absolute():
            raise NotWritable(
                f"the path {value} is one of this machine", "read the file into a variable, and use that instead"
            )
        writer.draft.imports.append("from pathlib import Path")
        return f"Path({str(value)!r})"
    if isinstance(value, re.Pattern):
        writer.draft.imports.append("import re")
        flags = value.flags & ~re.UNICODE.value if isinstance(value.pattern, str) else value.flags
        return f"re.compile({value.pattern!r}{f', {flags}' if flags else ''})"
    if isinstance(value, logging.Logger):
        writer.draft.imports.append("import logging")
        return "logging.getLogger(__name__)" if value.name == "__main__" else f"logging.getLogger({value.name!r})"
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device", "Size"):
        writer.draft.imports.append("import torch")
        return f"torch.{value!r}" if kind.__name__ in ("device", "Size") else repr(value)
    if kind.__module__ in ("datetime", "decimal", "fractions", "uuid"):
        writer.draft.imports.append(f"import {kind.__module__}")
        text = repr(value)
        return text if text.startswith(kind.__module__) else f"{kind.__module__}.{text}"
    if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", (1,)):
        writer.draft.imports.append("import numpy")
        return f"numpy.{kind.__name__}({value.item()!r})"
    return None


def _of_structure(value: Any, name: str, writer: Writer) -> str | None:  # noqa: PLR0911 - a table of types
    """Return an expression for containers, dataclasses, named tuples, partial functions, classes and functions."""
    kind = type(value)
    within = functools.partial(expression, name=name, writer=writer)
    if isinstance(value, type) or writer.is_function(value):
        return writer.reference(value)
    if isinstance(value, ModuleType):
        return writer.module(value)
    if kind in (list, tuple, set, frozenset):
        inside = ", ".join(map(within, value))
        return f"[{inside}]" if kind is list else f"{kind.__name__}([{inside}])"
    if kind is dict:
        return "{" + ", ".join(f"{within(key)}: {within(each)}" for key, each in value.items()) + "}"
    if isinstance(value, functools.partial):
        writer.draft.imports.append("import functools")
        given = [*map(within, value.args), *(f"{key}={within(each)}" for key, each in value.keywords.items())]
        return f"functools.partial({', '.join([within(value.func), *given])})"
    if is_dataclass(value):
        given = [f"{each.name}={within(getattr(value, each.name))}" for each in fields(value) if each.init]
        return f"{writer.reference(kind)}({', '.join(given)})"
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        given = [f"{key}={within(each)}" for key, each in zip(kind._fields, value, strict=True)]
        return f"{writer.reference(kind)}({', '.join(given)})"
    if isinstance(value, Mapping) and kind.__module__ == "collections":
        if kind.__name__ == "defaultdict":
            factory = value.default_factory  # type: ignore[attr-defined]
            inner = within(dict(value))
            writer.draft.imports.append("import collections")
            return f"collections.defaultdict({'None' if factory is None else within(factory)}, {inner})"
        writer.draft.imports.append("import collections")
        return f"collections.{kind.__name__}({within(dict(value))})"
    return None


def _of_tensor(value: Any, name: str, writer: Writer) -> str | None:
    """Return an expression for arrays and tensors, which are kept in a file."""
    bases = {f"{base.__module__}.{base.__name__}" for base in type(value).__mro__}
    file = file_name(name)
    if "numpy.ndarray" in bases and type(value).__module__ == "numpy":
        if value.dtype.hasobject:
            raise NotWritable("an array of objects cannot be written down", "make a list of it, or an array of numbers")
        import numpy

        writer.draft.files[f"{file}.npy"] = lambda target: numpy.save(target, value, allow_pickle=False)
        writer.draft.imports += ["import numpy", "from pathlib import Path"]
        return f'numpy.load({_HERE} / "{file}.npy")'
    if bases & {"torch.Tensor", "torch._tensor.Tensor"}:
        import torch

        kept = value.detach().cpu().clone()
        writer.draft.files[f"{file}.pt"] = lambda target: torch.save(kept, target)
        writer.draft.imports += ["import torch", "from pathlib import Path"]
        return f'torch.load({_HERE} / "{file}.pt", weights_only=True)'
    return None


def _of_pretrained(value: Any, name: str, writer: Writer) -> str | None:
    """Return an expression for tokenizers and fitted transformers, which write and read files of their own."""
    kind = type(value)
    top = kind.__module__.partition(".")[0]
    if top == "transformers" and hasattr(value, "save_pretrained") and not hasattr(value, "forward"):
        writer.draft.files[file_name(name)] = value.save_pretrained
        writer.draft.imports += [f"from transformers import {kind.__name__}", "from pathlib import Path"]
        return f'{kind.__name__}.from_pretrained({_HERE} / "{file_name(name)}")'
    if top == "sklearn" and hasattr(value, "get_params"):
        from handlergen.creation.tabular import add_estimator, load_text

        file = f"{file_name(name)}.skops"
        trusted = add_estimator(writer.draft, value, file)
        writer.draft.imports.append("from pathlib import Path")
        return load_text(writer.draft, file, trusted, _HERE)
    return None


def is_installed(path: str) -> bool:
    """Return whether a file belongs to Python or an installed package."""
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(part in path for part in ("site-packages", "dist-packages")) or any(
        path.startswith(f"{place}/") for place in places
    )


def own_source(module: str) -> Path | None:
    """Return the file, or the package's directory, of a module of the user's own; None for any other.

    Built-in modules and the ones that are installed, also as an editable install outside `site-packages`' directory but
    named there, are not the user's.
    """
    top = sys.modules.get(module.partition(".")[0])
    file = getattr(top, "__file__", None)
    if top is None or not file or is_installed(file):
        return None
    path = Path(file)
    return path.parent if path.name == "__init__.py" else path
