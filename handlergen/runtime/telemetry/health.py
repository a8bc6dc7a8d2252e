"""A model's health by its `is_healthy` hook, and its description for `GET /models/NAME?customized=true`."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..codec.encode import dump
from ..codec.redaction import user_traceback
from ..contract import Bundle, RuntimeSettings
from ..diagnostics import logger
from .recording import Counts

METRIC = "ModelHealthy"
"""A gauge, 1 or 0, with the dimensions ModelName, WorkerName and Level; declared in handlergen's metrics.yaml."""

PERIOD_S = 15.0
"""How often the hook is called for the metric."""


class Health:
    """Calls the module's `is_healthy`, at each describe and every `PERIOD_S` seconds, beside predictions.

    Args:
        ask: The hook; gets values for its parameters.
        settings: The model's, whose log gets the traceback of a failing hook, once until it succeeds.
        metrics: TorchServe's `context.metrics` (ts/metrics/metric_cache_yaml_impl.py); None outside it.
        user_root: Directory of the user's code; tracebacks are cut to it.
    """

    def __init__(
        self, ask: Callable[[Mapping[str, Any]], Any], settings: RuntimeSettings, *, metrics: Any, user_root: str
    ) -> None:
        self._ask = ask
        self._metrics = metrics
        model = getattr(metrics, "model_name", None) or settings.name
        self._dimensions = [model, f"W-{_worker_port(sys.argv)}-{model}_{settings.version}", "Model"]
        self._logger = logger()
        self._user_root = user_root
        self._logged = False
        self._ended = threading.Event()
        self._one_at_a_time = threading.Lock()
        if metrics is not None:
            threading.Thread(target=self._run, name="handlergen-health", daemon=True).start()

    def check(self) -> dict[str, Any]:
        """Call the hook.

        Returns:
            `healthy`: whether the hook's answer is true. `answer`: the answer, if it is neither a bool nor None, and
            JSON. `error`: the name of the exception, if the hook failed.
        """
        with self._one_at_a_time:
            result = self._result()
        self._emit(1 if result["healthy"] else 0)
        return result

    def close(self) -> None:
        """Stop calling the hook."""
        self._ended.set()

    def _result(self) -> dict[str, Any]:
        try:
            answer = self._ask({})
            result: dict[str, Any] = {"healthy": bool(answer)}
        except (Exception, SystemExit) as error:
            if not self._logged:
                trace = user_traceback(error, user_root=self._user_root)
                self._logger.error("is_healthy failed\n%s", trace)
            self._logged = True
            return {"healthy": False, "error": type(error).__name__}
        self._logged = False
        if answer is not None and not isinstance(answer, bool):
            try:
                dump(answer, "null")
            except Exception:  # no JSON
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
            from ts.metrics.metric_cache_errors import MetricsCacheKeyError
            from ts.metrics.metric_type_enum import MetricTypes

            try:
                gauge = self._metrics.get_metric(METRIC, MetricTypes.GAUGE)
            except MetricsCacheKeyError:  # a metrics file of the user's that does not declare it
                names = ["ModelName", "WorkerName", "Level"]
                gauge = self._metrics.add_metric_to_cache(METRIC, "count", names, MetricTypes.GAUGE)
            gauge.add_or_update(value, self._dimensions)
        except Exception as error:
            # Another version of TorchServe: describe and predictions still work.
            self._logger.debug("the metric %s was not written: %s", METRIC, error)


def _worker_port(arguments: Sequence[str]) -> str:
    """Return TorchServe's number of a worker: its port or the end of its socket's name (ts/model_service_worker.py)."""
    for name, value in zip(arguments, arguments[1:]):
        if name in ("--sock-name", "--port"):
            found = re.search(r"(\d+)$", value)
            return found[1] if found else value
    return "0"


def description(
    bundle: Bundle,
    *,
    predictor: dict[str, Any],
    counts: Counts,
    types: dict[str, Any],
    health: dict[str, Any] | None,
    examples: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the description as JSON values.

    Args:
        predictor, types: As `Backend.describe` returns them.
        health: The result of `Health.check`; None without the hook.
        examples: How many the archive has, what is done with them at start, and how many this worker answered rightly.
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
        # TorchServe asks one worker, not always the same one.
        "worker": {
            "pid": os.getpid(),
            "requests": counts.requests,
            "failures": {str(status): number for status, number in sorted(counts.failures.items())},
        },
        "health": health,
        "examples": examples,
    }
