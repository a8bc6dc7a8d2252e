"""What ties preprocess or postprocess to the process that has the model: reasons, from what the hooks do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from handlergen.placement.instance import instance_reasons, is_constructed
from handlergen.placement.knowledge import is_standard, same_state
from handlergen.placement.result import Reason
from handlergen.placement.roles import BUILDS, PREDICTS, STAGES, Roles
from handlergen.placement.values import CONTEXT, Events, Library, Place, Site, Value
from handlergen.placement.wording import line, reason
from handlergen.runtime.contract import Contract

_BINDS_UNSEEN = (
    "`globals",
    "`exec",
    "`eval",
    "`__import__",
    "`vars",
    "`__dict__",
    "`setattr",
    "`sys.",
    "`__globals__",
    "`__builtins__",
    "`__closure__",
    "`import_module",
    "`importlib.",
    "`inspect.",
    "`gc.",
    "`builtins.",
)
"""Ways to bind names that the source does not show; in load and predict only these matter."""

_RETURN_IT = {
    "preprocess": "Let preprocess return it: predict receives what preprocess returns.",
    "postprocess": "Let predict return it: postprocess receives what predict returns.",
}


def reasons(contract: Contract, roles: Roles) -> Iterator[Reason]:
    """Every reason, hook by hook; several may name the same thing."""
    stages = [hook for hook in STAGES if hook in roles.events]
    for hook in stages:
        yield from _parameters(contract, roles, hook)
        yield from _devices(roles, hook)
        for role in BUILDS:
            if role in roles.events:
                yield from _built(contract, roles, hook, role)
        for role in PREDICTS:
            if role in roles.events:
                yield from _shared(roles, hook, role)
        if roles.kind is not None:
            yield from instance_reasons(contract, roles, hook)
        yield from _cached(roles, hook)
        yield from _unseen(roles, hook)
    if stages:
        yield from _around(contract, roles)


def _parameters(contract: Contract, roles: Roles, role: str) -> Iterator[Reason]:
    hook = contract.hooks[role]
    asked = {parameter.source for parameter in hook.parameters}
    site = Site(roles.file, hook.line)
    if "model" in asked:
        yield reason(
            hook.name,
            "model",
            site,
            f"{hook.name} asks for `model`, which only the predictor process has",
            "Do in predict what needs it, or make what this hook needs of it in setup(context).",
        )
    if "device" in asked:
        yield _on_device(hook.name, "device", site)


def _devices(roles: Roles, role: str) -> Iterator[Reason]:
    for name, site in roles.events[role].device.items():
        yield _on_device(roles.names[role], name, site)


def _on_device(hook: str, name: str, site: Site) -> Reason:
    return reason(
        hook,
        name,
        site,
        f"{hook} uses {name}{{through}}, and workers leave the device to the predictor process",
        "Leave it out: inputs are on the device when predict gets them, outputs on the CPU when it has returned.",
    )


def _built(contract: Contract, roles: Roles, role: str, builder: str) -> Iterator[Reason]:
    """What load builds, or may, and the hook reads."""
    if builder == "__init__" and is_constructed(contract):
        return  # a worker's instance is constructed too
    hook, writer = roles.names[role], roles.names[builder]
    events = roles.events[builder]
    for found in _conflicts(roles, roles.events[role], events):
        if isinstance(found.what, Place) and found.what.kind == "self" and found.what in events.rebinds:
            continue  # `instance` has more to say of it
        yield reason(
            hook,
            found.name,
            found.read,
            f"{hook} uses {{name}}{{through}}, which {writer} {found.verb} in {line(found.written, found.read)}",
            _fix(contract, found),
        )


def _fix(contract: Contract, found: _Conflict) -> str:
    setup = "pre_model_fn(model_dir)" if contract.form == "sagemaker" else "setup(context)"
    if contract.form == "model-class" or (isinstance(found.what, Place) and found.what.kind == "self"):
        return f"Make {found.name} where the module is imported, and leave it so."
    if isinstance(found.what, str) or found.what.kind == "context":
        return f"Do that in {setup}, which every worker runs."
    return f"Make {found.name} in {setup}, which every worker runs, or where the module is imported."


def _shared(roles: Roles, role: str, predicting: str) -> Iterator[Reason]:
    """State that passes between the hook and predict behind the runtime's back, in either direction."""
    hook, predict = roles.names[role], roles.names[predicting]
    mine, theirs = roles.events[role], roles.events[predicting]
    for found in _conflicts(roles, mine, theirs):
        yield reason(
            hook,
            found.name,
            found.read,
            f"{hook} uses {{name}}{{through}}, which {predict} {found.verb} in {line(found.written, found.read)}",
            _RETURN_IT["postprocess"] if role == "postprocess" else "Keep what predict changes to predict.",
        )
    for found in _conflicts(roles, theirs, mine):
        yield reason(
            hook,
            found.name,
            found.written,
            f"{hook} {found.verb} {{name}}{{through}}, which {predict} uses in {line(found.read, found.written)}",
            _RETURN_IT["preprocess"] if role == "preprocess" else "Keep what predict uses to predict.",
        )


@dataclass(frozen=True)
class _Conflict:
    """What one role reads and another one changes: a place, or a library's name."""

    what: Place | str
    read: Site
    verb: str
    written: Site

    @property
    def name(self) -> str:
        return self.what if isinstance(self.what, str) else self.what.shown


def _conflicts(roles: Roles, reader: Events, writer: Events) -> Iterator[_Conflict]:
    for place, site in reader.reads.items():
        if place in writer.rebinds:
            yield _Conflict(place, site, "assigns", writer.rebinds[place])
            continue
        reached = _reach(roles, place) if writer.mutates else ()
        where = next((site for value, site in writer.mutates.items() if value in reached), None)
        if where is not None:
            yield _Conflict(place, site, "changes", where)
    for value, where in writer.mutates.items():
        if isinstance(value, Library):
            for name, site in (reader.libraries | _path_reads(reader)).items():
                if same_state(value.name, name):
                    yield _Conflict(value.name, site, "changes", where)


def _path_reads(events: Events) -> dict[str, Site]:
    """An import inside a function reads `sys.path`."""
    site = next(iter(events.imports.values()), None)
    return {"sys.path": site} if site else {}


def _reach(roles: Roles, place: Place) -> set[Value]:
    heap = roles.walker.heap
    if place.path is not None:
        return heap.reach(roles.walker.globals_of(place.path).names.get(place.name, ()))
    if place.kind == "context":
        return heap.reach(heap.get(CONTEXT, place.name))
    members = roles.walker.member(roles.kind, place.name) if roles.kind else None
    found = heap.reach([*heap.get(roles.instance, place.name), *(members or ())])
    return found - {roles.instance, roles.kind}


def _cached(roles: Roles, role: str) -> Iterator[Reason]:
    """A function with a cache, called where the model is too: each process would fill a cache of its own."""
    prepared = roles.events["setup"].cached if "setup" in roles.events else {}
    hook = roles.names[role]
    for function, site in roles.events[role].cached.items():
        name = getattr(function.node, "name", "lambda")
        for other in (*BUILDS, *PREDICTS):
            if other in roles.events and function in roles.events[other].cached and function not in prepared:
                yield reason(
                    hook,
                    name,
                    site,
                    f"{hook} uses {{name}}(){{through}}, whose cached result {roles.names[other]} uses too: each "
                    f"worker would make another",
                    f"If that is meant, call {name}() in setup(context) too.",
                )


def _unseen(roles: Roles, role: str) -> Iterator[Reason]:
    hook = roles.names[role]
    for what, site in roles.events[role].dynamic.items():
        yield reason(
            hook,
            what.strip("`"),
            site,
            f"{hook} uses {what}{{through}}: what that reads, the source does not show",
            "Write the names out, or say stages: worker if nothing of it comes from load.",
        )


def _moved(roles: Roles) -> Iterator[Reason]:
    """Files of the project that are imported from where only a changed `sys.path` finds them."""
    for hook in STAGES:
        events = roles.events.get(hook, Events())
        for name, site in events.libraries.items():
            top = name.partition(".")[0]
            if not is_standard(top) and roles.walker.hidden(top):
                yield reason(
                    roles.names[hook],
                    top,
                    site,
                    f"{roles.names[hook]} uses {top}{{through}}, which is imported through a changed sys.path and "
                    f"cannot be read",
                    f"Name it under packages, and import {top} without that.",
                )


def _around(contract: Contract, roles: Roles) -> Iterator[Reason]:
    """What other hooks and the import do that a worker must not, or that cannot be followed."""
    for role in (*BUILDS, *PREDICTS):
        for what, site in roles.events[role].dynamic.items() if role in roles.events else ():
            if what.startswith(_BINDS_UNSEEN):
                yield reason(
                    roles.names[role],
                    what.strip("`"),
                    site,
                    f"{roles.names[role]} uses {what}{{through}}: what that binds, the source does not show",
                    "Write the names out, or say stages: worker if preprocess and postprocess use nothing of it.",
                )
    if "setup" in roles.events:
        if any(parameter.source == "device" for parameter in contract.hooks["setup"].parameters):
            yield _on_device(roles.names["setup"], "device", Site(roles.file, contract.hooks["setup"].line))
        yield from _devices(roles, "setup")
    for name, site in roles.walker.imported.device.items():
        yield reason(
            "import",
            name,
            site,
            f"the module uses {name} when it is imported{{through}}, and workers leave the device to the predictor "
            f"process",
            "Do it in load.",
        )
    if Library("sys.path") in roles.walker.imported.mutates:
        yield from _moved(roles)
    if not roles.settled:
        yield Reason(roles.file, 0, "preprocess", "", (), "the source could not be read to the end", "")
