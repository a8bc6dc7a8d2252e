"""Where predict, preprocess and postprocess run: the settings `predictor` and `stages`, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from handlergen.runtime.contract import Contract
from handlergen.settings import Settings


@dataclass(frozen=True)
class Placement:
    """Where the stages of a request run.

    Attributes:
        predictor: `process` (one a device, with the only copy of the model) or `worker` (a copy in each).
        stages: Where preprocess and postprocess run: `worker`, or `predictor` (the process).
    """

    predictor: str
    stages: str


def place(contract: Contract, settings: Settings) -> Placement:
    """Resolve `predictor` and `stages`."""
    supported = contract.form != "flow"
    predictor = settings.predictor
    if predictor == "auto":
        predictor = "process" if supported else "worker"
    if predictor == "worker":
        return Placement("worker", "worker")
    return Placement(predictor, "predictor" if settings.stages == "auto" else settings.stages)
