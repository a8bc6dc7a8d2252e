"""Attributes of the served instance: which of them a worker's instance has too.

A worker's `Model` is made without running its constructor; a worker's `nn.Module` is constructed on the device `meta`,
where tensors have a shape and no values, and gets no weights.
"""

from __future__ import annotations

from collections.abc import Iterator

from handlergen.placement.knowledge import differs, is_standard
from handlergen.placement.result import Reason
from handlergen.placement.roles import BUILDS, PREDICTS, Roles
from handlergen.placement.values import Class, Function, Place, Site, Thing
from handlergen.placement.wording import line, reason
from handlergen.runtime.contract import Contract

_OF_ANY_OBJECT = ("__class__", "__doc__", "__module__", "__name__")
_NEEDS_VALUES = ("item", "tolist", "numpy", "cpu", "cuda", "to", "load_state_dict", "from_pretrained")
"""Methods that a tensor without values does not have, or a module without them cannot take."""
_TORCH_LOADS = ("torch.load", "torch.hub", "torch.jit", "torch.from_numpy", "torch.cuda", "torch.package")
_WORKS_WITHOUT_VALUES = ("torch", "numpy")


def is_constructed(contract: Contract) -> bool:
    """Does a worker construct the class, without weights? With a load of its own, only that could make it."""
    return contract.form == "module" and "load" not in contract.hooks


def instance_reasons(contract: Contract, roles: Roles, role: str) -> Iterator[Reason]:
    """Attributes that preprocess or postprocess reads, and that a worker's instance lacks."""
    made = is_constructed(contract)
    found = False
    for place, site in roles.events[role].reads.items():
        if place.kind != "self" or place.name in _OF_ANY_OBJECT:
            continue
        if not _there(roles, place, constructed=made):
            found = True
            yield _missing(contract, roles, role, place, site, constructed=made)
    if made and not found:
        yield from _cannot_be_made(contract, roles, role)


def _there(roles: Roles, place: Place, *, constructed: bool) -> bool:
    """Has a worker's instance the attribute, with the same value?"""
    assert roles.kind is not None
    members = roles.walker.member(roles.kind, place.name)
    builders = [r for r in (*BUILDS, *PREDICTS) if r in roles.events and place in roles.events[r].rebinds]
    kinds = set(roles.walker.ancestry(roles.kind))
    if any(kinds & set(roles.events[r].mutates) for r in (*BUILDS, *PREDICTS) if r in roles.events):
        return False  # load sets attributes of the class
    if members is not None and not builders:
        methods = bool(members) and all(isinstance(value, Function | Class) for value in members)
        return methods or not _rewritten(roles, roles.kind)
    if not constructed:
        # What only preprocess and postprocess set is set in the same worker.
        return not builders and any(
            place in roles.events[r].rebinds for r in ("preprocess", "postprocess") if r in roles.events
        )
    return builders == ["__init__"] and _plain(roles, place)


def _rewritten(roles: Roles, kind: Class) -> bool:
    """May the class have other attributes than it shows? Decorators and foreign bases turn some into fields."""
    base = roles.walker.foreign_base(kind)
    return bool(kind.node.decorator_list) or (base is not None and not base.startswith("torch.nn."))


def _plain(roles: Roles, place: Place) -> bool:
    """Is all that the constructor puts there made of plain values? Then it is the same on the device `meta`."""
    heap, walker = roles.walker.heap, roles.walker
    for value in heap.reach(heap.get(roles.instance, place.name)):
        if isinstance(value, Thing):
            if not value.plain and (value.kind is None or walker.foreign_base(value.kind)):
                return False
            if differs(value.maker):
                return False
        elif not isinstance(value, Function | Class):
            return False
    return True


def _missing(
    contract: Contract, roles: Roles, role: str, place: Place, site: Site, *, constructed: bool
) -> Reason:
    hook, name = roles.names[role], place.shown
    where = next(
        (
            (roles.names[r], roles.events[r].rebinds[place])
            for r in ((*BUILDS[1:], *PREDICTS, BUILDS[0]) if constructed else (*BUILDS, *PREDICTS))
            if r in roles.events and place in roles.events[r].rebinds
        ),
        None,
    )
    if place.name == "__call__":
        name, said = "self(...)", "and only the predictor process has the weights"
    elif where is not None:
        said = f"which {where[0]} sets in {line(where[1], site)}"
    else:
        said = f"which class {contract.class_name} does not define itself"
    if contract.form == "module" and constructed:
        fix = (
            f"Keep to methods and to attributes that __init__ makes of plain values: numbers, strings, lists, dicts; "
            f"or make {place.name} a constant of the module."
        )
        if place.name == "__call__":
            fix = "Do in forward what needs the weights."
    else:
        fix = f"Make {place.name} a class attribute, or a constant of the module."
    return reason(hook, name, site, f"{hook} uses {name}{{through}}, {said}", fix)


def _cannot_be_made(contract: Contract, roles: Roles, role: str) -> Iterator[Reason]:
    """What the constructor calls that may need tensors with values."""
    assert roles.kind is not None
    events = roles.events.get("__init__")
    base = roles.walker.foreign_base(roles.kind)
    if base is not None and not base.startswith("torch.nn."):
        yield _unmade(contract, roles, base, Site(roles.file, roles.kind.node.lineno), "inherits from")
    for name, site in events.calls.items() if events else ():
        known = is_standard(name) or name.partition(".")[0] in _WORKS_WITHOUT_VALUES
        if not known or name.startswith(_TORCH_LOADS):
            yield _unmade(contract, roles, name, site, "calls")
    for name, site in events.valued.items() if events else ():
        yield _unmade(contract, roles, name, site, "needs a tensor's values for")
    for name, site in events.methods.items() if events else ():
        if name in _NEEDS_VALUES:
            yield _unmade(contract, roles, f".{name}", site, "calls")


def _unmade(contract: Contract, roles: Roles, name: str, site: Site, does: str) -> Reason:
    return reason(
        "__init__",
        name,
        site,
        f"{contract.class_name} {does} {name}{{through}} when it is made, which may not work in a worker, where it "
        f"is made without weights",
        "Make the module in load(context), or keep __init__ to torch.nn and plain values.",
    )
