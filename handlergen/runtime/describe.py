"""What `GET /models/NAME?customized=true` answers: contract, types, settings, device, counts, health. No secrets."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .contract import Bundle
from .metrics import Metrics


@dataclass
class Counts:
    """What one worker has answered since it started.

    Attributes:
        requests: Predictions and explanations; a KServe request is one, however many instances it has.
        failures: How many of them failed, by status.
        metrics: Counts too.
    """

    requests: int = 0
    failures: Counter[int] = field(default_factory=Counter)
    metrics: Metrics | None = None

    def answered(self, status: int) -> None:
        """Count an answer."""
        if status >= 400:
            self.failures[status] += 1
        if self.metrics is not None:
            self.metrics.answered(status)


def description(
    bundle: Bundle,
    *,
    predictor: dict[str, Any],
    counts: Counts,
    types: dict[str, Any],
    health: dict[str, Any] | None,
) -> dict[str, Any]:
    """The description as JSON values.

    Args:
        predictor: The predictor's own: device, process, number of predictions.
        types: Of input and answer (`TypedHooks.describe`).
        health: What `is_healthy` says now; None without such a hook.
    """
    contract, settings = bundle.contract, bundle.settings
    return {
        "handlergen": bundle.handlergen,
        "form": contract.form,
        "module": contract.module,
        "hooks": {
            role: {"line": hook.line, "kind": hook.kind, "parameters": [p.name for p in hook.parameters]}
            for role, hook in contract.hooks.items()
        },
        "settings": {
            "batch": settings.batch,
            "lock": settings.lock,
            "lock_timeout_s": settings.lock_timeout_s,
            "nan": settings.nan,
            "weights": settings.weights,
        },
        **types,
        "predictor": predictor,
        # TorchServe asks one worker, and not always the same.
        "worker": {
            "pid": os.getpid(),
            "requests": counts.requests,
            "failures": {str(status): number for status, number in sorted(counts.failures.items())},
        },
        "health": health,
    }
