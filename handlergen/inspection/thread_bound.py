"""Warnings of what is bound to the main thread, in hooks that also run in other threads (docs/placement.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from handlergen.inspection.findings import Source
from handlergen.inspection.stage_code import HOOKS
from handlergen.inspection.stage_rule import Site, hooks_of
from handlergen.runtime.contract import Contract
from handlergen.runtime.pipeline.thread_hints import EVENT_LOOP, SIGNAL, SQLITE, THREAD_LOCAL

_CALLS = {"signal.signal": SIGNAL, "signal.setitimer": SIGNAL, "asyncio.get_event_loop": EVENT_LOOP}


def thread_warnings(source: Source, contract: Contract) -> tuple[str, ...]:
    """Return a warning for each thing bound to a thread that preprocess or postprocess uses."""
    try:
        return tuple(
            f"{site.file}:{site.line}: {hook} uses {name}{site.helpers}, which is bound to a thread, and runs in "
            f"several threads when requests come at once. {advice}"
            for hook, name, site, advice in _found(source, contract)
        )
    except RecursionError:  # nested too deeply to be followed
        return ()


def _found(source: Source, contract: Contract) -> Iterator[tuple[str, str, Site, str]]:
    names, roles = hooks_of(source, contract)
    for role in (role for role in HOOKS if role in roles and role in contract.hooks):
        mine = roles[role]
        for name, site in mine.found["uses"].items():
            if name in _CALLS and not contract.hooks[role].is_async:
                yield mine.name, name, site, _CALLS[name]
        for name, site in mine.found["reads"].items():
            for value in names.made.get(name, ()):
                made = names.code(value).library(value.func) if isinstance(value, ast.Call) else ""
                if made == "sqlite3.connect" and not _shared(value):
                    yield mine.name, name, site, SQLITE
                elif made == "threading.local":
                    yield mine.name, name, site, THREAD_LOCAL


def _shared(connect: ast.AST) -> bool:
    keywords = connect.keywords if isinstance(connect, ast.Call) else []
    return any(
        each.arg is None
        or (each.arg == "check_same_thread" and not (isinstance(each.value, ast.Constant) and each.value.value))
        for each in keywords
    )
