"""Warnings about settings that conflict with one another, or with the machine."""

from __future__ import annotations

import math

from handlergen.project.settings import SETTINGS, Settings
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS, FormRow


def contradictions(
    settings: Settings, *, weights_bytes: int | None = None, device_bytes: int | None = None
) -> list[str]:
    """Return a warning for each setting that conflicts with others or has no effect with them.

    These are not errors, because each value alone is allowed. Each warning says what to write instead.

    Args:
        settings: Resolved or not; `batch: auto` counts as `each`, `predictor: auto` as `worker`.
        weights_bytes: Size of the weights file, if there is one.
        device_bytes: Memory of the smallest device (for the CPU, of the whole machine), if it is known.
    """
    found = [*_times(settings), *_batches(settings), *_predictor(settings)]
    if weights_bytes and device_bytes:
        found += _memory(settings, weights_bytes, device_bytes)
    return found


def _times(settings: Settings) -> list[str]:
    found = []
    limit, wait, predict = settings.response_timeout_s, settings.lock_timeout_s, settings.predict_timeout_s
    locked = settings.lock != "none"
    if locked and wait > 0.8 * limit:
        reason = (
            f"is not below response_timeout_s ({limit}): TorchServe kills a worker that waits for the device before "
            "its request can get 503"
            if wait >= limit
            else f"leaves {limit - wait:g} s of response_timeout_s ({limit}) for preprocess, predict and postprocess"
        )
        found.append(f"lock_timeout_s ({wait:g}) {reason}. Write lock_timeout_s: {limit / 2:g}.")
    if predict is None:
        return found
    if predict >= limit:
        found.append(
            f"predict_timeout_s ({predict:g}) is not below response_timeout_s ({limit}): "
            f"TorchServe kills the worker first. Raise response_timeout_s."
        )
        return found
    calls = settings.batch_size if settings.batch in ("each", "auto") else 1
    workers = settings.workers_per_device if locked or _process(settings) else 1
    what = "workers on a device"
    # One predict takes the requests of several workers.
    if _process(settings) and settings.batch in ("collate", "list"):
        workers, what = math.ceil(workers * settings.batch_size / settings.max_batch), "batches"
    queue = workers * calls * predict
    if queue >= limit:
        each = f" x {calls} requests of a batch, one after another" if calls > 1 else ""
        found.append(
            f"{workers} {what}{each} x predict_timeout_s ({predict:g}) are {queue:g} s, "
            f"longer than response_timeout_s ({limit}): the last worker is killed while it waits. "
            f"Raise response_timeout_s above {queue:g}, or lower workers_per_device or batch_size."
        )
    return found


def _batches(settings: Settings) -> list[str]:
    found = []
    if settings.batch_size == 1 and settings.max_batch_delay_ms > 1:
        found.append(
            f"max_batch_delay_ms ({settings.max_batch_delay_ms}) has no effect with batch_size: 1. "
            f"Raise batch_size, or remove max_batch_delay_ms."
        )
    # Where collate is the form's default, a lone sample is a batch of one.
    # A predictor process makes batches of several workers' requests.
    alone = settings.batch_size == 1 and not _process(settings)
    if alone and settings.batch in ("collate", "list") and _form(settings).batch == "each":
        found.append(
            f"batch: {settings.batch} with batch_size: 1: predict never receives more than one request. "
            f"Write batch_size: 8, for example."
        )
    if settings.queue_size < settings.batch_size:
        found.append(
            f"queue_size ({settings.queue_size}) is below batch_size ({settings.batch_size}): "
            f"no batch can fill. Write queue_size: {max(100, 4 * settings.batch_size)}."
        )
    return found


def _predictor(settings: Settings) -> list[str]:
    """Check the settings that only a predictor process reads."""
    changed = [name for name in ("max_batch", "linger_ms") if getattr(settings, name) != SETTINGS[name].default]
    alone = ""
    if not _process(settings):
        alone, instead = "predictor: worker", "Write predictor: process"
    elif settings.batch in ("each", "auto"):
        alone, instead = "batch: each: predict takes one request", "Write batch: collate or list"
    if alone:
        return [
            f"{name} ({getattr(settings, name):g}) has no effect with {alone}. {instead}, or remove {name}."
            for name in changed
        ]
    if settings.linger_ms and settings.max_batch == 1:
        return [
            f"linger_ms ({settings.linger_ms:g}) has no effect with max_batch: 1: there is nothing to wait for. "
            f"Remove it."
        ]
    if settings.max_batch < settings.batch_size:
        return [
            f"max_batch ({settings.max_batch}) is below batch_size ({settings.batch_size}): each batch from "
            f"TorchServe is split. Write max_batch: {settings.batch_size}."
        ]
    under_way = settings.workers_per_device * settings.batch_size
    if "max_batch" in changed and settings.max_batch > under_way:
        fitting = math.ceil(settings.max_batch / settings.workers_per_device)
        return [
            f"max_batch ({settings.max_batch}) is never reached: {settings.workers_per_device} workers with "
            f"{settings.batch_size} request{'s' if settings.batch_size > 1 else ''} each bring {under_way}. "
            f"Write batch_size: {fitting}, or more workers."
        ]
    return []


def _memory(settings: Settings, weights_bytes: int, device_bytes: int) -> list[str]:
    copies = 1 if _process(settings) else settings.workers_per_device
    if copies * weights_bytes <= device_bytes:
        return []
    fitting = max(1, device_bytes // weights_bytes)
    one_copy = "" if _form(settings).several_models else "predictor: process for one copy, or "
    change = f"Write {one_copy}workers_per_device: {fitting} at most."
    if fitting >= copies:
        change = "A smaller model or a larger device is needed."
    if _process(settings):
        return [f"the weights are {_gib(weights_bytes)}, and the device has {_gib(device_bytes)}. {change}"]
    return [
        f"{copies} workers on a device have {copies} copies of the weights, "
        f"{_gib(copies * weights_bytes)} in total; the device has {_gib(device_bytes)}. {change}"
    ]


def _form(settings: Settings) -> FormRow:
    return FORMS[settings.form or DEFAULT_FORM]


def _process(settings: Settings) -> bool:
    return settings.predictor == "process"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
