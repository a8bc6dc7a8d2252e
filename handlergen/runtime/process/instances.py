"""What is otherwise in the loaded instance of the served class than in the one that a worker has (`stand_in`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import MemberDescriptorType
from typing import Any

from ..hooks import Hooks
from .fingerprint import Fingerprints

_NONE = object()
_MODULES_OWN = ("_parameters", "_buffers", "_modules")
"""Where a torch.nn.Module has the attributes that are not in its `__dict__`."""


def bound_to(hooks: Hooks, role: str) -> Any:
    """The instance whose method a hook is; None when it is no method of one."""
    hook = getattr(hooks[0], role)
    instance = getattr(hook.function, "__self__", None) if hook is not None else None
    return None if isinstance(instance, type) else instance


def differences(
    loaded: Any,
    stand_in: Callable[[], Any],
    names: Iterable[str],
    *,
    served: type | None,
    taken: Fingerprints,
) -> Iterator[str]:
    """The attributes that a worker's instance lacks, or has with another value.

    Args:
        loaded: The predictor process's instance.
        stand_in: Makes the worker's; called only when there is something to compare.
        names: Of the attributes that matter.
        served: The worker's is of this class.
        taken: Takes fingerprints.

    Raises:
        Exception: What `stand_in` raises.
    """
    wanted = sorted(names)
    if type(loaded) is served and all(_of_instance(loaded, name) is _NONE for name in wanted):
        return
    other = stand_in()
    for name in wanted:
        mine, theirs = _value(loaded, name), _value(other, name)
        cached = isinstance(inspect.getattr_static(type(other), name, None), functools.cached_property)
        if mine is theirs or cached:
            continue
        if mine is _NONE or theirs is _NONE or not taken.of(mine).same(taken.of(theirs)):
            yield name


def _value(instance: Any, name: str) -> Any:
    own = _of_instance(instance, name)
    return inspect.getattr_static(type(instance), name, _NONE) if own is _NONE else own


def _of_instance(instance: Any, name: str) -> Any:
    """What the instance itself has under the name; nothing of its class's, and no property is asked."""
    space = getattr(instance, "__dict__", {})
    if name in space:
        return space[name]
    for part in _MODULES_OWN:
        if name in space.get(part, ()):
            return space[part][name]
    slot = inspect.getattr_static(type(instance), name, None)
    if isinstance(slot, MemberDescriptorType):
        try:
            return slot.__get__(instance)
        except AttributeError:
            return _NONE
    return _NONE
