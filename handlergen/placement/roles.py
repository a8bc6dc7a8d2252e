"""The hooks of a module as roles: each read with what the runtime passes it, again until nothing new comes up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from handlergen.findings import Source
from handlergen.placement.unread_calls import Arguments
from handlergen.placement.values import (
    CONTEXT,
    MODEL,
    NOTHING,
    SELF,
    Accelerator,
    Class,
    Events,
    Function,
    Site,
    Thing,
    Values,
)
from handlergen.placement.walker import Walker
from handlergen.runtime.contract import Contract, Hook

STAGES = ("preprocess", "postprocess")
RESTORES = (
    "load_state_dict",
    "_load_from_state_dict",
    "set_extra_state",
    "__setstate__",
    "to",
    "_apply",
    "eval",
    "train",
)
"""Methods of an `nn.Module` that run when it gets its weights, its device and its mode, if its class has its own."""
BUILDS = ("__init__", "setup_environment", "load", *RESTORES, "warmup")
"""Roles that run once, where the model is."""
PREDICTS = ("predict", "explain", "collate")
"""Roles that run where the model is, for each request."""

_ORDER = ("setup", *BUILDS, "preprocess", *PREDICTS, "postprocess")
_CLASS_HOOKS = {
    "model-class": ("load", *STAGES, "predict"),
    "module": (*STAGES, "predict", "explain", "collate"),
}
_ROUNDS = 8


@dataclass
class Roles:
    """What was read.

    Attributes:
        walker: Its heap and globals.
        file: The module's, for messages.
        events: By role.
        kind: The class that is served, for the forms that have one.
        names: What a role's hook is called in the source.
        settled: Reading it once more would bring up nothing new.
    """

    walker: Walker
    file: str
    events: dict[str, Events] = field(default_factory=dict)
    kind: Class | None = None
    names: dict[str, str] = field(default_factory=dict)
    settled: bool = False

    @property
    def instance(self) -> Thing:
        return Thing(SELF, self.kind)


def read_roles(source: Source, contract: Contract) -> Roles:
    """Read every hook of a contract, and what they call."""
    walker = Walker(source.tree)
    roles = Roles(walker, source.module.file)
    walker.module(source.module)
    size = -1
    for _ in range(_ROUNDS):
        walker.reread_modules()
        _read_once(roles, source, contract)
        now = walker.heap.size + walker.names + sum(events.size for events in roles.events.values())
        if now == size:
            roles.settled = True
            break
        size = now
    return roles


def _read_once(roles: Roles, source: Source, contract: Contract) -> None:
    walker = roles.walker
    if contract.class_name:
        values = walker.read_global(source.module.path, contract.class_name, Site(source.module.file, 0))
        roles.kind = next((value for value in values if isinstance(value, Class)), None)
    returned: dict[str, Values] = {}
    hooks = dict(contract.hooks)
    for role in _ORDER:
        hook = hooks.get(role)
        if hook is None and not _beside_the_hooks(role, contract):
            continue
        events = roles.events.setdefault(role, Events())
        walker.role(events, loading=role in BUILDS)
        roles.names[role] = hook.name if hook else role
        returned[role] = _read_hook(roles, source.module.path, contract, role, returned)


def _beside_the_hooks(role: str, contract: Contract) -> bool:
    """Roles without a hook of their own in the contract."""
    if role == "__init__":
        return contract.form in ("module", "model-class")
    if role == "setup_environment":
        return contract.form == "model-class"
    if role in RESTORES:
        return contract.form == "module"
    return role == "collate" and contract.form == "module" and bool(contract.details.get("collate"))


def _read_hook(
    roles: Roles, path: Path, contract: Contract, role: str, returned: dict[str, Values]
) -> Values:
    """Read what a role runs; what it may return."""
    walker, hook = roles.walker, contract.hooks.get(role) or Hook(role)
    site = Site(roles.file, hook.line)
    of_class = role in ("__init__", "setup_environment", *RESTORES, *_CLASS_HOOKS.get(contract.form, ()))
    if role == "collate" and contract.details.get("collate") == "function":
        of_class = False
    if of_class and roles.kind is not None:
        members = walker.member(roles.kind, hook.name) or NOTHING
        functions = walker.bound(members, roles.instance)
    elif of_class:
        functions = NOTHING
    else:
        functions = walker.read_global(path, hook.name, site)
    given = {
        "context": frozenset({CONTEXT}),
        "model": returned.get("load", NOTHING) | {MODEL},
        "device": frozenset({Accelerator()}),
        "inputs": returned.get("preprocess", NOTHING),
        "outputs": returned.get("predict", NOTHING),
    }
    found: Values = NOTHING
    read = False
    for function in functions:
        if isinstance(function, Function):
            read = True
            found |= walker.enter(function, _passed(function, hook, given), site)
        elif isinstance(function, Thing) and function.kind is not None:  # a decorator's, with __call__
            for method in walker.bound(walker.member(function.kind, "__call__") or NOTHING, function):
                if isinstance(method, Function):
                    read = True
                    found |= walker.enter(method, Arguments(others=NOTHING.union(*given.values())), site)
    if not read and (hook.line or not of_class):
        walker.events.dynamic.setdefault(f"`{hook.name}`, which is no function that can be read", site)
    return found


def _passed(function: Function, hook: Hook, given: dict[str, Values]) -> Arguments:
    values = {parameter.name: given.get(parameter.source, NOTHING) for parameter in hook.parameters}
    if function.node.args.vararg or function.node.args.kwarg:  # a wrapper of the hook
        return Arguments(others=NOTHING.union(*values.values()))
    return Arguments(named=values)
