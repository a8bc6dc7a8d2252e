"""What ties preprocess or postprocess to the process that has the model: five rules, applied by reading the source.

1. A hook that asks for `model` or `device`, or names an accelerator, is tied.
2. In a class, a hook that uses `self` for more than its own methods and class constants is tied.
3. A hook that reads a name which `load` or `predict` assigns or changes is tied, or changes one that `predict` reads.
4. `load` or `predict` calling a library for its effect ties the hooks that use what the call affects.
5. What the source does not show (`globals()`, `exec`, `getattr` with a computed name, ...) ties.

Hooks are followed by name, as `stage_code` says.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from handlergen.errors import Problem
from handlergen.inspection.findings import Source
from handlergen.inspection.source_module import MethodNode, dotted, statements_at_import
from handlergen.inspection.source_tree import assigned
from handlergen.inspection.stage_code import HOOKS, MAKES, PREDICTS, Code, Names, affects
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract

_VERBS = ("assigns", "changes", "may change")


@dataclass(frozen=True)
class Reason:
    """Why preprocess or postprocess belongs into the process that has the model.

    Attributes:
        rule: 1 to 5, as at the top of this file.
        file: As in messages.
        line: 1-based, of the use; 0 if the reason is none of the source's lines.
        hook: The hook that uses it.
        name: What it uses, as the source writes it: `TOKENIZER`, `self.labels`, `model`.
        what: The sentence, without place and without full stop.
        fix: How to free the stage: whole sentences.
    """

    rule: int
    file: str
    line: int
    hook: str
    name: str
    what: str
    fix: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.place}: rule {self.rule}: {self.what}. {self.fix}".rstrip()


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


def place(source: Source, contract: Contract, settings: Settings) -> Placement:  # noqa: PLR0911 - one return a case
    """Resolve `predictor` and `stages`; the source is read, never imported."""
    predictor, stages, flow = settings.predictor, settings.stages, contract.form == "flow"
    if flow and predictor == "process":
        if stages != "worker":
            return Placement("process", "predictor", why="several models, whose stages run beside them")
        what = "stages: worker is not for the form flow: its stages are called with their models"
        problem = Problem(source.module.file, 0, what, "Write stages: predictor, or leave it out.")
        return Placement("worker", "worker", problems=(problem,))
    if flow or predictor == "worker":
        why = "several models; a copy of each in each worker" if flow else "predictor: worker"
        where = "with predictor: worker, where each worker does all three. Write predictor: process, or leave it out."
        if flow:
            where = "for a flow, whose stages all run in each worker. Leave it out."
        warnings = (f"stages ({stages}) has no effect {where}",) if stages != "auto" else ()
        return Placement("worker", "worker", why=why, warnings=warnings)
    loads = contract.form != "functions" or "load" in contract.hooks or settings.weights
    if predictor == "auto" and not loads:  # a process would only make the way longer
        return Placement("worker", "worker", why="neither load nor weights: no model to share")
    if stages == "predictor":
        return Placement("process", "predictor", why="stages: predictor")
    found = find_reasons(source, contract)
    if stages == "auto":
        hooks = any(role in contract.hooks for role in HOOKS)
        free = "they use nothing that load builds" if hooks else "there is neither of them"
        return Placement("process", "predictor" if found else "worker", found, found[0].what if found else free)
    without = "stages: worker leaves it without"
    missing = [reason for reason in found if reason.name == "model"]
    problems = [Problem(each.file, each.line, f"{each.what}; {without}", each.fix) for each in missing]
    overruled = [
        f"{reason} It runs in the workers all the same, as stages: worker says."
        for reason in found
        if reason not in missing
    ]
    return Placement("process", "worker", found, "stages: worker", tuple(problems), tuple(overruled))


@dataclass(frozen=True)
class Site:
    """Where something happens: file for messages, line, and the functions by which a hook comes there."""

    file: str
    line: int
    through: tuple[str, ...] = ()

    @property
    def helpers(self) -> str:
        return f" (through {' and '.join(self.through)})" if self.through else ""

    def seen_from(self, other: Site) -> str:
        """`line 12`, with the file when it is another one, and with the helpers."""
        return (f"line {self.line}" if self.file == other.file else f"{self.file}:{self.line}") + self.helpers


class _Mentions:
    """A hook and all that it mentions: by kind of fact, names with the first site of each."""

    def __init__(self, names: Names, name: str, codes: Iterable[Code]) -> None:
        self.name = name
        self.found: dict[str, dict[str, Site]] = defaultdict(dict)
        waiting: list[tuple[Code, tuple[str, ...]]] = [(code, ()) for code in codes]
        seen: set[Code] = set()
        for code, through in waiting:
            if code in seen:
                continue
            seen.add(code)
            served = names.parents.get(code.node) in names.served
            for kind, lines in code.found.items():
                for found, line in lines.items() if kind != "own" or served else ():
                    self.found[kind].setdefault(found, Site(code.file.source.file, line, through))
            inner = [inner for read in code.found["reads"] for inner in names.codes(read)]
            if served:
                methods = (part for part in names.served_body if isinstance(part, MethodNode))
                inner += [names.code(method) for method in methods if method.name in code.found["own"]]
            for other in inner:
                waiting.append((other, (*through, other.node.name) if isinstance(other.node, MethodNode) else through))
        for verb in _VERBS:
            for changed, site in list(self.found[verb].items()):
                for linked in names.links.get(changed, ()):
                    self.found["may change"].setdefault(linked, site)

    def conflicts(self, reader: _Mentions) -> Iterator[tuple[str, str, Site, Site]]:
        """Names that it assigns or changes and another hook reads: the verb, and where each of them does."""
        for verb in _VERBS:
            for name in sorted(self.found[verb].keys() & reader.found["reads"].keys()):
                yield name, verb, self.found[verb][name], reader.found["reads"][name]

    def reason(self, rule: int, name: str, site: Site, what: str, fix: str) -> Reason:
        return Reason(rule, site.file, site.line, self.name, name, f"{self.name} {what}", fix)


def find_reasons(source: Source, contract: Contract) -> tuple[Reason, ...]:
    """What ties preprocess or postprocess to the process that has the model; empty when nothing does."""
    if not any(hook in contract.hooks for hook in HOOKS):
        return ()
    first: dict[tuple[str, str], Reason] = {}
    try:
        for reason in _Rules(source, contract).reasons():
            first.setdefault((reason.hook, reason.name), reason)
    except RecursionError:
        return (Reason(5, source.module.file, 0, "", "", "the source is nested too deeply to be followed", ""),)
    return tuple(first.values())


def hooks_of(source: Source, contract: Contract) -> tuple[Names, Mapping[str, _Mentions]]:
    """Return the names of a project, and by role what its hooks mention."""
    rules = _Rules(source, contract)
    return rules._names, rules._roles


class _Rules:
    """The five rules, for one module."""

    def __init__(self, source: Source, contract: Contract) -> None:
        self._contract, self._file = contract, source.module.file
        self._names = names = Names(source, contract.class_name)
        apart = {"setup"}  # functions of the module, where the other hooks are methods
        if contract.form == "module":
            apart |= {"load", *(["collate"] if contract.details.get("collate") == "function" else [])}
        written: dict[str, list[ast.AST]] = {}
        for role in (*HOOKS, *PREDICTS, *MAKES, "setup"):
            hook = contract.hooks.get(role)
            name = hook.name if hook else role
            if contract.class_name and role not in apart:
                written[role] = [part for part in names.served_body if getattr(part, "name", "") == name]
            elif hook or role == "collate":
                written[role] = [code.node for code in names.codes(names.main.originals.get(name, name))]
            names.hooks.update(dict.fromkeys(written.get(role, ()), role))
        self._written = written
        self._roles: dict[str, _Mentions] = {}
        for role, nodes in written.items():
            hook = contract.hooks.get(role)
            if hook or nodes:
                found = _Mentions(names, hook.name if hook else role, map(names.code, nodes))
                self._roles[role] = found
                if hook and not nodes:
                    what = f"{found.name}, which is no function that can be read"
                    found.found["unknown"][what] = Site(self._file, hook.line)

    def reasons(self) -> Iterator[Reason]:
        """Every reason; several may name the same thing."""
        setup = "pre_model_fn(model_dir)" if self._contract.form == "sagemaker" else "setup(context)"
        there = f"in {setup}, which every worker runs, or where the module is imported."
        if self._contract.form in ("model-class", "lit-api"):  # they have no setup for every worker
            there = "where the module is imported."
        for role in (role for role in HOOKS if role in self._roles):
            mine = self._roles[role]
            yield from self._asks(role, mine)
            yield from self._device(role, mine)
            yield from self._self(mine)
            for other in (other for other in (*MAKES, *PREDICTS) if other in self._roles):
                yield from self._shared(mine, self._roles[other], there, predicts=other in PREDICTS)
        for role, mine in self._roles.items():
            does, unless = "assigns", "preprocess and postprocess use nothing of it"
            if role in HOOKS:
                does, unless = "reads", "nothing of it comes from load"
            for name, site in mine.found["unknown"].items() if role != "setup" else ():
                what = f"uses {name}{site.helpers}: what that {does}, the source does not show"
                yield mine.reason(5, name, site, what, f"Write the names out, or say stages: worker if {unless}.")
        yield from self._input_data()
        if "setup" in self._roles:
            yield from self._device("setup", self._roles["setup"])
        for name, site in self._devices_at_import():
            what = f"the module uses {name} when it is imported, and workers leave the device to the predictor process"
            yield Reason(1, site.file, site.line, "import", name, what, "Do it in load.")

    def _asks(self, role: str, mine: _Mentions) -> Iterator[Reason]:
        """Rule 1 for the parameter `model`, and a preprocess that yields."""
        hook = self._contract.hooks[role]
        site = Site(self._file, hook.line)
        if role == "preprocess" and hook.streams:
            what = "yields, and a generator cannot go to another process"
            yield mine.reason(5, "yield", site, what, "Return a list instead, and it runs in the workers.")
        if any(parameter.source == "model" for parameter in hook.parameters):
            fix = "Do in predict what needs it, or make what this hook needs of it in setup(context)."
            yield mine.reason(1, "model", site, "asks for `model`, which only the predictor process has", fix)

    def _input_data(self) -> Iterator[Reason]:
        """Rule 3 for what predict changes in place, where postprocess asks for `input_data`: a worker has a copy."""
        hook, predict = self._contract.hooks.get("postprocess"), self._contract.hooks.get("predict")
        if hook is None or predict is None or all(each.source != "input_data" for each in hook.parameters):
            return
        names = {each.name for each in predict.parameters if each.source in ("inputs", "data")}
        for code in map(self._names.code, self._written.get("predict", ())):
            if code.harm_to(names, part=False, seen=set()) == "changes":
                what = f"takes input_data, which may be what {predict.name} changes in place (line {predict.line})"
                fix = f"Let {predict.name} change a copy."
                yield self._roles["postprocess"].reason(3, "input_data", Site(self._file, hook.line), what, fix)

    def _device(self, role: str, mine: _Mentions) -> Iterator[Reason]:
        hook = self._contract.hooks[role]
        asked = {parameter.source for parameter in hook.parameters} & {"device"}
        fix = "Leave it out: inputs are on the device when predict gets them, outputs on the CPU when it has returned."
        sites = {**dict.fromkeys(asked, Site(self._file, hook.line)), **mine.found["device"]}
        for name, site in sites.items():
            what = f"uses {name}{site.helpers}, and workers leave the device to the predictor process"
            yield mine.reason(1, name, site, what, fix)

    def _self(self, mine: _Mentions) -> Iterator[Reason]:
        """Rule 2."""
        body = self._names.served_body
        fields = any(kind.decorator_list for kind in self._names.served)  # a dataclass makes attributes of them
        constants = {name for part in body for name, _ in assigned(part) if not fields}
        methods = {part.name for part in body if isinstance(part, MethodNode) and _is_plain(part)}
        for name, site in mine.found["own"].items():
            setters = [each for key, each in self._roles.items() if key != "setup" and name in each.found["sets"]]
            if name in methods or (name in constants and not setters):
                continue
            said = ", not only for a method or a constant of its class"
            if name and setters:
                said = f", which {setters[0].name} sets in {setters[0].found['sets'][name].seen_from(site)}"
            elif name:
                said = f", which is neither a method nor a constant of class {self._contract.class_name}"
            shown = f"self.{name}" if name else "self"
            fix = f"Make {name or 'what it needs'} a class attribute, or a constant of the module, and leave it so."
            yield mine.reason(2, shown, site, f"uses {shown}{site.helpers}{said}", fix)

    def _shared(self, mine: _Mentions, theirs: _Mentions, there: str, *, predicts: bool) -> Iterator[Reason]:
        """Rules 3 and 4, between a hook and one of those that load or predict."""
        for name, verb, written, read in theirs.conflicts(mine):
            fix = f"Make {name} {there}" if not predicts else "Let predict return it, or keep it to predict."
            what = f"uses {name}{read.helpers}, which {theirs.name} {verb} in {written.seen_from(read)}"
            yield mine.reason(3, name, read, what, fix)
        for name, verb, written, read in mine.conflicts(theirs) if predicts else ():
            fix = "Let preprocess return what predict needs of it, and predict what postprocess needs."
            what = f"{verb} {name}{written.helpers}, which {theirs.name} uses in {read.seen_from(written)}"
            yield mine.reason(3, name, written, what, fix)
        for effect, written in theirs.found["effects"].items():
            used = next((name for name in mine.found["uses"] if affects(effect, name)), None)
            if used is not None:
                site = mine.found["uses"][used]
                what = f"uses {used}{site.helpers}, which may depend on {effect}"
                what = f"{what}, which {theirs.name} calls or sets in {written.seen_from(site)}"
                yield mine.reason(4, effect, site, what, f"Do that {there}")

    def _devices_at_import(self) -> Iterator[tuple[str, Site]]:
        """Calls that may make a context on an accelerator when the module is imported."""
        for file in self._names.at_import:
            for statement in statements_at_import(file.source.tree.body):
                calls = ast.walk(statement) if not isinstance(statement, MethodNode | ast.ClassDef) else ()
                for call in (node for node in calls if isinstance(node, ast.Call)):
                    code = self._names.code(call)
                    if code.library(call.func) == "torch.device":
                        continue
                    if _Mentions(self._names, "import", [code]).found["device"]:
                        yield ast.unparse(call.func), Site(file.source.file, call.lineno)


def _is_plain(method: MethodNode) -> bool:
    """Whether a method keeps no result of its own, as `cached_property` does in each process."""
    return {dotted(item) for item in method.decorator_list} <= {"property", "staticmethod", "classmethod"}
