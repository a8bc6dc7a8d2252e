"""scikit-learn objects as files of skops, or pickles: with the caller's own classes and functions in the module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.modules import add_source
from handlergen.creation.requirements import requirement_of
from handlergen.errors import HandlergenError
from handlergen.project.weights_file import pickled_names

MODULE = "model"
"""The name of the module that a project is written with."""


def add_estimator(draft: Draft, estimator: Any, file: str) -> list[str]:
    """Add a scikit-learn object to a draft, as a file of skops or, by the suffix `.joblib`, as a pickle.

    Classes and functions of `__main__` that it is made of become part of the module, and the file refers to them there.

    Returns:
        The types in a file of skops besides those that skops trusts; see `load_text`.

    Raises:
        HandlergenError: skops is not installed or cannot write it, or it refers to something that has no name.
    """
    pickled = file.endswith(".joblib")
    library = "joblib" if pickled else "skops"
    if not is_installed(library):
        raise HandlergenError(
            f"scikit-learn models are written with {library}, which is not installed here",
            hint=f"pip install {library}" + ("" if pickled else '; or write format="joblib", a pickle'),
        )
    names = _names_in_pickle(estimator) if pickled else _names_in_skops(estimator)
    _write_own(draft, names, estimator)
    dump = importlib.import_module("joblib" if pickled else "skops.io").dump
    draft.files[file] = lambda path: _relabelled(names, partial(dump, estimator, path))
    draft.settings.setdefault("requirements", []).extend(map(requirement_of, ("sklearn", library)))
    return [] if pickled else [_new_name(name) for name in names]


def load_text(draft: Draft, file: str, trusted: Collection[str], directory: str) -> str:
    """Return the expression that loads a file of `add_estimator`; its import is added to the draft.

    Args:
        directory: An expression: the file's directory, a `Path`.
    """
    if file.endswith(".joblib"):
        draft.imports.append("import joblib")
        return f'joblib.load({directory} / "{file}")'
    draft.imports.append("import skops.io")
    argument = ""
    if trusted:
        stem = "".join(letter if letter.isalnum() else "_" for letter in Path(file).stem.upper())
        constant = "TRUSTED" if stem == "MODEL" else f"TRUSTED_IN_{stem}"
        lines = "".join(f'    "{name}",\n' for name in trusted)
        draft.definitions.append(f"# Types in {file} besides those that skops trusts.\n{constant} = [\n{lines}]")
        argument = f", trusted={constant}"
    return f'skops.io.load({directory} / "{file}"{argument})'


def _names_in_skops(estimator: Any) -> list[str]:
    import skops.io

    try:
        names: list[str] = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
    except Exception as error:  # types that skops cannot write; it raises several kinds
        raise HandlergenError(
            f"skops cannot write this {type(estimator).__name__}: {error}",
            hint='format="joblib" writes a pickle instead, which runs code of the file when it is loaded.',
        ) from error
    return sorted(names)


def _names_in_pickle(estimator: Any) -> list[str]:
    import joblib

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.joblib"
        joblib.dump(estimator, path)
        return sorted({f"{module}.{name}" for module, name in pickled_names(path)})


def _write_own(draft: Draft, names: Iterable[str], estimator: Any) -> None:
    """Write the classes and functions of `__main__` that an estimator refers to into the draft."""
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        if not _is_main(name):
            add_source(draft, module)
            continue
        if "<" in name:
            what = "a lambda" if "<lambda>" in name else "something that a function defines"
            raise HandlergenError(
                f"this {type(estimator).__name__} refers to {what} ({last}), which no file can name",
                hint="Define it with def at the top level of the script or in a cell of the notebook.",
            )
        draft.write(draft, last, _found(name))


def _is_main(name: str) -> bool:
    return name.partition(".")[0] == "__main__" or "<" in name


def _found(name: str) -> Any:
    found: Any = sys.modules["__main__"]
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _new_name(name: str) -> str:
    return f"{MODULE}.{name.partition('.')[2]}" if _is_main(name) else name


def _relabelled(names: Collection[str], write: Callable[[], Any]) -> None:
    """Write a file in which what is `__main__`'s has the name that it gets in the project."""
    own = [_found(name) for name in names if _is_main(name)]
    with _in_module(own):
        write()


@contextmanager
def _in_module(objects: Collection[Any]) -> Iterator[None]:
    for each in objects:
        each.__module__ = MODULE
    here = sys.modules.get(MODULE)
    stand_in: Any = type(sys)(MODULE)
    for each in objects:
        setattr(stand_in, each.__name__, each)
    if objects:
        sys.modules[MODULE] = stand_in  # pickle looks there whether the name leads back to the object
    try:
        yield
    finally:
        for each in objects:
            each.__module__ = "__main__"
        if objects and here is None:
            del sys.modules[MODULE]
        elif objects and here is not None:
            sys.modules[MODULE] = here


def is_installed(module: str) -> bool:
    """Return whether a module can be imported here."""
    return importlib.util.find_spec(module) is not None
