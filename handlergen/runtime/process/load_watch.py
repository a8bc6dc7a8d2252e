"""Whether loading the model changes what preprocess and postprocess read, seen while it happens.

With `stages: worker` both run in TorchServe's workers, which run `setup` and never `load`. That they get on without it
was read in the source when the archive was made, and no reading of Python is complete. So the predictor process, which
does load the model, looks at what the two can reach before it and after it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..context import Context
from ..contract import Bundle
from ..hooks import Hooks
from ..user_module import open_user_module
from .fingerprint import Fingerprint, Fingerprints
from .instances import bound_to, differences
from .own_files import OwnFiles
from .reach import Place, Reach, Reached

_ROLES = ("preprocess", "postprocess")
_CLASS_FORMS = ("model-class", "module")
_TOLD = 3

_Looked = dict[Place, tuple[Reached, Fingerprint]]


class Change(NamedTuple):
    """Something that a hook reads, and that is not in a worker as it is in the predictor process.

    Attributes:
        what: A sentence.
        fix: What to do about it: sentences.
    """

    what: str
    fix: str


class LoadWatch:
    """Watches one model being loaded.

    Args:
        bundle: Contract and settings; there is nothing to see with other stages than `worker`.
        model_dir: Where the archive is unpacked.
        logger: Gets the warning. It is told for debugging only why the watch saw nothing.
    """

    def __init__(self, bundle: Bundle, model_dir: Path, logger: logging.Logger) -> None:
        self._bundle = bundle
        self._logger = logger
        self._model_dir = model_dir
        self._context: Context | None = None
        self._files: OwnFiles
        self._taken: Fingerprints
        self._before: dict[str, _Looked] = {}

    def begin(self, context: Context) -> None:
        """Look at what there is after `setup` and before `load`. Nothing is raised.

        Args:
            context: The hooks'.
        """
        if self._bundle.settings.stages != "worker":
            return
        try:
            self._files = OwnFiles(self._model_dir)
            self._taken = Fingerprints(self._files)  # only now: its time runs from here
            self._before = {role: self._look(reach, context, {}) for role, reach in self._reaches()}
            self._context = context
        except BaseException as error:
            self._give_up(error)

    def verdict(self, hooks: Hooks) -> str:
        """Look again, and warn of what has changed. Nothing is raised.

        Args:
            hooks: As they are called now.

        Returns:
            Why the workers are to relay whole requests, although the archive says `stages: worker`; empty when they
            are not: nothing was seen, or the archive's author wrote that himself.
        """
        changes = self._changes(hooks)
        if not changes:
            return ""
        settings = self._bundle.settings
        said = " ".join(f"{each.what}. {each.fix}" for each in changes[:_TOLD])
        so = (
            "Until then preprocess and postprocess run in the predictor process, as with stages: predictor."
            if settings.stages_auto
            else "They run in the workers all the same, as stages: worker says."
        )
        self._logger.warning("handlergen: model %s: %s %s", settings.name, said, so)
        return changes[0].what if settings.stages_auto else ""

    def _changes(self, hooks: Hooks) -> list[Change]:
        context, self._context = self._context, None
        if context is None:
            return []
        found: list[Change] = []
        kept, self._taken = (
            self._taken,
            Fingerprints(self._files),
        )  # what was there is not to be collected yet
        try:
            for role, reach in self._reaches():
                found += self._changed(role, reach, context)
                found += self._missing(role, reach, hooks, context)
        except BaseException as error:
            self._give_up(error)
        del kept
        self._before = {}
        del self._taken
        return list(dict.fromkeys(found))

    def _give_up(self, error: BaseException) -> None:
        self._before = {}
        self._logger.debug("handlergen: what load changes cannot be seen", exc_info=error)

    def _reaches(self) -> Iterator[tuple[str, Reach]]:
        """What each of the two hooks reaches now."""
        contract = self._bundle.contract
        owner: Any = importlib.import_module(contract.module)
        served: type | None = None
        if contract.form in _CLASS_FORMS:
            owner = served = getattr(owner, contract.class_name or "Model")
        others = {hook.name for role, hook in contract.hooks.items() if role not in _ROLES}
        for role in _ROLES:
            hook = contract.hooks.get(role)
            if hook is not None:
                function = inspect.getattr_static(owner, hook.name)
                yield role, Reach(function, self._files, served=served, skipped={*others, "__init__"})

    def _look(self, reach: Reach, context: Context, before: _Looked) -> _Looked:
        values = dict(reach.values)
        if "config" in reach.attributes:
            values["context", "config"] = Reached("context.config", (), context.config)
        return {
            place: (each, self._taken.of(each.value, like=before[place][1] if place in before else None))
            for place, each in values.items()
        }

    def _changed(self, role: str, reach: Reach, context: Context) -> Iterator[Change]:
        before = self._before.get(role, {})
        after = self._look(reach, context, before)
        for place, (was, fingerprint) in before.items():
            if place not in after:
                yield self._change(role, was, "removes")
            elif not fingerprint.same(after[place][1]):
                yield self._change(role, was, "changes")
        for place in after.keys() - before.keys():
            yield self._change(role, after[place][0], "makes")

    def _change(self, role: str, reached: Reached, does: str) -> Change:
        contract, name = self._bundle.contract, reached.shown
        load = contract.hooks.get("load")
        who = load.name if load is not None and contract.form != "model-class" else "loading"
        said = f" (through {' and '.join(reached.through)})" if reached.through else ""
        what = f"{contract.hooks[role].name} uses {name}{said}, which {who} {does}"
        if contract.form == "model-class":
            return Change(what, f"Make {name} where the module is imported, and leave it so.")
        setup = "pre_model_fn(model_dir)" if contract.form == "sagemaker" else "setup(context)"
        return Change(
            what, f"Make {name} in {setup}, which every worker runs, or where the module is imported."
        )

    def _missing(self, role: str, reach: Reach, hooks: Hooks, context: Context) -> Iterator[Change]:
        """What the hook reads of its instance, and a worker's instance has not, or not so."""
        contract = self._bundle.contract
        loaded = bound_to(hooks, role)
        if contract.form not in _CLASS_FORMS or loaded is None:
            return

        def stand_in() -> Any:
            module = open_user_module(contract, self._bundle.settings, context)
            module.stand_in()
            return bound_to(module.hooks(), role)

        name, kind = contract.hooks[role].name, contract.class_name or "Model"
        names = {name, *reach.own, *(vars(loaded) if reach.own_in_full else ())}
        try:
            different = list(differences(loaded, stand_in, names, served=reach.served, taken=self._taken))
        except BaseException as error:
            self._logger.debug("handlergen: %s without weights", kind, exc_info=error)
            told = f"a worker, which has no weights, cannot make {kind} ({type(error).__name__}: {error})"
            yield Change(told, "Make it in load(context), or keep __init__ to torch.nn and plain values.")
            return
        for each in different:
            what = f"{name} uses self.{each}, which is not in a worker's {kind} as loading leaves it"
            yield Change(what, f"Make {each} a class attribute, or a constant of the module.")
