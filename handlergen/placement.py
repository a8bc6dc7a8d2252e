"""Where the stages of a request run: what `predictor` and `stages` come to for one module."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.runtime.contract import Contract
from handlergen.settings import Settings
from handlergen.stage_rule import HOOKS, Reason, find_reasons

_FREE = "they use nothing that load builds"


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
