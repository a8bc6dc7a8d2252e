"""The settings `predictor` and `stages`, resolved for one source."""

from __future__ import annotations

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.placement.program import TooMuchToFollow
from handlergen.placement.result import Placement, Reason
from handlergen.placement.roles import STAGES, read_roles
from handlergen.placement.rules import reasons
from handlergen.runtime.contract import Contract
from handlergen.settings import Settings

_FREE = "they use nothing that load builds"


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
        free = _FREE if any(role in contract.hooks for role in STAGES) else "there is neither of them"
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


def find_reasons(source: Source, contract: Contract) -> tuple[Reason, ...]:
    """What ties preprocess or postprocess to the process that has the model; empty when nothing does."""
    if not any(role in contract.hooks for role in STAGES):
        return ()
    try:
        found = list(reasons(contract, read_roles(source, contract)))
    except RecursionError:
        what = "the source is nested too deeply to be followed"
        return (Reason(source.module.file, 0, "", "", (), what, ""),)
    except TooMuchToFollow as error:
        what = "there are more calls than can be followed"
        fix = "Say stages: worker if preprocess and postprocess use nothing that load or predict changes."
        return (Reason(error.site.file, error.site.line, "", "", (), what, fix),)
    preprocess = contract.hooks.get("preprocess")
    if preprocess is not None and preprocess.streams:
        what = "preprocess yields, and a generator cannot go to another process"
        fix = "Return a list instead, and it runs in the workers."
        file = source.module.file
        found.insert(0, Reason(file, preprocess.line, "preprocess", "yield", (), what, fix))
    first: dict[tuple[str, str], Reason] = {}
    for reason in found:
        first.setdefault((reason.hook, reason.name), reason)
    return tuple(first.values())


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
