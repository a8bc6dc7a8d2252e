"""What the forms have in common: misspelt hooks, and what a `predict` that streams can be combined with."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.source_module import Function, MethodNode, call_kind, decorated_with, first_yield
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Hook

_METHODS = ("preprocess", "predict", "postprocess", "forward", "handle")
_SERVED = frozenset(("preprocess", "predict", "postprocess", "FLOW", "model_fn", "input_fn", "predict_fn", "output_fn"))


@dataclass(frozen=True)
class Form:
    """One way to write a module, as inspection knows it. `handlergen.runtime.forms.table` has the rest.

    Attributes:
        name: As in the setting `form`.
        recognise: Return the evidence that a source has this form, for messages ("`predict`, line 3"), or None.
        inspect: Return the source's contract, or every problem of it.
    """

    name: str
    recognise: Callable[[Source], str | None]
    inspect: Callable[[Source], Findings]


def defines_model(source: Source) -> bool:
    """Return whether a source has something of its own to serve, which a class that it imports must not replace.

    That is a module-level hook, a flow, or a class with one of the methods that forms call.
    """
    if not _SERVED.isdisjoint(source.module.bindings):
        return True
    return any(kind.method(name) for kind in source.tree.classes(source.module) for name in _METHODS)


def near_names(
    names: Iterable[str], hooks: Iterable[str], bound: Iterable[str], others: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return (name, missing hook) pairs that look like misspelt hooks.

    `names` are defined, of the `hooks` those in `bound`. `others` has names for a hook in other systems.
    """
    hooks, there = tuple(hooks), set(bound)
    absent = {hook.replace("_", ""): hook for hook in hooks if hook not in there}
    pairs = []
    for name in names:
        if name.startswith("_") or name in hooks:
            continue
        other = (others or {}).get(name)
        plain = name.lower().replace("_", "")
        near = difflib.get_close_matches(plain, absent, n=1, cutoff=0.85)
        near = near or [hook for hook in absent if sorted(hook) == sorted(plain)]  # laod
        if other and other not in there:
            pairs.append((name, other))
        elif near:
            pairs.append((name, absent[near[0]]))
    return pairs


def rename(names: Iterable[str], hook: str) -> str:
    """Return advice to rename the function that looks like a missing hook; "" if none does."""
    near = [name for name, _ in near_names(names, (hook,), ())]
    return f"Is `{near[0]}` meant to be it? Rename it to {hook}." if near else ""


def misspelt(
    file: str,
    lines: Mapping[str, int],
    hooks: Iterable[str],
    bound: Iterable[str],
    others: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a warning for each function that is named almost like a hook, and is therefore not called.

    `lines` are the functions that are defined, each with its line; see `near_names`.
    """
    return [
        f"{file}:{lines[name]}: `{name}` is not called by handlergen. If it is meant to be {hook}, rename it."
        for name, hook in near_names(lines, hooks, bound, others)
    ]


def method_lines(node: ast.ClassDef) -> dict[str, int]:
    """Return the methods that a class defines itself, each with its line."""
    return {item.name: item.lineno for item in node.body if isinstance(item, MethodNode)}


def yields(node: Function) -> bool:
    """Return whether it is a generator function. A generator that is only returned shows when it runs."""
    return call_kind(node) in ("generator", "async_generator")


def check_returns(file: str, name: str, node: Function, findings: Findings, *, may_yield: bool = False) -> None:
    """Report a hook whose call does not return its value."""
    if decorated_with(node, "contextmanager", "asynccontextmanager"):
        findings.problem(file, node.lineno, f"{name} is a context manager", "Return the value instead.")
    elif yields(node) and not may_yield:
        fix = "Return the value instead of yielding it."
        findings.problem(file, first_yield(node), f"{name} is a generator", fix)


def check_request(file: str, predict: Hook, settings: Settings, findings: Findings, *, source: str, asks: str) -> None:
    """Report a `predict` that asks for the request (`source` of a parameter) if one call serves several requests."""
    if settings.batch in ("list", "collate") and source in {each.source for each in predict.parameters}:
        message = f"predict {asks}, but with batch: {settings.batch} one call serves several requests"
        fix = "Write batch: each, or let preprocess put what predict needs into its inputs."
        findings.problem(file, predict.line, message, fix)


def check_stream(file: str, hooks: Mapping[str, Function], settings: Settings, findings: Findings) -> None:
    """Report what a `predict` that streams cannot be combined with: postprocess, and batches.

    `hooks` are the functions that were found, by role.
    """
    predict = hooks.get("predict")
    if predict is None or not yields(predict):
        return
    line = first_yield(predict)
    if "postprocess" in hooks:
        seen = f"postprocess (line {hooks['postprocess'].lineno}) would never see them"
        message = f"predict is a generator, whose chunks are sent as they are made, so that {seen}"
        fix = "Do the work of postprocess inside predict, or collect what predict yields and return it."
        findings.problem(file, line, message, fix)
    if settings.batch in ("list", "collate"):
        message = f"predict is a generator, but with batch: {settings.batch} one call serves several requests"
        findings.problem(file, line, message, "Write batch: each.")
    if settings.batch_size > 1:
        message = (
            "the streams of a batch are made one after another, and no client's stream ends before the whole batch"
        )
        message = f"predict streams, and batch_size is {settings.batch_size}: {message} has ended. Write batch_size: 1."
        findings.warn(file, line, message)
