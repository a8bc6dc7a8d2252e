"""How a model is: what `is_healthy` says, and what `GET /models/NAME?customized=true` answers."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..codec.json import dump
from ..codec.redaction import user_traceback
from ..contract import Bundle
from .metrics import Metrics

METRIC = "ModelHealthy"
"""A gauge, 1 or 0, with the dimensions ModelName, WorkerName and Level; declared in handlergen's metrics.yaml."""

PERIOD_S = 15.0
"""How often the hook is asked for the metric's sake. TorchServe tells a worker nothing of time."""

_LEVEL = "Model"


class Health:
    """Asks the module's `is_healthy`, at each describe and every `PERIOD_S` seconds, beside predictions.

    Args:
        ask: The hook; takes values for parameters that only a request has: none.
        metrics: TorchServe's `context.metrics` (ts/metrics/metric_cache_yaml_impl.py); None outside it.
        model, version: For the metric's dimensions.
        logger: Gets the traceback of a hook that fails, once until it succeeds.
        user_root: Directory of the user's code; tracebacks are cut to it.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any]], Any],
        *,
        metrics: Any,
        model: str,
        version: str,
        logger: logging.Logger,
        user_root: str,
    ) -> None:
        self._ask = ask
        self._metrics = metrics
        self._dimensions = [model, f"W-{_worker_port(sys.argv)}-{model}_{version}", _LEVEL]
        self._logger = logger
        self._user_root = user_root
        self._told = False
        self._ended = threading.Event()
        self._one_at_a_time = threading.Lock()
        if metrics is not None:
            threading.Thread(target=self._run, name="handlergen-health", daemon=True).start()

    def check(self) -> dict[str, Any]:
        """Ask now.

        Returns:
            `healthy`: whether the hook's answer is true. `answer`: the answer, if it is more than that and JSON.
            `error`: the name of the exception, if the hook failed.
        """
        with self._one_at_a_time:
            result = self._asked()
        self._emit(1 if result["healthy"] else 0)
        return result

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _asked(self) -> dict[str, Any]:
        try:
            answer = self._ask({})
            result: dict[str, Any] = {"healthy": bool(answer)}
        except (Exception, SystemExit) as error:
            if not self._told:
                trace = user_traceback(error, user_root=self._user_root)
                self._logger.error("is_healthy failed\n%s", trace)
            self._told = True
            return {"healthy": False, "error": type(error).__name__}
        self._told = False
        if answer is not None and not isinstance(answer, bool):
            try:
                dump(answer, "null")
            except Exception:  # no JSON: only whether it is true is told
                return result
            result["answer"] = answer
        return result

    def _run(self) -> None:
        while True:
            self.check()
            if self._ended.wait(PERIOD_S):
                return

    def _emit(self, value: int) -> None:
        if self._metrics is None:
            return
        try:
            self._gauge().add_or_update(value, self._dimensions)
        except Exception as error:
            # Whatever another TorchServe's metrics raise: describe still answers, and the model serves.
            self._logger.debug("the metric %s was not written: %s", METRIC, error)

    def _gauge(self) -> Any:
        from ts.metrics.metric_cache_errors import MetricsCacheKeyError
        from ts.metrics.metric_type_enum import MetricTypes

        try:
            return self._metrics.get_metric(METRIC, MetricTypes.GAUGE)
        except MetricsCacheKeyError:  # a server with a metrics file of its own, which does not declare it
            names = ["ModelName", "WorkerName", "Level"]
            return self._metrics.add_metric_to_cache(METRIC, "count", names, MetricTypes.GAUGE)


def _worker_port(arguments: Sequence[str]) -> str:
    """What TorchServe numbers a worker by: its port or the end of its socket's name (ts/model_service_worker.py)."""
    for name, value in itertools.pairwise(arguments):
        if name in ("--sock-name", "--port"):
            found = re.search(r"(\d+)$", value)
            return found[1] if found else value
    return "0"


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
