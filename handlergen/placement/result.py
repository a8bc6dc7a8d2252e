"""Where the stages of a request run, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from handlergen.errors import Problem


@dataclass(frozen=True)
class Reason:
    """Why preprocess or postprocess belongs into the process that has the model.

    Attributes:
        file: As in messages; empty when the reason is none of the source's lines.
        line: 1-based, of the use; 0 likewise.
        hook: The hook that uses it.
        name: What it uses, as the source writes it: `TOKENIZER`, `self.labels`, `model`.
        through: The helpers by which the hook comes there, outermost first.
        what: The sentence, without place and without full stop.
        fix: How to free the stage: whole sentences.
    """

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
        return f"{place}{self.what}. {self.fix}".rstrip()


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
