"""Settling that a request has no answer, and telling the log why."""

from __future__ import annotations

import logging

from .failures import LockTimeout, failure_of, pass_interrupt
from .hooks import Hooks, Item
from .metrics import Metrics
from .tracebacks import user_traceback

_HOOKS = ("preprocess", "predict", "postprocess")


class Failing:
    """Makes a request's failure of what was raised.

    Args:
        form: The contract's.
        user_root: Directory of the user's code; tracebacks are cut to it.
        logger: Gets one traceback for each request that fails by the module's fault; at level DEBUG also for each that
            a hook refuses.
    """

    def __init__(self, form: str, *, user_root: str, logger: logging.Logger) -> None:
        self._form = form
        self._user_root = user_root
        self._logger = logger
        self._stages: tuple[str, ...] = ("",)
        self._metrics: Metrics | None = None

    def name_stages(self, hooks: Hooks) -> None:
        """Tell what the stages are called in messages; once the model is loaded."""
        self._stages = tuple(stage.name for stage in hooks)

    def count_lock_timeouts(self, metrics: Metrics | None) -> None:
        """Count requests that did not get the device in time."""
        self._metrics = metrics

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        """Settle that a request has no answer, and log why; what is the client's fault, for debugging only.

        Args:
            item: Its `failure` is set.
            error: What was raised.
            hook: The role of what raised it.

        Raises:
            KeyboardInterrupt: It was that, in the main thread.
        """
        pass_interrupt(error)
        request_id, role = item.request.id, hook
        name = self._stages[item.stage]
        if name and hook in _HOOKS:
            # What comes into a later stage is the module's own doing: its ValueError is not the client's.
            own = hook == "preprocess" and item.stage == 0
            told, hook = hook if own else f"stage {item.stage + 1} ({hook})", f"{hook} of {name}"
        else:
            told = hook
        item.failure = failure_of(error, hook=told, form=self._form, request_id=request_id)
        if self._metrics is not None and isinstance(error, LockTimeout):
            self._metrics.lock_timed_out()
        level = logging.ERROR if item.failure.status >= 500 else logging.DEBUG
        if level == logging.ERROR or (role in _HOOKS and self._logger.isEnabledFor(level)):
            self._logger.log(
                level,
                "request %s failed in %s with status %d\n%s",
                request_id,
                hook,
                item.failure.status,
                user_traceback(error, user_root=self._user_root),
            )
