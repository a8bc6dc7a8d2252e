"""Settings that contradict one another: warnings, not errors, because each alone is allowed."""

from __future__ import annotations

import math

from handlergen.setting_fields import SETTINGS, Settings


def contradictions(
    settings: Settings, *, weights_bytes: int | None = None, device_bytes: int | None = None
) -> list[str]:
    """What cannot work as set, or has no effect; each with what to write instead.

    Args:
        settings: Resolved or not; a `batch` of `auto` counts as `each`, a `predictor` of `auto` as `worker`.
        weights_bytes: Size of the weights file, when there is one.
        device_bytes: Memory of the smallest device (of the whole machine for the CPU), when it is known.
    """
    return [
        *_times(settings),
        *_batches(settings),
        *_predictor(settings),
        *_memory(settings, weights_bytes, device_bytes),
    ]


def _times(settings: Settings) -> list[str]:
    found = []
    limit = settings.response_timeout_s
    locked = settings.lock != "none"
    if locked and settings.lock_timeout_s >= limit:
        found.append(
            f"lock_timeout_s ({settings.lock_timeout_s:g}) is not below response_timeout_s ({limit}): "
            f"TorchServe kills a worker that waits for the device before its request can get 503. "
            f"Write lock_timeout_s: {limit / 2:g}."
        )
    elif locked and settings.lock_timeout_s > 0.8 * limit:
        found.append(
            f"lock_timeout_s ({settings.lock_timeout_s:g}) leaves {limit - settings.lock_timeout_s:g} s of "
            f"response_timeout_s ({limit}) for preprocess, predict and postprocess. "
            f"Write lock_timeout_s: {limit / 2:g}."
        )
    predict = settings.predict_timeout_s
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
    if _process(settings) and settings.batch in (
        "collate",
        "list",
    ):  # one predict takes the requests of several workers
        workers, what = math.ceil(workers * settings.batch_size / settings.max_batch), "batches"
    queue = workers * calls * predict
    if queue >= limit:
        each = f" x {calls} requests of a batch, one after another" if calls > 1 else ""
        found.append(
            f"{workers} {what}{each} x predict_timeout_s ({predict:g}) are {queue:g} s, which "
            f"response_timeout_s ({limit}) cannot meet: the last worker is killed while it waits. "
            f"Raise response_timeout_s above {queue:g}, or lower workers_per_device or batch_size."
        )
    return found


def _batches(settings: Settings) -> list[str]:
    found = []
    if settings.batch_size == 1 and settings.max_batch_delay_ms > 1:
        found.append(
            f"max_batch_delay_ms ({settings.max_batch_delay_ms}) has no effect with batch_size: 1. "
            f"Raise batch_size, or leave it out."
        )
    # For the form `module` collate is the default, and a lone sample a batch of one.
    # A predictor process makes batches of several workers' requests.
    alone = settings.batch_size == 1 and not _process(settings)
    if alone and settings.batch in ("collate", "list") and settings.form != "module":
        found.append(
            f"batch: {settings.batch} with batch_size: 1: predict never sees more than one request. "
            f"Write batch_size: 8, say."
        )
    if settings.queue_size < settings.batch_size:
        found.append(
            f"queue_size ({settings.queue_size}) is below batch_size ({settings.batch_size}): "
            f"no batch fills. Write queue_size: {max(100, 4 * settings.batch_size)}."
        )
    return found


def _predictor(settings: Settings) -> list[str]:
    """What only a predictor process reads, set where there is none, and the like."""
    changed = [
        name for name in ("max_batch", "linger_ms") if getattr(settings, name) != SETTINGS[name].default
    ]
    if not _process(settings):
        return [
            f"{name} ({_shown(getattr(settings, name))}) has no effect with predictor: worker. "
            f"Write predictor: process, or leave it out."
            for name in changed
        ]
    if settings.batch in ("each", "auto"):
        return [
            f"{name} ({_shown(getattr(settings, name))}) has no effect with batch: each: predict takes one "
            f"request. Write batch: collate or list, or leave it out."
            for name in changed
        ]
    if settings.linger_ms and settings.max_batch == 1:
        return [
            f"linger_ms ({settings.linger_ms:g}) has no effect with max_batch: 1: there is nothing to wait for. "
            f"Leave it out."
        ]
    if settings.max_batch < settings.batch_size:
        return [
            f"max_batch ({settings.max_batch}) is below batch_size ({settings.batch_size}): a batch of "
            f"TorchServe's takes several predictions. Write max_batch: {settings.batch_size}."
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


def _memory(settings: Settings, weights_bytes: int | None, device_bytes: int | None) -> list[str]:
    if not weights_bytes or not device_bytes:
        return []
    if _process(settings):
        if weights_bytes <= device_bytes:
            return []
        return [
            f"the weights are {_gib(weights_bytes)}, and the device has {_gib(device_bytes)}. "
            f"A smaller model or a larger device is needed."
        ]
    copies = settings.workers_per_device
    if copies * weights_bytes <= device_bytes:
        return []
    fitting = max(1, device_bytes // weights_bytes)
    one_copy = "" if settings.form == "flow" else "predictor: process for one copy, or "
    change = "A smaller model or a larger device is needed." if fitting >= copies else ""
    return [
        f"{copies} workers on a device hold {copies} copies of the weights, "
        f"{_gib(copies * weights_bytes)} altogether; the device has {_gib(device_bytes)}. "
        + (change or f"Write {one_copy}workers_per_device: {fitting} at most.")
    ]


def _process(settings: Settings) -> bool:
    return settings.predictor == "process"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
