"""What ties preprocess or postprocess to the process that has the model: five rules, applied by reading the source.

1. A hook that asks for `model` or `device`, or names an accelerator, is tied.
2. In a class, a hook that uses `self` for more than its own methods and class constants is tied.
3. A hook is tied by what it reads and `load` or `predict` assigns or changes, and the other way round for `predict`.
4. `load` or `predict` calling a library for its effect ties the hooks that use what the call affects.
5. What the source does not show (`globals()`, `exec`, `getattr` with a computed name, ...) ties.

Hooks are followed by name: whatever function, class or module-level value of the project a hook mentions, it may use
wholly. The files of a project are one namespace: what two of them call alike counts as one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from handlergen.errors import Problem
from handlergen.inspection.findings import Source
from handlergen.inspection.source_module import dotted
from handlergen.inspection.stage_code import FUNCTION, assigned, decorated, stored
from handlergen.inspection.stage_libraries import affects
from handlergen.inspection.stage_names import HOOKS, HookUse, Location, NamedProject
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract

_BUILDS = (
    *("__init__", "setup_environment", "load", "warmup", "load_state_dict", "_load_from_state_dict"),
    *("set_extra_state", "__setstate__", "to", "_apply", "eval", "train"),
)
_PREDICTS = ("predict", "explain", "collate")
_CLASS_ROLES = {
    "model-class": ("__init__", "setup_environment", "load", "preprocess", "predict", "postprocess"),
    "module": (*_BUILDS, *_PREDICTS, "preprocess", "postprocess"),
}
_FREE = "they use nothing that load builds"


@dataclass(frozen=True)
class Reason:
    """Why preprocess or postprocess belongs into the process that has the model.

    Attributes:
        rule: 1 to 5, as at the top of this file.
        file: As in messages; empty when the reason is none of the source's lines.
        line: 1-based, of the use; 0 likewise.
        hook: The hook that uses it.
        name: What it uses, as the source writes it: `TOKENIZER`, `self.labels`, `model`.
        through: The helpers by which the hook comes there, outermost first.
        what: The sentence, without place and without full stop.
        fix: How to free the stage: whole sentences.
    """

    rule: int
    file: str
    line: int
    hook: str
    name: str
    through: tuple[str, ...]
    what: str
    fix: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        place = f"{self.place}: " if self.file else ""
        return f"{place}rule {self.rule}: {self.what}. {self.fix}".rstrip()


@dataclass(frozen=True)
class Placement:
    """Where the stages of a request run.

    Attributes:
        predictor: `process` (one a device, with the only copy of the model) or `worker` (a copy in each).
        stages: Where preprocess and postprocess run: `worker`, or `predictor` (the process).
        reasons: What ties preprocess or postprocess to the process that has the model; empty when nothing does,
            and with `predictor: worker`, where it makes no difference.
        why: What decided, in words: `they use nothing that load builds`.
        problems: Settings that the source does not allow.
        warnings: Settings that have no effect, or against which there are reasons.
    """

    predictor: str
    stages: str
    reasons: tuple[Reason, ...] = ()
    why: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What `--json` says of it."""
        reasons = [asdict(reason) for reason in self.reasons]
        return {"predictor": self.predictor, "stages": self.stages, "why": self.why, "reasons": reasons}

    @property
    def summary(self) -> str:
        """One line: what runs where."""
        if self.predictor == "worker":
            return "every worker predicts for itself"
        if self.stages == "worker":
            return "one process a device has the model; preprocess and postprocess run in the workers"
        return "one process a device has the model, and runs preprocess and postprocess too"


def place(source: Source, contract: Contract, settings: Settings) -> Placement:
    """Resolve `predictor` and `stages`; the source is read, never imported.

    Args:
        source: As inspection read it.
        contract: What inspection found in it.
        settings: As given.
    """
    if contract.form == "flow":
        return _flow(source, settings)
    if settings.predictor == "worker":
        warnings: tuple[str, ...] = ()
        if settings.stages != "auto":
            warnings = (
                f"stages ({settings.stages}) has no effect with predictor: worker, where each worker does all "
                f"three. Write predictor: process, or leave it out.",
            )
        return Placement("worker", "worker", why="predictor: worker", warnings=warnings)
    if settings.predictor == "auto" and _has_no_model(contract, settings):
        return Placement("worker", "worker", why="neither load nor weights: no model to share")
    if settings.stages == "predictor":
        return Placement("process", "predictor", why="stages: predictor")
    found = find_reasons(source, contract)
    if settings.stages == "auto":
        free = _FREE if any(role in contract.hooks for role in HOOKS) else "there is neither of them"
        return Placement(
            "process", "predictor" if found else "worker", found, found[0].what if found else free
        )
    problems = tuple(
        Problem(reason.file, reason.line, f"{reason.what}; stages: worker leaves it without", reason.fix)
        for reason in found
        if reason.name == "model"
    )
    overruled = tuple(
        f"{reason} It runs in the workers all the same, as stages: worker says."
        for reason in found
        if reason.name != "model"
    )
    return Placement("process", "worker", found, "stages: worker", problems, overruled)


def _has_no_model(contract: Contract, settings: Settings) -> bool:
    """Whether a process for the model would only make the way longer."""
    return contract.form == "functions" and "load" not in contract.hooks and not settings.weights


def _flow(source: Source, settings: Settings) -> Placement:
    why = "several models; a copy of each in each worker"
    if settings.predictor == "process" and settings.stages != "worker":
        return Placement("process", "predictor", why="several models, whose stages run beside them")
    if settings.predictor != "process":
        warnings: tuple[str, ...] = ()
        if settings.stages != "auto":
            warnings = (
                f"stages ({settings.stages}) has no effect for a flow, whose stages all run in each worker. "
                f"Leave it out.",
            )
        return Placement("worker", "worker", why=why, warnings=warnings)
    problem = Problem(
        source.module.file,
        0,
        "stages: worker is not for the form flow: its stages are called with their models",
        "Write stages: predictor, or leave it out.",
    )
    return Placement("worker", "worker", why=why, problems=(problem,))


def find_reasons(source: Source, contract: Contract) -> tuple[Reason, ...]:
    """What ties preprocess or postprocess to the process that has the model; empty when nothing does."""
    if not any(hook in contract.hooks for hook in HOOKS):
        return ()
    try:
        found = list(_Rules(source, contract).reasons())
    except RecursionError:
        what = "the source is nested too deeply to be followed"
        return (Reason(5, source.module.file, 0, "", "", (), what, ""),)
    first: dict[tuple[str, str], Reason] = {}
    for reason in found:
        first.setdefault((reason.hook, reason.name), reason)
    return tuple(first.values())


class _Rules:
    """The five rules, for one module."""

    def __init__(self, source: Source, contract: Contract) -> None:
        self.contract, self.file = contract, source.module.file
        self.project = project = NamedProject(source)
        self.ancestry = list(self._ancestry(contract.class_name)) if contract.class_name else []
        project.served = frozenset(kind.name for kind in self.ancestry)
        self.roles = {
            role: self._role(role) for role in ("setup", *_BUILDS, *_PREDICTS, *HOOKS) if self._has(role)
        }

    def _ancestry(self, name: str, seen: frozenset[str] = frozenset()) -> Iterator[ast.ClassDef]:
        """A class and its bases in the project, in the order in which Python looks."""
        for _, kind in self.project.classes.get(name, ()):
            yield kind
            for base in kind.bases:
                inner = dotted(base).rpartition(".")[2]
                inner = self.project.main.originals.get(inner, inner)
                if inner not in seen | {name}:
                    yield from self._ancestry(inner, seen | {name})

    def _of_class(self, role: str) -> bool:
        form = self.contract.form
        if role == "collate" and self.contract.details.get("collate") == "function":
            return False
        if form == "module" and role == "load":
            return False
        return role in _CLASS_ROLES.get(form, ())

    def _has(self, role: str) -> bool:
        return (
            role in self.contract.hooks or role == "collate" or (self._of_class(role) and role not in HOOKS)
        )

    def _role(self, role: str) -> HookUse:
        hook = self.contract.hooks.get(role)
        name = hook.name if hook else role
        project = self.project
        if self._of_class(role):
            written = [
                part for kind in self.ancestry for part in kind.body if getattr(part, "name", "") == name
            ]
            codes = [
                project.code(project.where[node], node, method=True, name=name)
                for node in written
                if node in project.where
            ]
        else:
            codes = list(project.codes(project.main.originals.get(name, name)))
        found = HookUse(project, name, codes, self.ancestry)
        if hook and not codes:
            found.unknown.setdefault(
                f"{name}, which is no function that can be read", Location(self.file, hook.line)
            )
        return found

    def reasons(self) -> Iterator[Reason]:
        """Every reason, hook by hook; several may name the same thing."""
        for role in HOOKS:
            hook = self.contract.hooks.get(role)
            if hook is None:
                continue
            mine, location = self.roles[role], Location(self.file, hook.line)
            if role == "preprocess" and hook.streams:
                what = "{hook} yields, and a generator cannot go to another process"
                yield self._reason(
                    5, mine, "yield", location, what, "Return a list instead, and it runs in the workers."
                )
            asked = {parameter.source for parameter in hook.parameters}
            if "model" in asked:
                fix = "Do in predict what needs it, or make what this hook needs of it in setup(context)."
                what = "{hook} asks for `model`, which only the predictor process has"
                yield self._reason(1, mine, "model", location, what, fix)
            yield from self._device(mine, {"device": location} if "device" in asked else {})
            yield from self._self(mine)
            for other in (*_BUILDS, *_PREDICTS):
                if other in self.roles:
                    yield from self._shared(role, mine, other, self.roles[other])
                    yield from self._effects(mine, self.roles[other])
            for name, where in mine.unknown.items():
                what = "{hook} uses {name}{through}: what that reads, the source does not show"
                fix = "Write the names out, or say stages: worker if nothing of it comes from load."
                yield self._reason(5, mine, name, where, what, fix)
        yield from self._around()

    def _reason(  # noqa: PLR0917 - in the order of the sentence
        self, rule: int, role: HookUse, name: str, location: Location, what: str, fix: str
    ) -> Reason:
        said = (
            what.replace("{hook}", role.name).replace("{name}", name).replace("{through}", location.helpers)
        )
        return Reason(rule, location.file, location.line, role.name, name, location.through, said, fix)

    def _device(self, role: HookUse, asked: dict[str, Location]) -> Iterator[Reason]:
        fix = "Leave it out: inputs are on the device when predict gets them, outputs on the CPU when it has returned."
        for name, location in {**asked, **role.device}.items():
            what = "{hook} uses {name}{through}, and workers leave the device to the predictor process"
            yield self._reason(1, role, name, location, what, fix)

    def _self(self, role: HookUse) -> Iterator[Reason]:
        """A worker's instance is made without its constructor: it has its class's methods and constants."""
        written = [part for kind in self.ancestry for part in kind.body if isinstance(part, FUNCTION)]
        keep = ("cached_property", "cache", "lru_cache")  # each process would keep a result of its own
        methods = {part.name for part in written if not decorated(part, *keep)}
        constants = {
            name
            for kind in self.ancestry
            for part in kind.body
            if isinstance(part, ast.stmt)
            for target, _ in assigned(part)
            for name in stored(target)
        }
        if any(kind.decorator_list for kind in self.ancestry):
            constants.clear()  # a decorator such as `dataclass` makes attributes of the instance of them
        others = [other for name, other in self.roles.items() if name != "setup"]
        for name, location in role.own.items():
            set_by = next(
                ((other, other.attributes[name]) for other in others if name in other.attributes), None
            )
            if (name in methods or name in constants) and set_by is None:
                continue
            shown = f"self.{name}" if name else "self"
            said = ", not only for a method or a constant of its class"
            if set_by is not None:
                said = f", which {set_by[0].name} sets in {set_by[1].seen_from(location)}"
            elif name:
                said = f", which is neither a method nor a constant of class {self.contract.class_name}"
            fix = f"Make {name or 'what it needs'} a class attribute, or a constant of the module, and leave it so."
            yield self._reason(2, role, shown, location, f"{{hook}} uses {{name}}{{through}}{said}", fix)

    def _shared(self, role: str, mine: HookUse, other: str, theirs: HookUse) -> Iterator[Reason]:
        setup = self._setup
        for name, read, verb, written in _conflicts(mine, theirs):
            fix = f"Make {name} in {setup}, which every worker runs, or where the module is imported."
            if name.startswith("context."):
                fix = f"Do that in {setup}, which every worker runs."
            elif self.contract.form == "model-class":
                fix = f"Make {name} where the module is imported, and leave it so."
            if other in _PREDICTS:
                fix = (
                    _RETURN_IT["postprocess"]
                    if role == "postprocess"
                    else "Keep what predict changes to predict."
                )
            what = (
                f"{{hook}} uses {{name}}{{through}}, which {theirs.name} {verb} in {written.seen_from(read)}"
            )
            yield self._reason(3, mine, name, read, what, fix)
        for name, read, verb, written in _conflicts(theirs, mine) if other in _PREDICTS else ():
            fix = _RETURN_IT["preprocess"] if role == "preprocess" else "Keep what predict uses to predict."
            what = (
                f"{{hook}} {verb} {{name}}{{through}}, which {theirs.name} uses in {read.seen_from(written)}"
            )
            yield self._reason(3, mine, name, written, what, fix)
        prepared = self.roles["setup"].kept if "setup" in self.roles else {}
        for name in mine.kept.keys() & theirs.kept.keys() - prepared.keys():
            what = f"{{hook}} uses {{name}}(){{through}}, whose cached result {theirs.name} uses too"
            fix = f"Each worker would make another. If that is meant, call {name}() in {setup} too."
            yield self._reason(3, mine, name, mine.kept[name], what, fix)

    @property
    def _setup(self) -> str:
        return "pre_model_fn(model_dir)" if self.contract.form == "sagemaker" else "setup(context)"

    def _effects(self, mine: HookUse, theirs: HookUse) -> Iterator[Reason]:
        fix = f"Do that in {self._setup}, which every worker runs, or where the module is imported."
        if self.contract.form == "model-class":  # it has no setup
            fix = "Do that where the module is imported."
        for effect, written in theirs.effects.items():
            used = next((name for name in mine.uses if affects(effect, name)), None)
            if used is not None:
                location = mine.uses[used]
                sets = f"{theirs.name} calls or sets in {written.seen_from(location)}"
                what = f"{{hook}} uses {used}{{through}}, which may depend on {{name}}, which {sets}"
                yield self._reason(4, mine, effect, location, what, fix)

    def _around(self) -> Iterator[Reason]:
        """What load, predict, setup and the import do that a worker must not, or that cannot be followed."""
        for other in (*_BUILDS, *_PREDICTS):
            for name, location in self.roles[other].binds.items() if other in self.roles else ():
                what = "{hook} uses {name}{through}: what that binds, the source does not show"
                fix = "Write the names out, or say stages: worker if preprocess and postprocess use nothing of it."
                yield self._reason(5, self.roles[other], name, location, what, fix)
        if "setup" in self.roles:
            hook = self.contract.hooks["setup"]
            asks = any(parameter.source == "device" for parameter in hook.parameters)
            yield from self._device(
                self.roles["setup"], {"device": Location(self.file, hook.line)} if asks else {}
            )
        for name, location in self.project.devices_at_import():
            what = "the module uses {name} when it is imported, and workers leave the device to the predictor process"
            yield Reason(
                1,
                location.file,
                location.line,
                "import",
                name,
                (),
                what.replace("{name}", name),
                "Do it in load.",
            )


_RETURN_IT = {
    "preprocess": "Let preprocess return it: predict receives what preprocess returns.",
    "postprocess": "Let predict return it: postprocess receives what predict returns.",
}


def _conflicts(reader: HookUse, writer: HookUse) -> Iterator[tuple[str, Location, str, Location]]:
    """Names that one role reads and another one changes."""
    for name, (verb, written) in writer.changes.items():
        for read, location in reader.reads.items():
            if (
                read == name
                or (name == "context" and read.startswith("context."))
                or (read == "context" and name.startswith("context."))
            ):
                yield read if read != "context" else name, location, verb, written
